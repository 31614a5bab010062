"""An artifact's directory: whole or not there, every byte accounted for, and clear about what is wrong with it."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import ArtifactError, ConfigError
from core.inference import artifact
from core.inference.session import TorchSession
from tests.core.inference.conftest import network_of, record_of
from tests.core.inference.networks import Wide

FILES = ("config.yaml", "constants.json", "data.json", "code.json", "parity.json", "report.json", "report.html")


def sealed(folder: Path, network: Path, format: artifact.Format) -> Path:
    """An artifact of the network's files, the rest made up."""
    with artifact.staged(folder) as staging:
        for name in artifact.NETWORK_FILES[format]:
            shutil.copyfile(network / name, staging / name)
        for name in FILES:
            (staging / name).write_text(json.dumps({"name": name, "filling": list(range(50))}))
        artifact.seal(staging, record_of(Wide, format, notes={"calibration": {"fraud": 3, "none": 0.1}}))
    return folder


@pytest.fixture(params=["torch", "onnx", "openvino"])
def made(request: pytest.FixtureRequest, folder_of: Any, tmp_path: Path) -> tuple[Path, artifact.Format]:
    return sealed(tmp_path / "artifact", folder_of(Wide, request.param), request.param), request.param


# a directory appears whole or not at all


def test_a_staged_folder_appears_with_all_that_was_put_into_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "artifact"
    with artifact.staged(target) as staging:
        (staging / "a").write_text("1")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["a"]
    assert [path.name for path in target.parent.iterdir()] == ["artifact"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_nothing_is_left_of_a_block_that_ends_badly(tmp_path: Path, error: type[BaseException]) -> None:
    def fill() -> None:
        with artifact.staged(tmp_path / "artifact") as staging:
            (staging / "a").write_text("1")
            (staging / "folder").mkdir()
            raise error

    with pytest.raises(error):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_not_written_over(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    target.mkdir()
    (target / "kept").write_text("1")
    with pytest.raises(ArtifactError, match=f"{target} exists; give another --output"), artifact.staged(target):
        raise AssertionError("the block began")
    assert [path.name for path in target.iterdir()] == ["kept"]


def test_of_two_that_make_one_target_the_second_fails_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "artifact"

    def make(text: str, *then: str) -> None:
        with artifact.staged(target) as staging:
            (staging / "a").write_text(text)
            if then:
                make(*then)

    with pytest.raises(ArtifactError, match=f"{target} exists: another command made it meanwhile"):
        make("slow", "quick")
    assert (target / "a").read_text() == "quick"
    assert list(tmp_path.iterdir()) == [target]


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "folder"
    run.mkdir()
    folder.mkdir()
    (run / "config.yaml").write_text("{}")
    with pytest.raises(ArtifactError, match=r"has no constants\.json: the training did not finish"):
        artifact.copy_run(run, folder, code={})


# every byte


def test_a_whole_artifact_is_read_and_answers_as_its_network(made: tuple[Path, artifact.Format]) -> None:
    path, format = made
    record = artifact.read(path)
    assert record.format == format
    assert record.notes == {"calibration": {"fraud": 3, "none": 0.1}}
    assert set(record.files) == {*FILES, *artifact.NETWORK_FILES[format]}
    x = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)
    found = artifact.open_network(path, record)({"x": x})["y"]
    np.testing.assert_allclose(found, TorchSession(network_of(Wide))({"x": x})["y"], atol=1e-5)
    moved = path.rename(path.parent / "elsewhere")
    assert artifact.read(moved) == record
    for name in ("manifest.json", "model.yaml"):
        (moved / name).write_text("of a registered version")
    assert artifact.read(moved) == record


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "empty": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_by_name(made: tuple[Path, artifact.Format], damage: str) -> None:
    path, _ = made
    names = [file.name for file in path.iterdir()]
    for name in names:
        kept = (path / name).read_bytes()
        DAMAGE[damage](path / name)
        with pytest.raises(ArtifactError, match=rf"{path}.*\b{name.replace('.', '[.]')}.*") as raised:
            artifact.read(path)
        assert any(word in str(raised.value) for word in ("export again", "make one with: verticals export"))
        (path / name).write_bytes(kept)
    assert artifact.read(path)


@pytest.fixture
def whole(folder_of: Any, tmp_path: Path) -> Path:
    return sealed(tmp_path / "artifact", folder_of(Wide, "onnx"), "onnx")


def test_no_byte_of_the_record_can_change_unseen(whole: Path) -> None:
    path = whole / "artifact.json"
    kept = path.read_bytes()
    for place in range(0, len(kept), 11):
        changed = bytearray(kept)
        changed[place] = ord("7") if kept[place] != ord("7") else ord("8")
        path.write_bytes(changed)
        with pytest.raises(ArtifactError, match=r"artifact\.json|another version"):
            artifact.read(whole)


def test_an_added_file_or_folder_is_refused_by_name(whole: Path) -> None:
    (whole / "model.pkl").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"model\.pkl was added after the export; remove it"):
        artifact.read(whole)
    (whole / "model.pkl").unlink()
    (whole / "notes").mkdir()
    with pytest.raises(ArtifactError, match="notes is no file: it was added after the export; remove it"):
        artifact.read(whole)


