"""An exported artifact becomes a version only with a passing report of parity on its very files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from core import registry
from core.aliases import store
from core.errors import ArtifactError
from core.inference import artifact

NAME = "finance.fraud"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


RECORD = artifact.Record(
    application=NAME, source="run", form="step", format="onnx", precision="float32", runtime="onnxruntime 1", inputs=(),
    outputs=(),
)  # fmt: skip


def seal(path: Path, **record: object) -> None:
    (path / "artifact.json").unlink(missing_ok=True)
    artifact.seal(path, RECORD.model_copy(update=record))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An artifact whose parity was shown."""
    path = tmp_path / "exported"
    path.mkdir()
    for name in ("config.yaml", "constants.json", "data.json"):
        (path / name).write_text("{}")
    (path / "model.onnx").write_bytes(bytes(range(200)))
    (path / "code.json").write_text(json.dumps({"application": NAME, "commit": "abc"}))
    files = {name: file.sha256 for name, file in artifact.hashes(path).items()}
    (path / "parity.json").write_text(json.dumps({"passed": True, "findings": [], "files": files}))
    (path / "report.json").write_text(json.dumps({"scores": {"average_precision": 0.7}}))
    (path / "report.html").write_text("<p>")
    seal(path)
    return path


def test_an_artifact_becomes_a_version_with_all_its_files(exported: Path) -> None:
    version = registry.register(exported, NAME)
    found = registry.resolve(NAME, version)
    assert found.report["scores"] == {"average_precision": 0.7}
    assert found.code["commit"] == "abc"
    assert {path.name for path in found.path.iterdir()} == {
        *(path.name for path in exported.iterdir()), "manifest.json", "model.yaml"
    }  # fmt: skip
    assert all((found.path / path.name).read_bytes() == path.read_bytes() for path in exported.iterdir())
    assert registry.set_alias(NAME, "production", version).aliases == ("production",)


@pytest.mark.parametrize("name", ["model.onnx", "artifact.json", "parity.json", "report.html"])
def test_a_byte_of_an_artifact_that_changes_afterwards_is_refused(exported: Path, name: str) -> None:
    version = registry.register(exported, NAME)
    path = store() / NAME / version / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{re.escape(name)} is not what was registered"):
        registry.resolve(NAME, version)


def without_parity(path: Path) -> None:
    (path / "parity.json").unlink()
    seal(path)


def failed(path: Path) -> None:
    parity = {"passed": False, "findings": ["network: output score departs"], "files": {}}
    (path / "parity.json").write_text(json.dumps(parity))
    seal(path)


def unsaid(path: Path) -> None:
    parity = json.loads((path / "parity.json").read_text())
    (path / "parity.json").write_text(json.dumps({**parity, "passed": "yes"}))
    seal(path)


def of_others(path: Path) -> None:
    (path / "model.onnx").write_bytes(bytes(200))
    seal(path)


def said_otherwise(path: Path) -> None:
    parity = json.loads((path / "parity.json").read_text())
    (path / "parity.json").write_text(json.dumps({**parity, "passed": False, "findings": [1, {}]}))
    seal(path)


def files_otherwise(path: Path) -> None:
    parity = json.loads((path / "parity.json").read_text())
    (path / "parity.json").write_text(json.dumps({**parity, "files": ["model.onnx"]}))
    seal(path)


def relabelled(path: Path) -> None:
    text = (path / "artifact.json").read_text()
    (path / "artifact.json").write_text(text.replace('"layout": 1', '"layout": 2'))


def unsealed(path: Path) -> None:
    record = json.loads((path / "artifact.json").read_text())
    (path / "artifact.json").write_text(json.dumps({**record, "sha256": ""}))


def without_scores(path: Path) -> None:
    for name in ("report.json", "report.html"):
        (path / name).unlink()
    seal(path)


def unreadable(path: Path) -> None:
    (path / "parity.json").write_text("")
    seal(path)


def with_more(path: Path) -> None:
    (path / "model.bin").write_bytes(b"1")
    seal(path)


def changed(path: Path) -> None:
    (path / "constants.json").write_text('{"threshold": 0.1}')


def scores_changed(path: Path) -> None:
    (path / "report.json").write_text(json.dumps({"scores": {"average_precision": 0.9}}))


def passed_by_hand(path: Path) -> None:
    (path / "parity.json").write_text((path / "parity.json").read_text().replace("[]", "[ ]"))


REFUSED = [
    (without_parity, "has no parity report: nobody has shown that it answers as its model; export it again"),
    (failed, r"did not pass parity \(network: output score departs\); export it again"),
    (unsaid, r"did not pass parity \(no reason given\)"),
    (said_otherwise, r"did not pass parity \(1; {}\)"),
    (files_otherwise, r"is not what parity was shown for"),
    (relabelled, "was made by another version .*export it again"),
    (unsealed, "artifact.json is not what was written"),
    (of_others, "model.onnx is not what parity was shown for; export it again"),
    (with_more, "model.bin is not what parity was shown for"),
    (without_scores, "has no report.html, report.json; export it again"),
    (changed, "constants.json has 18 bytes, 2 were written"),
    (scores_changed, "report.json is not what was written"),
    (passed_by_hand, "parity.json has .* bytes"),
    (lambda path: (path / "model.onnx").unlink(), "model.onnx is missing"),
    (lambda path: (path / "note.txt").touch(), "note.txt was added after the export"),
    (lambda path: seal(path, application="finance.aml"), "is an artifact of finance.aml, not of finance.fraud"),
    (lambda path: (path / "artifact.json").write_text("{"), "artifact.json is damaged"),
    (unreadable, "parity.json is damaged; export it again"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_an_artifact_without_a_passing_report_on_these_very_files_is_refused(
    exported: Path, home: Path, change: Callable[[Path], object], words: str
) -> None:
    change(exported)
    with pytest.raises(ArtifactError, match=words):
        registry.register(exported, NAME)
    assert not (home / "models" / NAME).exists()


@pytest.mark.parametrize("files", [None, [], {}, {"model.onnx": None}, {"model.onnx": {}}, "all"])
def test_a_record_that_does_not_list_an_artifacts_files_is_refused(exported: Path, home: Path, files: object) -> None:
    record = json.loads((exported / "artifact.json").read_text())
    (exported / "artifact.json").write_text(json.dumps({**record, "files": files}))
    with pytest.raises(ArtifactError, match=r"artifact\.json is (damaged|not what was written)"):
        registry.register(exported, NAME)
    assert not (home / "models" / NAME).exists()


@pytest.mark.parametrize("name", ["../elsewhere", "other/model.onnx", "/etc/hostname"])
def test_a_file_elsewhere_is_refused(exported: Path, home: Path, name: str) -> None:
    """Also by a record whose own hash is right."""
    (exported.parent / "elsewhere").write_text("secret")
    files = {**artifact.hashes(exported), name: artifact.File(sha256="0" * 64, bytes=6)}
    sealed = RECORD.model_copy(update={"files": files})
    text = sealed.model_dump_json(indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (exported / "artifact.json").write_text(sealed.model_copy(update={"sha256": digest}).model_dump_json(indent=1))
    with pytest.raises(ArtifactError, match="is missing"):
        registry.register(exported, NAME)
    assert not (home / "models" / NAME).exists()
