"""CT segmentation as a user types it: data, a training, masks of scans in every form, and a real archive."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom
import httpx
import nibabel
import numpy as np
import pydicom
import pytest

from core import registry
from pipelines import cli, predict
from tests.pipelines.command import run
from tests.servers import Orthanc
from verticals.medical.ct.config import debug
from verticals.medical.ct.synthetic import LABELS, SyntheticConfig, phantom
from verticals.medical.dicom.write import write_series
from verticals.medical.volume import Volume

NAME = "medical.ct"
SHORT = ["--set", "fit.epochs=4"]
"""Enough for the spine and the liver to be found where they are."""


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic data set, written by the command, and a series beside it."""
    path = tmp_path_factory.mktemp("scans") / "Dataset1"
    assert cli.main(["data", NAME, "--recipe", "debug", "--synthetic", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def home(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A registry with one model as production, trained by the command on the data set."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(folder))
        words = ["--recipe", "debug", *SHORT, "--data", str(scans), "--runs", str(folder / "runs")]
        assert cli.main(["train", NAME, *words, "--alias", "production"]) == 0
        yield folder


def truth() -> tuple[Volume, Volume]:
    """The body that the command wrote as a DICOM series, and its labels."""
    config: SyntheticConfig = debug().data.synthetic
    return phantom(config, config.num_cases)


def near_truth(centroid_mm: dict[str, Any], *, mm: float = 25.0) -> bool:
    """Whether spine and liver lie where the body has them: a mirrored or turned mask is 100 mm off."""
    _, mask = truth()
    return all(
        np.linalg.norm(np.array(centroid_mm[name]) - mask.centroid_mm(LABELS[name])) < mm for name in ("Spine", "Liver")
    )


def recorded(folder: Path) -> dict[str, Any]:
    """Centroids of an answer's record."""
    record = json.loads((folder / "answer.json").read_text())
    return {found["name"]: found["centroid_mm"] for found in record["structures"]}


def test_a_data_set_and_a_scan_are_checked(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, "data", NAME, "--recipe", "debug", "--check", str(scans))
    assert (code, found["cases"]) == (0, {"train": 6, "validation": 2, "test": 2})
    assert re.search(r"[0-9a-f]{16}\nspacing_mm ", found["text"])
    code, found = run(capsys, "data", NAME, "--check", str(scans / "dicom"))
    scan, _ = truth()
    assert code == 0
    assert sorted(found["shape"]) == sorted(scan.grid.shape)
    assert found["hu"] == [int(scan.array.min()), int(scan.array.max())]
    first = sorted((scans / "dicom").iterdir())[0]
    few = shutil.copytree(scans / "dicom", tmp_path / "few")
    (few / sorted(path.name for path in few.iterdir())[4]).unlink()
    assert cli.main(["data", NAME, "--check", str(few)]) == 1
    error = capsys.readouterr().err
    assert "slice(s) missing" in error
    assert first.name not in error


def test_a_training_leaves_a_whole_run_and_a_version(home: Path) -> None:
    version = registry.resolve(NAME)
    assert version.report["figures"]["dice Spine"]["value"] > 0.6
    (path,) = (home / "runs" / NAME).iterdir()
    names = {"config.yaml", "constants.json", "data.json", "metrics.jsonl", "model.safetensors", "report.html"}
    assert names <= {file.name for file in path.iterdir()}
    assert json.loads((path / "constants.json").read_text())["plan"]["labels"] == LABELS
    page = (path / "report.html").read_text()
    assert "Surface Dice at 3 mm" in page


def test_evaluate_repeats_the_report_and_takes_another_data_set(
    home: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = registry.resolve(NAME).report["figures"]
    code, result = run(capsys, "evaluate", NAME)
    assert code == 0
    assert result["figures"]["dice"] == pytest.approx(kept["dice"], rel=1e-5)
    assert cli.main(["evaluate", NAME, "-i", str(scans)]) == 1
    assert "is the data set that the model was trained on" in capsys.readouterr().err
    other = shutil.copytree(scans, tmp_path / "other")
    code, result = run(capsys, "evaluate", NAME, "-i", str(other), "--report", str(tmp_path / "report.html"))
    assert code == 0
    assert "dice Spine" in (tmp_path / "report.html").read_text()
    assert result["split"] == "all"
    assert result["figures"]["dice"]["low"] <= result["figures"]["dice"]["value"] <= result["figures"]["dice"]["high"]


@pytest.mark.parametrize("form", ["folder", "zip", "nifti"])
def test_predict_answers_a_scan_in_every_form(
    form: str, home: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = scans / "dicom"
    if form == "zip":
        source = Path(shutil.make_archive(str(tmp_path / "scan"), "zip", source))
    elif form == "nifti":
        source = scans / "imagesTs" / "phantom_009_0000.nii.gz"
    out = tmp_path / "answer"
    code, result = run(capsys, "predict", NAME, "-i", str(source), "-o", str(out))
    assert code == 0
    of_dicom = {"seg.dcm", "rtstruct.dcm"} if form != "nifti" else set()
    assert (
        set(result["files"])
        == {path.name for path in out.iterdir()}
        == {"mask.nii.gz", "preview.png", "answer.json"} | of_dicom
    )
    assert result["volumes_ml"].keys() | set(result["empty"]) == LABELS.keys() - {"background"}
    assert result["version"] in json.loads((out / "answer.json").read_text())["version"]
    image: Any = nibabel.load(out / "mask.nii.gz")  # type: ignore[attr-defined]
    if form == "nifti":
        given: Any = nibabel.load(source)  # type: ignore[attr-defined]
        assert image.shape == given.shape
        np.testing.assert_allclose(image.affine, given.affine, atol=1e-4)
    else:
        assert near_truth(recorded(out))
    assert cli.main(["predict", NAME, "-i", str(source), "-o", str(out)]) == 1
    assert "exists; name a new folder" in capsys.readouterr().err


def test_a_refused_scan_leaves_nothing(
    home: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = shutil.copytree(scans / "dicom", tmp_path / "few")
    sorted(few.iterdir())[3].unlink()
    assert cli.main(["predict", NAME, "-i", str(few), "-o", str(tmp_path / "answer")]) == 1
    error = capsys.readouterr().err
    assert "slice(s) missing" in error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


def test_a_dry_run_promises_and_writes_nothing(
    home: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", NAME, "-i", str(scans / "dicom"), "-o", str(tmp_path / "answer"), "--dry-run"]
    code, promised = run(capsys, *words)
    assert code == 0
    assert promised["fits"]
    assert promised["bytes"] > 2**26
    assert promised["seconds"] > 0
    assert promised["bytes"] <= promised["limit_bytes"]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(predict, "memory_limit", lambda: 10**6)
    assert cli.main(words) == 1
    assert re.search(
        r"at most \d+\.\d\d GB of memory and \d+ s by version .*; it does NOT fit into 0\.00 GB",
        capsys.readouterr().out,
    )
    assert list(tmp_path.iterdir()) == []


def test_settings_of_the_model_are_changed_for_one_scan(
    home: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", NAME, "-i", str(scans / "dicom")]
    _, usual = run(capsys, *words, "-o", str(tmp_path / "usual"))
    changes = ["--set", "predict.air_hu=3072", "--set", "predict.overlap=0.6"]
    _, other = run(capsys, *words, "-o", str(tmp_path / "other"), *changes)
    assert usual["windows_of_air"] < usual["windows"] < other["windows"] == other["windows_of_air"]
    assert cli.main([*words, "-o", str(tmp_path / "no"), "--set", "predict.ovrlap=0.6"]) == 2


def test_what_is_wrong_with_labels_is_said_before_a_training(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(scans, tmp_path / "O'Brien's scans"))
    code, found = run(capsys, "data", NAME, "--recipe", "debug", "--check", str(folder))
    assert (code, found["cases"]["train"]) == (0, 6)
    record = json.loads((folder / "dataset.json").read_text())
    record["labels"] = {name.replace("Spine", "Rückenmark"): number for name, number in record["labels"].items()}
    (folder / "dataset.json").write_text(json.dumps(record))
    for words in (["data", NAME, "--check"], ["train", NAME, "--recipe", "debug", "--runs", str(tmp_path), "--data"]):
        assert cli.main([*words, str(folder)]) == 1
        assert "label 'Rückenmark' cannot be written to DICOM" in capsys.readouterr().err


class Pacs:
    """Orthanc's own REST API."""

    def __init__(self, orthanc: Orthanc) -> None:
        self.client = httpx.Client(base_url=orthanc.url, timeout=30, trust_env=False)
        self.web = f"{orthanc.url}/dicom-web/"

    def add(self, folder: Path) -> str:
        """Sends a series; its study's UID."""
        for path in sorted(folder.iterdir()):
            self.client.post("/instances", content=path.read_bytes()).raise_for_status()
        return str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID)

    def segmentations(self, study: str, folder: Path) -> list[Path]:
        """Those of a study, fetched."""
        query = {"Level": "Instance", "Query": {"StudyInstanceUID": study, "Modality": "SEG"}}
        found = self.client.post("/tools/find", json=query).raise_for_status().json()
        paths = []
        for number, one in enumerate(found):
            paths.append(folder / f"seg-{number}.dcm")
            paths[-1].write_bytes(self.client.get(f"/instances/{one}/file").raise_for_status().content)
        return paths


@pytest.fixture
def pacs(orthanc: Orthanc) -> Iterator[Pacs]:
    archive = Pacs(orthanc)
    with archive.client:
        yield archive


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_a_study_of_an_archive_gets_its_segmentation(
    home: Path, scans: Path, pacs: Pacs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = pacs.add(scans / "dicom")
    fetch = ["predict", NAME, "--from-dicomweb", pacs.web, "--study", study]
    code, promised = run(capsys, *fetch, "--dry-run")
    assert code == 0
    assert promised["fits"]
    assert pacs.segmentations(study, tmp_path) == []
    out = tmp_path / "answer"
    code, result = run(capsys, *fetch, "--store", "-o", str(out))
    assert (code, result["stored"]) == (0, 1)
    (path,) = pacs.segmentations(study, tmp_path)
    segmentation = highdicom.seg.segread(path)
    assert str(segmentation.StudyInstanceUID) == study
    volume: Any = segmentation.get_volume(combine_segments=True)
    expected, placed = recorded(out), {}
    for item in segmentation.SegmentSequence:
        index = np.append(np.argwhere(volume.array == int(item.SegmentNumber)).mean(0), 1.0)
        placed[str(item.SegmentLabel)] = (np.diag([-1.0, -1, 1, 1]) @ volume.affine @ index)[:3]
    assert placed.keys() == expected.keys()
    scan, _ = truth()
    for name, place in placed.items():
        assert np.linalg.norm(place - expected[name]) < scan.grid.spacing_mm.min() / 2
    assert near_truth(placed)
    code, result = run(capsys, *fetch, "--store")  # and without a folder
    assert (code, result["output"], result["stored"]) == (0, None, 1)
    assert not result["text"].startswith("/"), "it names no folder that is gone"
    assert len(pacs.segmentations(study, tmp_path)) == 2


def test_an_archive_that_has_no_such_study_or_does_not_answer(
    home: Path, pacs: Pacs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for url, study, words in (
        (pacs.web, "1.2.3.4.5", "no CT series"),
        (pacs.web, "Klara", "the UID of the study is none"),
        ("http://127.0.0.1:9/dicom-web", "1.2.3.4.5", "does not answer|cannot be reached|connect"),
    ):
        words_given = ["--from-dicomweb", url, "--study", study, "-o", str(tmp_path / "answer")]
        assert cli.main(["predict", NAME, *words_given]) == 1
        error = capsys.readouterr().err
        assert re.search(words, error), error
        assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_of_two_series_one_is_named(
    home: Path, scans: Path, pacs: Pacs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, _ = truth()
    study = "1.2.826.0.1.3680043.8.498.77"
    for number in (1, 2):
        write_series(scan, tmp_path / f"{number}", study_uid=study, series_uid=f"{study}.{number}")
        pacs.add(tmp_path / f"{number}")
    fetch = ["predict", NAME, "--from-dicomweb", pacs.web, "--study", study, "--dry-run"]
    assert cli.main(fetch) == 1
    assert "2 CT series" in capsys.readouterr().err
    code, _ = run(capsys, *fetch, "--series", f"{study}.2")
    assert code == 0


URL = ["--from-dicomweb", "http://127.0.0.1:9/dicom-web"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "give either --input FILE or --from-dicomweb URL"),
        (["-i", "scan.nii.gz", *URL, "--study", "1.2"], "give either --input FILE or"),
        ([*URL, "-o", "answer"], "--from-dicomweb and --study go together"),
        (["-i", "scan.nii.gz", "-o", "answer", "--study", "1.2"], "go together"),
        (["-i", "scan.nii.gz", "-o", "answer", "--series", "1.2"], "--series and --store go with --from-dicomweb"),
        (["-i", "scan.nii.gz", "--store"], "--series and --store go with --from-dicomweb"),
        (["-i", "scan.nii.gz"], "give --output"),
        ([*URL, "--study", "1.2", "--store", "--dry-run"], "--dry-run answers nothing"),
        (["--from-dicomweb", "ftp://there", "--study", "1.2", "--store"], "http"),
    ],
)
def test_options_that_do_not_go_together_are_2(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", NAME, *words]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-i", "in.csv", "-o", "out.csv", "--dry-run"], "nothing to promise"),
        ([*URL, "--study", "1.2", "-o", "out.csv"], "finance.fraud fetches nothing from archives"),
    ],
)
def test_what_another_application_has_not_is_2(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "finance.fraud", *words]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["data", NAME, "--check", "nowhere"], 1, "no such file or folder"),
        (["data", NAME, "--synthetic", "."], 1, "not empty"),
        (["train", NAME, "--data", "nowhere"], 1, "has no dataset.json"),
        (["train", NAME, "--set", "plan.patch_voxels=9"], 2, "patch_voxels"),
    ],
)
def test_misuse_says_what_is_allowed(
    words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = [*words, "--runs", str(tmp_path)] if words[0] == "train" else words
    assert cli.main(given) == code
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error


def test_a_model_that_decides_at_no_score_has_no_threshold(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["release", NAME, "--threshold", "0.3"]) == 2
    assert f"{NAME} decides at no score" in capsys.readouterr().err
    registry.set_threshold(NAME, "production", 0.3)  # as earlier code did
    code, result = run(capsys, "release", NAME, "--threshold", "none")
    assert code == 0
    assert [version["threshold"] for version in result["versions"]] == [None]
