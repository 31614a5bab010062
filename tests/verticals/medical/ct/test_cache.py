from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from core.errors import DataError, Unavailable
from verticals.medical.ct import cache as module
from verticals.medical.ct.cache import CaseCache, PreparedCase
from verticals.medical.ct.dataset import Case, Dataset
from verticals.medical.ct.plan import Plan
from verticals.medical.ct.synthetic import LABELS
from verticals.medical.nifti import write_nifti
from verticals.medical.volume import to_ras

PLAN = Plan(
    spacing_mm=(6.0, 7.0, 8.0),
    patch_size=(16, 16, 16),
    strides=((1, 1, 1), (2, 2, 2)),
    widths=(4, 8),
    batch_size=2,
    hu_low=-100,
    hu_high=300,
    hu_mean=50,
    hu_std=80,
    labels=LABELS,
)


@pytest.fixture
def case(scans: Path) -> Case:
    return Dataset.open(scans).cases("train")[0]


def contents(case: PreparedCase) -> list[np.ndarray]:
    return [np.array(array) for array in (case.image, case.labels, *case.places)]


def same(one: PreparedCase, other: PreparedCase) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(contents(one), contents(other), strict=True))


def test_organs_keep_place_size_and_hounsfield_units(case: Case, tmp_path: Path) -> None:
    prepared = CaseCache(tmp_path).case(case, PLAN)
    scan, mask = case.read()
    grid = scan.turned(to_ras(scan.grid)).grid.at(PLAN.spacing_mm)
    assert prepared.shape == grid.shape
    assert prepared.image.dtype == np.int16
    assert prepared.labels.dtype == np.uint8
    assert isinstance(prepared.image, np.memmap)
    for number in (1, 2, 3):
        found = np.argwhere(prepared.labels == number)
        assert np.abs(grid.world(found.mean(0)) - mask.centroid_mm(number)).max() < 3  # less than half a voxel
        stored = (mask.array == number).sum() * mask.grid.voxel_ml
        assert len(found) * grid.voxel_ml == pytest.approx(stored, rel=0.25)
    liver = prepared.image[prepared.labels == LABELS["Liver"]]
    assert liver.mean() == pytest.approx(scan.array[mask.array == LABELS["Liver"]].mean(), abs=15)


def test_axes_run_to_the_right_the_front_and_the_head(case: Case, tmp_path: Path) -> None:
    prepared = CaseCache(tmp_path).case(case, PLAN)
    middle = {name: np.argwhere(prepared.labels == number).mean(0) for name, number in LABELS.items() if number}
    assert middle["RightKidney"][0] > middle["Spine"][0] > middle["LeftKidney"][0]
    assert middle["Liver"][1] > middle["Spine"][1]
    assert middle["Liver"][2] > middle["RightKidney"][2]


def test_a_case_at_the_plans_spacing_is_only_turned(case: Case, tmp_path: Path) -> None:
    scan, mask = case.read()
    axes = to_ras(scan.grid)
    spacing = scan.grid.turned(axes).spacing_mm
    plan = PLAN.model_copy(update={"spacing_mm": tuple(float(mm) for mm in spacing)})
    prepared = CaseCache(tmp_path).case(case, plan)
    np.testing.assert_array_equal(prepared.image, axes(scan.array))
    np.testing.assert_array_equal(prepared.labels, axes(mask.array))