def test_files_that_changed_places_are_refused(whole: Path) -> None:
    a, b = (whole / name for name in ("report.json", "parity.json"))
    texts = a.read_text(), b.read_text()
    a.write_text(texts[1])
    b.write_text(texts[0])
    with pytest.raises(ArtifactError, match=r"parity\.json"):
        artifact.read(whole)


# other versions, other applications, missing runtimes


def test_another_layout_says_that_another_version_made_it(whole: Path) -> None:
    record = json.loads((whole / "artifact.json").read_text())
    for changed in ({**record, "layout": 2}, {**record, "layout": 2, "signature": "new"}, {"layout": 0}):
        (whole / "artifact.json").write_text(json.dumps(changed))
        with pytest.raises(
            ArtifactError, match=rf"made by another version \(layout {changed['layout']}, this code reads 1\)"
        ):
            artifact.read(whole)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"layout": "x"}', '{"layout": 1}', "\udcff"])
def test_what_is_no_record_is_damaged(whole: Path, text: str) -> None:
    (whole / "artifact.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ArtifactError, match=r"artifact\.json is damaged|made by another version"):
        artifact.read(whole)


def test_a_folder_that_is_no_artifact_says_how_to_make_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        assert not artifact.is_artifact(path)
        with pytest.raises(ArtifactError, match=r"is no artifact \(artifact\.json is missing\).*verticals export"):
            artifact.read(path)


def test_an_artifact_of_another_application_is_refused(whole: Path) -> None:
    from core.inference.model import session_of
    from tests.core.inference.pictures import APPLICATION

    with pytest.raises(ArtifactError, match=f"an artifact of test.network, not of {APPLICATION.name}"):
        session_of(APPLICATION, whole)


@pytest.mark.parametrize(
    ("format", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("tensorrt", "tensorrt")]
)
def test_a_missing_runtime_says_what_to_install(
    whole: Path, monkeypatch: pytest.MonkeyPatch, format: artifact.Format, package: str
) -> None:
    def version(name: str) -> str:
        if name.startswith(package):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(artifact, "version", version)
    words = f"format {format} needs the package {package}, which is not installed: pip install {package}"
    with pytest.raises(ConfigError, match=words):
        artifact.check_format(format)
    with pytest.raises(ConfigError, match=words):
        artifact.open_network(whole, record_of(Wide, format))


def test_the_package_for_gpus_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "onnxruntime-gpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.32.0"

    monkeypatch.setattr(artifact, "version", version)
    assert artifact.runtime_version("onnx") == "onnxruntime 1.32.0"


@pytest.mark.parametrize("format", ["tflite", "", "ONNX", "torch.onnx"])
def test_an_unknown_format_lists_those_there_are(format: str) -> None:
    with pytest.raises(ConfigError, match=f"format {format!r} is unknown; allowed: torch, onnx, openvino, tensorrt"):
        artifact.check_format(format)
