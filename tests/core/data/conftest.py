"""A CSV file by its lines, and a table of several chunks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.core.data.tables import HEADER


@pytest.fixture
def csv_file(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str, header: str = HEADER, name: str = "rows.csv") -> Path:
        path = tmp_path / name
        path.write_bytes("\n".join((header, *lines, "")).encode())
        return path

    return write


@pytest.fixture(scope="session")
def big() -> pa.Table:
    """More rows than a chunk of these tests holds."""
    rng = np.random.default_rng(0)
    n = 6000
    return pa.table(
        {
            "id": np.arange(n),
            "at": pa.array(np.sort(rng.integers(0, 10**12, n)) + 1_500_000_000_000_000).cast(pa.timestamp("us")),
            "card": pa.array([f"Kärtchen {k}" for k in rng.integers(0, 5000, n)]),
            "amount": rng.lognormal(3, 2, n),
            "fraud": pa.array(rng.integers(0, 2, n), mask=rng.random(n) < 0.1),
        }
    )
