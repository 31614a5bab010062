"""A series that the tests of this folder read and spoil."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.verticals.medical.phantoms import SECRET, noise, placed
from verticals.medical.dicom.write import write_series


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A series of six slices."""
    write_series(noise(placed((7, 5, 6))), tmp_path / "series", patient_name=SECRET)
    return tmp_path / "series"
