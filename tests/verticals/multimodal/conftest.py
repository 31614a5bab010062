"""A debug model in production, and a service that searches with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.train import train
from tests.bento import Server, start, stop, wait_until_ready

NAME = "multimodal.retrieval"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A registry with the whole debug recipe's model, and what its training said."""
    folder = tmp_path_factory.mktemp("multimodal") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(folder))
        said = train(NAME, recipe="debug", runs=str(folder.parent / "runs"), alias="production")
    return folder, said


@pytest.fixture(scope="session")
def server(trained: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("search")
    settings = {"VERTICALS_INDEX": str(folder / "index"), "VERTICALS_PICTURE_MEGAPIXELS": "4"}
    running = start("verticals.multimodal:svc", folder / "server", trained[0], environment=settings)
    try:
        wait_until_ready(running)
        yield running
    finally:
        stop(running)
