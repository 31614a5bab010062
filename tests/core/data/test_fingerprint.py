"""The hash depends on the content only: not on chunks, files or where the buffers start."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.cells import Column
from core.data.fingerprint import Fingerprint
from core.data.ordered import Ordered
from core.data.schema import Schema

Rows = list[tuple[str, int, float]]


def table_of(rows: Rows) -> pa.Table:
    names, times, values = ([row[k] for row in rows] for k in range(3))
    return pa.table(
        {
            "name": pa.array(names, pa.string()),
            "time": pa.array(times, pa.int64()),
            "value": pa.array(values, pa.float64()),
        }
    )


def record_of(table: pa.Table, cuts: list[int] | None = None) -> dict[str, Any]:
    fingerprint = Fingerprint(["a.csv"], time="time")
    places = [0, *sorted(min(cut, len(table)) for cut in cuts or []), len(table)]
    for start, stop in itertools.pairwise(places):
        fingerprint.update(table.slice(start, stop - start))
    return fingerprint.record()


rows_strategy = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8")), st.integers(-(2**62), 2**62), st.floats(allow_nan=False)),
    min_size=1,
    max_size=30,
)


@settings(deadline=None)
@given(rows_strategy, st.lists(st.integers(0, 30), max_size=4))
def test_chunks_do_not_matter(rows: Rows, cuts: list[int]) -> None:
    assert record_of(table_of(rows)) == record_of(table_of(rows), cuts)


@settings(deadline=None)
@given(rows_strategy, rows_strategy)
def test_content_and_order_matter(rows: Rows, others: Rows) -> None:
    same = [tuple(map(repr, row)) for row in rows] == [tuple(map(repr, row)) for row in others]
    assert (record_of(table_of(rows))["sha256"] == record_of(table_of(others))["sha256"]) == same


def test_text_is_not_glued_together() -> None:
    assert (
        record_of(table_of([("ab", 1, 1.0), ("c", 2, 1.0)]))["sha256"]
        != record_of(table_of([("a", 1, 1.0), ("bc", 2, 1.0)]))["sha256"]
    )


def test_names_and_types_matter() -> None:
    table = table_of([("a", 1, 1.0)])
    other = table.rename_columns(["name", "time", "worth"])
    assert record_of(table)["sha256"] != record_of(other)["sha256"]
    assert record_of(table)["sha256"] != record_of(table.set_column(2, "value", pa.array([1], pa.int64())))["sha256"]


def test_the_record_is_json() -> None:
    record = record_of(table_of([("a", 1_522_540_831_000_000, 1.0), ("b", 1_522_540_830_000_000, 1.0)]))
    assert json.loads(json.dumps(record)) == record
    assert record["rows"] == 2
    assert record["columns"] == ["name", "time", "value"]
    assert record["span"] == ["2018-04-01T00:00:30.000000Z", "2018-04-01T00:00:31.000000Z"]


def test_the_kind_of_file_does_not_matter(tmp_path: Path) -> None:
    table = table_of([("a", 1_522_540_831_000_000, 0.1), ("ü", 1_522_540_832_000_000, 1e-300)])
    table = table.set_column(1, "time", table.column("time").cast(pa.timestamp("us")))
    pq.write_table(table, tmp_path / "a.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "a.csv")
    schema = Schema((Column("name", "string"), Column("time", "time"), Column("value", "float")), time="time")
    hashes = set()
    for name in ("a.parquet", "a.csv"):
        with Ordered(tmp_path / name, schema) as rows:
            hashes.add(rows.fingerprint()["sha256"])
    assert len(hashes) == 1


def test_other_columns_and_empty_cells_are_refused() -> None:
    fingerprint = Fingerprint(["a.csv"])
    fingerprint.update(table_of([("a", 1, 1.0)]))
    with pytest.raises(ValueError, match="all chunks must have the same"):
        fingerprint.update(pa.table({"name": ["a"]}))
    with pytest.raises(ValueError, match="empty cells"):
        Fingerprint([]).update(pa.table({"a": pa.array([None], pa.int64())}))
