"""Time order, unique keys and cleanliness of what is sorted outside of memory."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import ordered
from core.data.cells import Column
from core.data.ordered import Ordered
from core.data.schema import Schema
from core.errors import CapacityError, ConfigError, DataError

SCHEMA = Schema(
    (Column("key", "string", private=True), Column("time", "time"), Column("amount", "float", gaps=True)),
    time="time",
    key="key",
)
Row = tuple[str, int, float]


def write(path: Path, rows: Sequence[Row]) -> Path:
    keys, times, amounts = zip(*rows, strict=True)
    time = pa.array(times, pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"key": pa.array(keys), "time": time, "amount": pa.array(amounts, pa.float64())}), path)
    return path


def read(table: Ordered) -> list[Row]:
    chunks = [chunk.to_pydict() for chunk in table.chunks(1000)]
    return [row for chunk in chunks for row in zip(chunk["key"], chunk["time"], chunk["amount"], strict=True)]


def test_sorted_sources_are_given_as_they_are(tmp_path: Path) -> None:
    rows = [(f"k{k}", k // 3, float(k)) for k in range(5000)]
    parts = [write(tmp_path / f"{part}.parquet", rows[part * 2500 :][:2500]) for part in range(2)]
    with Ordered(parts, SCHEMA) as table:
        assert table.sorted
        assert (table.rows, table.repeats) == (5000, 0)
        assert read(table) == rows
        assert read(table) == rows  # as often as wanted
        assert max(len(chunk) for chunk in table.chunks(1000)) <= 1000


@pytest.mark.parametrize("sortable", [10, 1000, 10**9])
def test_rows_of_equal_time_keep_the_order_of_the_sources(tmp_path: Path, sortable: int) -> None:
    rng = np.random.default_rng(0)
    times = np.concatenate([rng.integers(0, 10**12, 3000), np.full(2000, 5 * 10**11), rng.integers(0, 30, 3000)])
    rng.shuffle(times)
    rows = [(f"k{k}", int(time), float(k)) for k, time in enumerate(times)]
    parts = [write(tmp_path / "a.parquet", rows[:5000]), write(tmp_path / "b.parquet", rows[5000:])]
    with Ordered(parts, SCHEMA) as table:
        assert not table.sorted
        table._sortable = sortable
        assert read(table) == sorted(rows, key=lambda row: row[1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(10**15), 10**15) | st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 20))
def test_ranges_cover_every_row_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, times: list[int], sortable: int
) -> None:
    rows = [(f"k{k}", time, 1.0) for k, time in enumerate(times)]
    with Ordered(write(tmp_path_factory.mktemp("rows") / "a.parquet", rows), SCHEMA) as table:
        table._sortable, table.sorted = sortable, False
        ranges = list(table._ranges('"time"', min(times), max(times) + 1))
        assert [a for a, _ in ranges[1:]] >= [b for _, b in ranges[:-1]]
        for start, stop in ranges:
            assert stop - start == 1 or sum(start <= time < stop for time in times) <= sortable
        assert read(table) == sorted(rows, key=lambda row: row[1])


def test_exact_repeats_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [("a", 3, 1.0), ("b", 1, float("nan")), ("a", 3, 1.0), ("c", 2, 2.0)]
    first, second = write(tmp_path / "a.parquet", rows), write(tmp_path / "b.parquet", [rows[1], ("d", 9, 1.0)])
    with Ordered([first, second], SCHEMA) as table:
        assert (table.rows, table.repeats) == (4, 2)
        assert [row[0] for row in read(table)] == ["b", "c", "a", "d"]
        assert table.fingerprint()["repeats"] == 2
    sources = [write(tmp_path / "s.parquet", [("a", 1, 1.0), ("a", 1, 1.0), ("b", 2, 1.0)])]
    with Ordered(sources, SCHEMA) as table:
        assert table.sorted
        assert [row[0] for row in read(table)] == ["a", "b"]


def test_a_key_with_other_content_names_both_rows_and_no_key(tmp_path: Path) -> None:
    rows = [(f"secret-{k}", k, 1.0) for k in range(100)]
    first = write(tmp_path / "a.parquet", [*rows, ("secret-41", 41, 2.0), ("secret-7", 7, 2.0)])
    with pytest.raises(DataError) as caught:
        Ordered(first, SCHEMA)
    assert str(caught.value).startswith(
        f"{first}: row 101: column key: the same key as {first}: row 42 with different content"
    )
    assert "secret" not in str(caught.value)
    clean, second = (
        write(tmp_path / "c.parquet", rows),
        write(tmp_path / "b.parquet", [("new", 500, 1.0), ("secret-9", 9, 3.0)]),
    )
    with pytest.raises(DataError, match=f"{second}: row 2: .* as {clean}: row 10 with"):
        Ordered([clean, second], SCHEMA)


def test_a_table_without_time_keeps_its_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [("b", 5, 1.0), ("a", 1, 2.0)])
    with Ordered(path, Schema(SCHEMA.columns)) as table:
        assert [row[0] for row in read(table)] == ["b", "a"]
        assert table.fingerprint()["span"] is None


@pytest.mark.parametrize("how", ["close", "forget", "fault", "conflict"])
def test_nothing_is_left_behind(tmp_path: Path, how: str) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    rng = np.random.default_rng(0)
    rows = [(f"{k:040d}", int(time), 1.0) for k, time in enumerate(rng.integers(0, 10**12, 1_000_000))]
    if how == "fault":
        rows[-1] = ("", 0, 1.0)
    if how == "conflict":
        rows[-1] = (rows[0][0], 0, 9.0)
    path = write(tmp_path / "a.parquet", rows)
    if how in ("fault", "conflict"):
        with pytest.raises(DataError, match="row 1000000: column key"):
            Ordered(path, SCHEMA, memory_mb=64, folder=temporary)
    else:
        table = Ordered(path, SCHEMA, memory_mb=64, folder=temporary)
        (folder,) = temporary.iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        assert sum(file.stat().st_size for file in folder.iterdir()) > 0, (
            "the table must not fit into the memory allowed"
        )
        next(table.chunks())
        if how == "close":
            table.close()
        del table
        gc.collect()
    assert list(temporary.iterdir()) == []


def test_progress_and_sources_are_told(tmp_path: Path) -> None:
    seen: list[int] = []
    rows = [(f"k{k}", k, 1.0) for k in range(100_000)]
    with Ordered(write(tmp_path / "a.parquet", rows), SCHEMA, progress=seen.append) as table:
        assert seen == sorted(seen)
        assert seen[-1] == table.rows == 100_000
        record = table.fingerprint()
    assert record["sources"] == [str(tmp_path / "a.parquet")]
    assert record["span"] == ["1970-01-01T00:00:00.000000Z", "1970-01-01T00:00:00.099999Z"]


def test_no_room_is_a_capacity_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Ordered, chunks: list[pa.Table]) -> None:
        raise duckdb.OutOfMemoryException("failed to offload data block")

    monkeypatch.setattr(ordered.Ordered, "_insert", full)
    with pytest.raises(CapacityError, match="free the disk, name another folder, or raise memory_mb"):
        Ordered(write(tmp_path / "a.parquet", [("a", 1, 1.0)]), SCHEMA)


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no source given"):
        Ordered([], SCHEMA)
    with pytest.raises(ConfigError, match="memory_mb 8; allowed is at least 64"):
        Ordered(tmp_path / "a.parquet", SCHEMA, memory_mb=8)
