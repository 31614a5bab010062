"""A debug model in production, and a service that runs with it and watches a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.train import train
from tests.bento import Server, start, stop, wait_until_ready

NAME = "manufacturing.pcb"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A registry with the whole debug recipe's model, and what its training said."""
    folder = tmp_path_factory.mktemp("manufacturing") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(folder))
        said = train(NAME, recipe="debug", runs=str(folder.parent / "runs"), alias="production")
    return folder, said


@pytest.fixture(scope="session")
def server(trained: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("line")
    (folder / "in").mkdir()
    settings = {"VERTICALS_LINE_FOLDER": str(folder / "in"), "VERTICALS_LINE_STORE": str(folder / "store")}
    running = start("verticals.manufacturing:svc", folder / "server", trained[0], environment=settings)
    try:
        wait_until_ready(running)
        yield running
    finally:
        stop(running)
