"""A debug model in production."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.train import train

NAME = "multimodal.retrieval"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A registry with the whole debug recipe's model, and what its training said."""
    folder = tmp_path_factory.mktemp("multimodal") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(folder))
        said = train(NAME, recipe="debug", runs=str(folder.parent / "runs"), alias="production")
    return folder, said
