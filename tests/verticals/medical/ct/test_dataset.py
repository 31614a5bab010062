from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError, LeakError
from verticals.medical.ct.application import samples
from verticals.medical.ct.config import debug
from verticals.medical.ct.dataset import Dataset, _drawn_split
from verticals.medical.ct.synthetic import LABELS
from verticals.medical.nifti import read_labels, read_nifti, write_nifti
from verticals.medical.volume import Axes, Volume


@pytest.fixture
def folder(scans: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(scans, tmp_path / "copy"))


def edit(folder: Path, name: str = "dataset.json", **changes: Any) -> None:
    path = folder / name
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def test_cases_are_on_the_sides_that_the_data_set_says(scans: Path) -> None:
    dataset = Dataset.open(scans)
    splits = json.loads((scans / "splits.json").read_text())
    assert {side: [case.name for case in dataset.cases(side)] for side in splits} == splits
    assert dataset.labels == LABELS
    assert dataset.cases("train")[0].known == (True,) * 5
    assert dataset.cases("train")[0].names[3] == "RightKidney"


def test_a_case_reads_as_stored(scans: Path) -> None:
    case = Dataset.open(scans).cases("train")[0]
    scan, mask = case.read()
    np.testing.assert_array_equal(scan.array, read_nifti(scans / "imagesTr" / f"{case.name}_0000.nii.gz").array)
    np.testing.assert_array_equal(mask.array, read_labels(scans / "labelsTr" / f"{case.name}.nii.gz").array)
    assert mask.grid is scan.grid


