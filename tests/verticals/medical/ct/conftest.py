"""A small data set with a known answer, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from verticals.medical.ct.synthetic import SyntheticConfig, write_dataset

SMALL = SyntheticConfig(num_cases=6, shape=(32, 30, 34), spacing_mm=(6.0, 9.0), seed=3)


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in nnU-Net's layout: four cases for training, one for validation, one for testing. Not to be changed."""
    folder = tmp_path_factory.mktemp("scans") / "Dataset900_Phantom"
    write_dataset(SMALL, folder)
    return folder
