from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from core.errors import DataError
from verticals.medical.ct.synthetic import LABELS, SyntheticConfig, phantom, write_dataset
from verticals.medical.nifti import read_labels, read_nifti
from verticals.medical.volume import to_ras

CONFIG = SyntheticConfig(shape=(40, 40, 44))


@pytest.mark.parametrize("seed", range(8))
def test_every_organ_lies_where_it_belongs(seed: int) -> None:
    scan, mask = phantom(CONFIG, seed)
    assert scan.array.dtype == np.int16
    assert mask.array.dtype == np.uint8
    assert scan.grid.same_as(mask.grid)
    assert set(np.unique(mask.array)) == set(LABELS.values())
    place = {name: mask.centroid_mm(number) for name, number in LABELS.items()}
    # RAS+: x grows to the patient's right, y to the front, z to the head
    assert place["RightKidney"][0] > place["Spine"][0] > place["LeftKidney"][0]
    assert place["Liver"][0] > place["Spine"][0]
    assert place["Liver"][1] > place["Spine"][1]
    assert place["Liver"][2] > place["RightKidney"][2]


def test_hounsfield_units_tell_tissues_apart_but_not_the_two_kidneys() -> None:
    scan, mask = phantom(CONFIG, 1)
    hu = {name: scan.array[mask.array == number].mean() for name, number in LABELS.items()}
    assert ((scan.array > -900) & (scan.array < -700)).mean() > 0.02  # lungs, in nobody's mask
    assert hu["Spine"] == pytest.approx(400, abs=40)
    assert hu["Liver"] == pytest.approx(110, abs=15)
    assert hu["RightKidney"] == pytest.approx(hu["LeftKidney"], abs=25)
    assert scan.array[mask.array == 0].min() == -1024


def test_orientations_and_spacings_vary() -> None:
    grids = [phantom(CONFIG, seed)[0].grid for seed in range(10)]
    assert len({to_ras(grid) for grid in grids}) >= 6
    assert len({tuple(grid.spacing_mm.round(3)) for grid in grids}) == 10
    assert all(grid.spacing_mm.min() >= 3 and grid.spacing_mm.max() <= 5 for grid in grids)


def test_a_seed_makes_the_same_scan_again() -> None:
    one, other, third = phantom(CONFIG, 5)[0], phantom(CONFIG, 5)[0], phantom(CONFIG, 6)[0]
    np.testing.assert_array_equal(one.array, other.array)
    assert one.array.shape != third.array.shape or (one.array != third.array).any()


def test_the_folder_is_laid_out_as_nnunet_wants_it(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    config = SyntheticConfig(num_cases=5, shape=(20, 20, 20))
    said = write_dataset(config, folder)
    assert said["cases"] == {"train": 3, "validation": 1, "test": 1}
    splits = json.loads((folder / "splits.json").read_text())
    record = json.loads((folder / "dataset.json").read_text())
    assert record["numTraining"] == len(list((folder / "imagesTr").iterdir())) == 4
    name = splits["test"][0]
    scan, mask = phantom(config, 4)
    np.testing.assert_array_equal(read_nifti(folder / "imagesTs" / f"{name}_0000.nii.gz").array, scan.array)
    read = read_labels(folder / "labelsTs" / f"{name}.nii.gz")
    np.testing.assert_array_equal(read.array, mask.array)
    assert read.grid.same_as(mask.grid)


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(DataError, match="not empty; name a new one"):
        write_dataset(CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("setting", [{"shape": (8, 64, 64)}, {"spacing_mm": (5.0, 3.0)}, {"spacing_mm": (0.0, 3.0)}])
def test_settings_without_a_body_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(DataError, match="16 voxels or more along each axis, and a range of spacings"):
        phantom(SyntheticConfig(**setting), 0)  # type: ignore[arg-type]