def test_opening_reads_no_voxel(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("voxels were read")

    for name in ("read_nifti", "read_labels"):
        monkeypatch.setattr(f"verticals.medical.ct.dataset.{name}", refuse)
    Dataset.open(scans)


def swapped(folder: Path, name: str, *, part: str) -> None:
    """Stores a case's file with other axes: the same voxels at the same places in another order."""
    path = next((folder / part).glob(f"{name}*"))
    volume = read_nifti(path) if part.startswith("images") else read_labels(path)
    turned = volume.turned(Axes((1, 2, 0), (True, False, False)))
    write_nifti(Volume(np.ascontiguousarray(turned.array), turned.grid), path)


def first(folder: Path, part: str) -> Path:
    return sorted((folder / part).iterdir())[0]


def with_value(folder: Path, value: int) -> None:
    path = first(folder, "labelsTr")
    mask = read_labels(path)
    mask.array[0, 0, 0] = value
    write_nifti(mask, path)


def shifted(folder: Path) -> None:
    path = first(folder, "labelsTr")
    mask = read_labels(path)
    mask.grid.affine[0, 3] += 1
    write_nifti(mask, path)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no dataset.json": (lambda f: (f / "dataset.json").unlink(), "no dataset.json.*nnU-Net's layout"),
    "no JSON": (lambda f: (f / "dataset.json").write_text("{"), "dataset.json is not JSON"),
    "a list": (lambda f: (f / "dataset.json").write_text("[]"), "JSON list; it has to be an object"),
    "no labels": (lambda f: edit(f, labels={"background": 0}), "labels has to be an object like"),
    "labels of v1": (lambda f: edit(f, labels={"0": "background", "1": "Liver"}), "label 0 is not a whole number"),
    "a gap": (lambda f: edit(f, labels={"background": 0, "A": 1, "B": 3}), r"numbered \[0, 1, 3\].*without a gap"),
    "background 1": (lambda f: edit(f, labels={"background": 1, "A": 0}), "background 0, then 1, 2"),
    "no background": (lambda f: edit(f, labels={"A": 0, "B": 1}), "background 0, then 1, 2"),
    "regions": (lambda f: edit(f, labels={"background": 0, "A": [1, 2]}), "A is a region.*not supported; give each"),
    "ignore": (lambda f: edit(f, labels={**LABELS, "ignore": 5}), "ignore label is not supported; use missing_labels"),
    "two channels": (lambda f: edit(f, channel_names={"0": "CT", "1": "PET"}), "2 channels; one is supported"),
    "MR": (lambda f: edit(f, channel_names={"0": "T1"}), "the channel is 'T1'; allowed is CT"),
    "second channel": (
        lambda f: shutil.copy(first(f, "imagesTr"), f / "imagesTr" / "phantom_000_0001.nii.gz"),
        "phantom_000 has channel 0001; only one",
    ),
    "no channel": (
        lambda f: first(f, "imagesTr").rename(f / "imagesTr" / "phantom.nii.gz"),
        "phantom does not end in the channel; .* phantom_0000.nii.gz",
    ),
    "other kind": (lambda f: edit(f, file_ending=".mha"), "'.mha'; allowed are .nii.gz and .nii"),
    "no labels file": (lambda f: first(f, "labelsTr").unlink(), "case phantom_000 has no labels"),
    "no image file": (lambda f: first(f, "imagesTr").unlink(), "case phantom_000 has no image"),
    "no test image": (lambda f: first(f, "imagesTs").unlink(), "labelsTs: case phantom_005 has no image"),
    "no folder": (lambda f: shutil.rmtree(f / "labelsTr"), "no folder labelsTr"),
    "count": (lambda f: edit(f, numTraining=7), "numTraining is 7, imagesTr holds 5 cases"),
    "grids": (shifted, "case phantom_000: image and labels lie on different grids"),
    "damaged": (lambda f: first(f, "imagesTr").write_bytes(b"none"), "case phantom_000: "),
    "unknown case in splits": (lambda f: edit(f, "splits.json", train=["nobody"]), "no labelled case is called nobody"),
    "case twice": (
        lambda f: edit(f, "splits.json", validation=["phantom_004"] * 2),
        "phantom_004 is in validation twice",
    ),
    "empty side": (
        lambda f: edit(f, "splits.json", train=[]),
        "splits.json names no case for train; each side needs one",
    ),
    "no test": (lambda f: edit(f, "splits.json", test=[]), "no case for test; each side needs one: write splits.json$"),
    "no test, none labelled": (
        lambda f: (shutil.rmtree(f / "labelsTs"), edit(f, "splits.json", test=[])),
        "write splits.json, or put labelled cases into imagesTs and labelsTs",
    ),
    "missing: no list": (
        lambda f: edit(f, missing_labels={"phantom_000": "Liver"}),
        "what is given for case phantom_000 is no list",
    ),
    "unknown side": (lambda f: edit(f, "splits.json", val=["phantom_004"]), "called train, validation and test"),
    "missing: case": (lambda f: edit(f, missing_labels={"nobody": ["Liver"]}), "no labelled case is called nobody"),
    "missing: label": (lambda f: edit(f, missing_labels={"phantom_000": ["Heart"]}), "Heart is no organ of labels"),
    "missing: background": (
        lambda f: edit(f, missing_labels={"phantom_000": ["background"]}),
        "background is no organ",
    ),
    "missing: no object": (lambda f: edit(f, missing_labels=["phantom_000"]), "missing_labels has to be an object"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_layout_is_named(fault: str, folder: Path) -> None:
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(DataError, match=message) as caught:
        Dataset.open(folder)
    assert str(folder) not in str(caught.value)


def test_values_that_are_no_label_are_named_when_voxels_are_read(folder: Path) -> None:
    with_value(folder, 5)
    dataset = Dataset.open(folder)
    with pytest.raises(DataError, match="case phantom_000: its labels hold the value 5, dataset.json has 0 to 4"):
        dataset.cases("train")[0].read()
    with pytest.raises(DataError, match="case phantom_000"):
        _ = dataset.fingerprint


def test_a_missing_organ_is_not_known_and_must_have_no_voxel(folder: Path) -> None:
    edit(folder, missing_labels={"phantom_001": ["Liver"]})
    case = Dataset.open(folder).cases("train")[1]
    assert case.known == (True, True, False, True, True)
    with pytest.raises(DataError, match="missing_labels of dataset.json names Liver, and the mask has voxels"):
        case.read()
    path = folder / "labelsTr" / "phantom_001.nii.gz"
    mask = read_labels(path)
    mask.array[mask.array == LABELS["Liver"]] = 0
    write_nifti(mask, path)
    case.read()


def test_a_case_on_two_sides_is_a_leak(folder: Path) -> None:
    edit(folder, "splits.json", validation=["phantom_000"])
    with pytest.raises(LeakError, match="case phantom_000 is in train and in validation"):
        Dataset.open(folder)


def test_a_case_in_both_image_folders_is_a_leak(folder: Path) -> None:
    for part, ending in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
        shutil.copy(folder / f"{part}Tr" / f"phantom_000{ending}", folder / f"{part}Ts" / f"phantom_000{ending}")
    with pytest.raises(LeakError, match="phantom_000 is in imagesTr and in imagesTs"):
        Dataset.open(folder)


def test_a_patient_on_two_sides_is_a_leak(folder: Path) -> None:
    edit(folder, patients={"phantom_000": "anna", "phantom_005": "anna"})
    with pytest.raises(LeakError, match=r"phantom_000 \(train\) and phantom_005 \(test\) are of one patient") as caught:
        Dataset.open(folder)
    assert "anna" not in str(caught.value)


@pytest.mark.parametrize("turned", [False, True])
def test_the_same_scan_on_two_sides_is_a_leak_in_any_orientation(turned: bool, folder: Path) -> None:
    for part, ending in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
        shutil.copy(folder / f"{part}Tr" / f"phantom_002{ending}", folder / f"{part}Ts" / f"phantom_005{ending}")
        if turned:
            swapped(folder, "phantom_005", part=f"{part}Ts")
    dataset = Dataset.open(folder)
    with pytest.raises(LeakError, match=r"phantom_002 \(train\) and phantom_005 \(test\) are the same scan"):
        _ = dataset.fingerprint


def test_the_fingerprint_names_content_not_files(scans: Path, folder: Path) -> None:
    one = Dataset.open(scans).fingerprint
    assert one["cases"] == {"train": 4, "validation": 1, "test": 1}
    for part in ("imagesTr", "labelsTr"):
        swapped(folder, "phantom_001", part=part)
    assert Dataset.open(folder).fingerprint["sha256"] == one["sha256"]
    with_value(folder, 1)
    assert Dataset.open(folder).fingerprint["sha256"] != one["sha256"]
    json.dumps(one)


def test_cases_that_the_split_leaves_out_are_counted(folder: Path) -> None:
    edit(folder, "splits.json", train=["phantom_000", "phantom_001"])
    assert Dataset.open(folder).fingerprint["unused"] == 2


def test_a_fold_of_nnunets_own_splits(folder: Path) -> None:
    (folder / "splits.json").unlink()
    folds = [
        {"train": ["phantom_000", "phantom_001"], "val": ["phantom_002"]},
        {"train": ["phantom_002"], "val": ["phantom_000"]},
    ]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    dataset = Dataset.open(folder, fold=1)
    assert [case.name for case in dataset.cases("train")] == ["phantom_002"]
    assert [case.name for case in dataset.cases("test")] == ["phantom_005"]
    with pytest.raises(DataError, match="splits_final.json has no fold 2"):
        Dataset.open(folder, fold=2)


def test_without_a_split_patients_are_dealt_once_and_for_all(folder: Path) -> None:
    (folder / "splits.json").unlink()
    one, again = Dataset.open(folder), Dataset.open(folder)
    assert one.sides == again.sides
    assert [case.name for case in one.cases("test")] == ["phantom_005"]  # labelled cases of imagesTs
    shutil.rmtree(folder / "labelsTs")
    alone = Dataset.open(folder)
    assert {side: len(cases) for side, cases in alone.sides.items()} == {"train": 3, "validation": 1, "test": 1}


def test_to_judge_a_model_every_case_counts_whatever_the_split(folder: Path) -> None:
    (folder / "splits.json").write_text(json.dumps({"train": ["phantom_000"]}))
    record = json.loads((folder / "dataset.json").read_text())
    others = {**record["labels"], "a name that DICOM cannot hold \\ " * 9: len(record["labels"])}
    edit(folder, "dataset.json", labels=others)
    data = samples(debug(), str(folder))
    assert len(data.samples("all")) == len(list((folder / "imagesTr").iterdir())) + 1
    assert data.fingerprint["cases"] == {"train": 0, "validation": 0, "test": len(data.samples("all"))}


def test_another_side_is_refused(folder: Path) -> None:
    dataset = Dataset.open(folder)
    with pytest.raises(DataError, match="no split 'all'; there are train, validation, test"):
        dataset.cases("all")


@given(
    st.dictionaries(st.text(min_size=1, max_size=6), st.integers(0, 30), min_size=40, max_size=80), st.integers(0, 9)
)
def test_drawn_sides_share_no_patient_and_lose_no_case(patients: dict[str, int], seed: int) -> None:
    owner = {name: str(patient) for name, patient in patients.items()}
    if len(set(owner.values())) < 3:
        return
    sides = _drawn_split(patients, {}, owner, seed)
    assert sorted(name for names in sides.values() for name in names) == sorted(patients)
    groups = [{owner[name] for name in names} for names in sides.values()]
    assert all(groups)
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_the_openkbp_data_set_opens() -> None:
    root = os.environ.get("VERTICALS_DATA")
    if not root or not (Path(root) / "ct" / "Dataset001_OpenKBP").is_dir():
        pytest.skip("VERTICALS_DATA does not name the evaluation data")
    dataset = Dataset.open(Path(root) / "ct" / "Dataset001_OpenKBP")
    assert {side: len(cases) for side, cases in dataset.sides.items()} == {"train": 99, "validation": 16, "test": 25}
    scan, mask = dataset.cases("test")[0].read()
    right, left = (mask.centroid_mm(dataset.labels[name]) for name in ("RightParotid", "LeftParotid"))
    assert right[0] > left[0]
    assert scan.array[mask.array == dataset.labels["Mandible"]].mean() > 300
