"""The index is filled from data sets and folders while no service runs: all that can be, once, by the model in production."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from core.errors import ArtifactError, ConfigError, DataError
from pipelines.data import data
from pipelines.serve import _fill
from tests.verticals.multimodal.conftest import NAME
from tests.verticals.multimodal.made import caption, other_scenes, png
from verticals.multimodal.index import Index

SCENES = other_scenes(6)


@pytest.fixture
def store(trained: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENTOML_HOME", str(trained[0]))
    monkeypatch.setenv("VERTICALS_INDEX", str(tmp_path / "index"))
    return tmp_path / "index"


def opened(store: Path, version: str) -> Index:
    return Index(store / version)


def filled(source: Path) -> dict[str, int]:
    told = data(NAME, load=str(source))
    return {name: told[name] for name in ("indexed", "known", "refused", "items")}


def table(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    rows = ["filepath,title,owner"]
    for place, scene in enumerate(SCENES[:count]):
        (folder / f"{place}.png").write_bytes(png(scene))
        rows.append(f'{place}.png,"{caption(scene)}",Ann')
    (folder / "list.csv").write_text("\n".join(rows))
    return folder / "list.csv"


def test_a_table_is_indexed_once(store: Path, tmp_path: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    assert filled(table(tmp_path / "own", 3)) == {"indexed": 3, "known": 0, "refused": 0, "items": 3}
    assert filled(table(tmp_path / "own", 5)) == {"indexed": 2, "known": 3, "refused": 0, "items": 5}
    index = opened(store, trained[1]["version"])
    kept = index.get("4.png")
    assert kept.metadata == {"owner": "Ann", "caption": caption(SCENES[4])}
    assert kept.thumbnail is not None
    (hits,) = index.search(kept.vector[None], 1, model=index.model)
    assert hits[0].id == "4.png"
    with pytest.raises(ArtifactError, match="is being written by process"):
        filled(tmp_path / "own" / "list.csv")
    index.close()


def test_a_folder_and_a_tar_need_no_words_and_what_is_no_picture_is_named(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    (folder / "inner").mkdir(parents=True)
    for place, scene in enumerate(SCENES[:3]):
        (folder / "inner" / f"{place}.png").write_bytes(png(scene))
    (folder / "bad.jpg").write_bytes(b"none")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / os.fsdecode(b"not\xffUTF-8.png")).write_bytes(png(SCENES[5]))
    told = data(NAME, load=str(folder))
    assert (told["indexed"], told["refused"], told["items"]) == (3, 4, 3)
    assert "'bad.jpg': the picture 'bad.jpg' is no picture" in told["text"]
    for words in ("'gone.jpg': gone.jpg cannot be read", "'folder.jpg': folder.jpg cannot be read", "is no id"):
        assert words in told["text"]
    (folder / "backup.tar").write_bytes(b"none")
    with pytest.raises(DataError, match="holds tar files"):
        filled(folder)
    with tarfile.open(tmp_path / "many.tar", "w") as tar:
        tar.add(folder / "inner" / "0.png", "x.png")
    assert filled(tmp_path / "many.tar") == {"indexed": 1, "known": 0, "refused": 0, "items": 4}


def test_faults_leave_the_index_as_it_is(store: Path, tmp_path: Path) -> None:
    listed = table(tmp_path / "own", 2)
    listed.write_text(listed.read_text() + "\nmissing.png,words,Ann")
    (tmp_path / "own" / "captions.csv").write_text("image,words\n0.png,a dot")
    for source, words in (
        (listed, "missing.png"),
        (tmp_path / "own", "the columns image, words"),
        (tmp_path / "no", "is not there"),
    ):
        with pytest.raises(DataError, match=words):
            filled(source)
    assert not store.exists()
    with pytest.raises(ConfigError, match="keeps no data"):
        data("medical.ct", load=str(listed))


def test_a_service_without_a_model_begins_with_synthetic_pictures(
    store: Path,
    trained: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _fill(NAME)
    index = opened(store, trained[1]["version"])
    assert len(index) == 900
    assert "900 pictures indexed" in capsys.readouterr().err
    index.close()
    monkeypatch.setenv("BENTOML_HOME", str(store / "empty"))
    with pytest.raises(ArtifactError, match="there is no model of multimodal.retrieval"):
        _fill(NAME)
    assert f"the rest comes by: verticals data {NAME} --synthetic FOLDER" in capsys.readouterr().err