def test_places_have_their_class_and_are_bounded(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PLACES", 20)
    prepared = CaseCache(tmp_path).case(case, PLAN)
    assert len(prepared.places) == len(LABELS)
    assert not len(prepared.places[0])
    for number, places in enumerate(prepared.places):
        assert len(places) == min(20, int((prepared.labels == number).sum())) or number == 0
        assert (prepared.labels[tuple(places.T)] == number).all()
        assert len(np.unique(places, axis=0)) == len(places)


def test_an_entry_is_made_once(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = CaseCache(tmp_path).case(case, PLAN)

    def refuse(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(module, "_resampled", refuse)
    other_patch = PLAN.model_copy(update={"patch_size": (32, 32, 32), "hu_mean": 0.0})
    assert same(CaseCache(tmp_path).case(case, other_patch), first)
    with pytest.raises(AssertionError, match="made again"):
        CaseCache(tmp_path).case(case, PLAN.model_copy(update={"spacing_mm": (6.0, 7.0, 9.0)}))
    assert len(list(tmp_path.iterdir())) == 1  # what failed left nothing


def test_other_voxels_are_another_entry(case: Case, tmp_path: Path) -> None:
    cache = CaseCache(tmp_path / "cache")
    cache.case(case, PLAN)
    scan, mask = case.read()
    paths = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    mask.array[...] = 0
    write_nifti(scan, paths[0])
    write_nifti(mask, paths[1])
    assert not cache.case(Case("new", *paths, case.names), PLAN).labels.any()
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "header", "no entry", "no image", "entry is no JSON", "empty"])
def test_a_damaged_entry_is_made_again(damage: str, case: Case, tmp_path: Path) -> None:
    cache = CaseCache(tmp_path)
    whole = cache.case(case, PLAN)
    kept = contents(whole)
    entry = next(tmp_path.iterdir())
    image, record = entry / "image.npy", entry / "entry.json"
    data = bytearray(image.read_bytes())
    if damage == "cut":
        image.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        image.write_bytes(data)
    elif damage == "header":
        image.write_bytes(b"\0" * 64 + data[64:])
    elif damage == "no entry":
        record.unlink()
    elif damage == "no image":
        image.unlink()
    elif damage == "entry is no JSON":
        record.write_text("{")
    else:
        image.write_bytes(b"")
    again = CaseCache(tmp_path).case(case, PLAN)
    assert all(np.array_equal(a, b) for a, b in zip(contents(again), kept, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]


def test_all_cases_come_in_order_and_no_name_is_written(scans: Path, tmp_path: Path) -> None:
    cases = Dataset.open(scans).cases("train")
    prepared = CaseCache(tmp_path).prepared(cases, PLAN)
    assert [case.name for case in prepared] == [case.name for case in cases]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 4 * len(cases)
    assert not any(b"phantom" in path.read_bytes() or "phantom" in str(path.relative_to(tmp_path)) for path in written)


def test_a_damaged_source_is_refused_and_leaves_nothing(case: Case, tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"none")
    bad = Case("bad", tmp_path / "bad.nii.gz", case.labels_path, case.names)
    with pytest.raises(DataError, match="case bad: "):
        CaseCache(tmp_path / "cache").case(bad, PLAN)
    assert not list((tmp_path / "cache").iterdir())
    gone = Case("gone", tmp_path / "gone.nii.gz", case.labels_path, case.names)
    with pytest.raises(DataError, match="case gone: a file cannot be read") as caught:
        CaseCache(tmp_path / "cache").case(gone, PLAN)
    assert str(tmp_path) not in str(caught.value)


def test_a_temporary_folder_goes_with_its_owner(case: Case) -> None:
    with CaseCache() as cache:
        folder = cache.folder
        prepared = cache.case(case, PLAN)
        assert folder.is_dir()
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    assert prepared.image.min() < -900  # what is mapped stays readable


def test_a_temporary_folder_goes_after_an_exception(case: Case, tmp_path: Path) -> None:
    code = (
        "from verticals.medical.ct.cache import CaseCache\n"
        "cache = CaseCache()\n"
        "(cache.folder / 'held').write_text('voxels')\n"
        "raise RuntimeError('on purpose')\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "on purpose" in ended.stderr
    assert not list(tmp_path.glob("prepared-*"))


def test_a_folder_that_cannot_be_written_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cache folder cannot be written .*; free space or name another") as caught:
        CaseCache(tmp_path / "file")
    assert str(tmp_path) not in str(caught.value)


def test_a_full_disk_is_unavailable(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(Unavailable, match="No space left on device"):
        CaseCache(tmp_path).case(case, PLAN)
    assert not list(tmp_path.iterdir())


def test_several_may_make_the_same_entry_at_once(case: Case, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: CaseCache(tmp_path).case(case, PLAN), range(8)))
    assert all(same(found[0], other) for other in found[1:])
    assert len(list(tmp_path.iterdir())) == 1
