"""Every kind of file and real databases give the same rows, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import readers
from core.data.schema import Schema
from core.data.sources import Source, infer, read, read_table
from core.errors import ConfigError, DataError
from tests.core.data.tables import BIG, GOOD, HEADER, NEXT, SCHEMA, fault, fill, microseconds, rows, rows_of, write_as


def test_csv_becomes_canonical_columns(csv_file: Callable[..., Path]) -> None:
    table = rows(csv_file(GOOD, NEXT, "3,2018-04-01T02:02:11.5+02:00,7,0,"))
    assert table.to_pydict() == {
        "id": ["1", "2", "3"],
        "time": [microseconds(t) for t in ("2018-04-01T00:00:31", "2018-04-01T00:02:10", "2018-04-01T00:02:11.5")],
        "card": ["4111111111111111", "card-2", "7"],
        "amount": [57.16, 81.51, 0.0],
        "fraud": [0, 1, -1],
    }
    assert [field.type for field in table.schema] == [pa.string(), pa.int64(), pa.string(), pa.float64(), pa.int8()]


def test_an_absent_optional_column_is_not_known(csv_file: Callable[..., Path]) -> None:
    assert rows(csv_file("1,2018-04-01,a,5", header="ID,AT,CARD,AMOUNT")).column("fraud").to_pylist() == [-1]


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.json", "rows.ndjson.gz", "rows.parquet", "rows.PQ"])
def test_every_kind_of_file_gives_the_same_rows(
    tmp_path: Path, name: str, big: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1 << 16)
    path = tmp_path / name
    write_as(big, path)
    assert rows(path, BIG).equals(rows_of(big))


def test_sqlite_gives_the_same_rows(tmp_path: Path, big: pa.Table) -> None:
    url = f"sqlite:///{tmp_path / 'bank.db'}"
    fill(url, big)
    assert rows(f"{url}::rows", BIG).equals(rows_of(big))
    assert rows(f"{url}::SELECT * FROM rows ORDER BY id", BIG).equals(rows_of(big))


def test_postgresql_gives_the_same_rows(postgres: str, big: pa.Table) -> None:
    fill(postgres, big)
    query = "WITH r AS (SELECT *, id::text AS t FROM rows) SELECT id, at, card, amount, fraud FROM r ORDER BY id"
    assert rows(f"{postgres}::{query}", BIG).equals(rows_of(big))
    for source in (f"{postgres}::rows", Source(postgres, table="public.rows")):  # a table has no order of its own
        assert rows(source, BIG).sort_by("time").equals(rows_of(big).sort_by("time"))


def test_postgresql_is_only_read(postgres: str, big: pa.Table) -> None:
    fill(postgres, big)
    engine = sqlalchemy.create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE SEQUENCE counter"))
    engine.dispose()
    assert "syntax error" in fault(Source(postgres, query="DELETE FROM rows RETURNING *"), BIG)
    assert "read-only transaction" in fault(f"{postgres}::SELECT nextval('counter') AS id, * FROM rows", BIG)
    assert len(rows(f"{postgres}::rows", BIG)) == len(big)


def test_postgresql_types_of_its_own(postgres: str) -> None:
    select = (
        'SELECT 12345678901234567890::numeric AS "ID", TIMESTAMPTZ \'2018-04-01 02:00:31+02\' AS "AT", '
        '\'c\' AS "CARD", 57.16::numeric(12, 2) AS "AMOUNT", true AS "FRAUD"'
    )
    assert rows(f"{postgres}::{select}").to_pylist() == [
        {
            "id": "12345678901234567890",
            "time": microseconds("2018-04-01T00:00:31"),
            "card": "c",
            "amount": 57.16,
            "fraud": 1,
        }
    ]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_parquet_timestamps_of_any_unit_and_zone(tmp_path: Path, unit: str, zone: str | None) -> None:
    instant = microseconds("2018-04-01T00:00:31")
    times = pa.array([instant]).cast(pa.timestamp("us", zone)).cast(pa.timestamp(unit, zone))
    table = pa.table(
        {
            "ID": pa.array([1], pa.int32()),
            "AT": times,
            "CARD": pa.array(["a"]).dictionary_encode(),
            "AMOUNT": pa.array([5], pa.int16()),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    assert rows(tmp_path / "t.parquet").to_pylist() == [
        {"id": "1", "time": instant, "card": "a", "amount": 5.0, "fraud": -1}
    ]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2018-04-01", "2018-04-01T00:00:00"),
        ("2018-04-01 10:11", "2018-04-01T10:11:00"),
        (" 2018-04-01 00:00:31.123456789 ", "2018-04-01T00:00:31.123456"),
        ("2018-04-01T00:00:31.5-03:30", "2018-04-01T03:30:31.5"),
        ("2018-04-01 02:00:31+02", "2018-04-01T00:00:31"),
    ],
)
def test_times_of_iso_8601(csv_file: Callable[..., Path], text: str, same: str) -> None:
    assert rows(csv_file(f"1,{text},a,5,0")).column("time").to_pylist() == [microseconds(same)]


def test_quotes_blank_lines_and_a_byte_order_mark(csv_file: Callable[..., Path]) -> None:
    path = csv_file('1,2018-04-01,"a, ""b""\nc",5,0', "", NEXT, header="\ufeff" + HEADER)
    assert rows(path).column("card").to_pylist() == ['a, "b"\nc', "card-2"]
    path.write_text(path.read_text() + "3,2018-04-02,a,-1,0\n")
    assert "row 3 (line 6): column AMOUNT" in fault(path)


def test_a_quoted_value_across_blocks(csv_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 64)
    lines = [f'{k},2018-04-01,"card\n{k}",{k},0' if k % 3 else f"{k},2018-04-01,plain,{k},0" for k in range(1, 40)]
    path = csv_file(*lines)
    table = rows(path)
    assert table.column("id").to_pylist() == [str(k) for k in range(1, 40)]
    assert table.column("card").to_pylist() == [f"card\n{k}" if k % 3 else "plain" for k in range(1, 40)]
    path.write_text(path.read_text() + "40,2018-04-01,plain,nan,0\n")
    assert (
        f"row 40 (line {1 + sum(line.count(chr(10)) + 1 for line in lines) + 1}): column AMOUNT: 'nan' is not finite"
        in fault(path)
    )


def test_semicolons_and_decimal_commas(csv_file: Callable[..., Path]) -> None:
    path = csv_file("1;2018-04-01;a;1234,5;0", header=HEADER.replace(",", ";"))
    assert "delimiter=';'" in fault(path)
    assert rows(Source(str(path), delimiter=";", decimal=",")).column("amount").to_pylist() == [1234.5]
    wrong = fault(Source(str(path), delimiter=";"))
    assert "decimal point" in wrong
    assert wrong.endswith("pass Source(..., decimal=',')")
    thousands = csv_file("1;2018-04-01;a;1.234,5;0", header=HEADER.replace(",", ";"))
    assert "'1.234,5' is not a number with a decimal comma" in fault(Source(str(thousands), delimiter=";", decimal=","))


def test_typed_numbers_have_no_decimal_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"ID": "1", "AT": "2018-04-01", "CARD": "a", "FRAUD": 1.0}
    path.write_text(
        "".join(json.dumps({**row, "ID": str(k), "AMOUNT": a}) + "\n" for k, a in enumerate((2.5, "2,5", 3)))
    )
    assert rows(Source(str(path), decimal=",")).column("amount").to_pylist() == [2.5, 2.5, 3.0]


def test_columns_are_mapped(csv_file: Callable[..., Path]) -> None:
    path = csv_file("1,2018-04-01,a,5,0", header="ID,AT,KARTE,BETRAG,FRAUD")
    text = fault(path, Schema(tuple(c for c in SCHEMA.columns if c.name != "card"), ignore=("KARTE",)))
    assert "lacks column AMOUNT (amount); found ID, AT, KARTE, BETRAG, FRAUD" in text
    assert "columns={'amount': 'BETRAG'}" in text
    alone = csv_file("1,2018-04-01,a,5,0", header="ID,AT,CARD,AMOUNTS,FRAUD", name="alone.csv")
    text = fault(alone, Schema(SCHEMA.columns, ignore=("AMOUNTS",)))
    assert "columns={'amount': 'NAME_IN_FILE'}" in text  # what is left out is never offered
    mapped = SCHEMA.mapped({"card": "KARTE", "amount": "BETRAG"})
    assert rows(path, mapped).column("amount").to_pylist() == [5.0]
    with pytest.raises(ConfigError, match="names \\['betrag'\\]; the logical columns are"):
        SCHEMA.mapped({"betrag": "BETRAG"})


def test_short_forms_of_a_database() -> None:
    assert Source.of("postgresql+psycopg://u:p@[::1]:5432/bank::s.t") == Source(
        "postgresql+psycopg://u:p@[::1]:5432/bank", table="s.t"
    )
    assert Source.of("sqlite:///b.db::SELECT a::text FROM t") == Source("sqlite:///b.db", query="SELECT a::text FROM t")
    assert Source.of("sqlite:///b.db::with r as (select 1) select * from r").query is not None
    assert (
        Source.of("postgresql+psycopg://user:word@host:5432/bank?sslpassword=x::t").name
        == "postgresql+psycopg://host:5432/bank::t"
    )


def test_database_errors_hide_the_password(postgres: str, tmp_path: Path) -> None:
    assert "s3cret-word" in postgres
    wrong = postgres.replace("s3cret-word", "wr0ng-word")
    port = sqlalchemy.make_url(postgres).port
    for source, message in (
        (f"{postgres}::absent", 'relation "absent" does not exist'),
        (f"{postgres}::SELECT * FROM", "syntax error"),
        (f'{postgres}::SELECT 1/0 AS "ID", \'x\' AS "AT", \'x\' AS "CARD", 5 AS "AMOUNT"', "division by zero"),
        (f"{wrong}::rows", "password authentication failed"),
        (f"{postgres.replace(str(port), '1')}::rows", "refused"),
        (f"{postgres}?connect_timeout=s3cret-word::rows", "***"),
        ("nodialect://bank:s3cret-word@host/db::rows", "install the driver"),
        (f"sqlite:///{tmp_path}/absent/bank.db::rows", "unable to open"),
    ):
        with pytest.raises(DataError) as caught:
            list(read(source, SCHEMA))
        assert message in str(caught.value), source
        assert "word" not in str(caught.value).replace("password", "")
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_kinds_are_inferred_and_held(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("age,city,when,bought\n30,Ulm,2018-04-01,1\n40.5,,2018-04-02,0\n")
    assert {column.name: column.kind for column in infer(path).columns} == {
        "age": "float",
        "city": "string",
        "when": "string",
        "bought": "float",
    }
    table = read_table([path], time="when")
    assert table["age"].tolist() == [30.0, 40.5]
    assert table["city"].tolist() == ["Ulm", ""]
    assert table["when"].tolist() == [microseconds("2018-04-01"), microseconds("2018-04-02")]
    other = tmp_path / "b.jsonl"
    other.write_text('{"age": "old", "city": "Ulm", "when": "2018-04-01", "bought": 1}\n')
    with pytest.raises(DataError, match=r"b.jsonl: row 1 \(line 1\): column age: 'old' is not a number"):
        read_table([path, other], time="when")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e12),
            st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1).filter(
                lambda text: text.strip()
            ),
            st.datetimes(datetime(1970, 1, 2), datetime(2025, 1, 1)),
            st.sampled_from([UTC, timezone(timedelta(hours=-9, minutes=-30)), None]),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_json_lines_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[float, str, datetime, timezone | None]]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    records = [
        {"ID": k, "AT": at.replace(tzinfo=zone).isoformat(), "CARD": card, "AMOUNT": amount}
        for k, (amount, card, at, zone) in enumerate(values)
    ]
    path.write_text("".join(json.dumps(record, ensure_ascii=k % 2 == 0) + "\n" for k, record in enumerate(records)))
    table = rows(path)
    assert table.column("amount").to_pylist() == [amount for amount, *_ in values]
    assert table.column("card").to_pylist() == [card for _, card, *_ in values]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert table.column("time").to_pylist() == [
        (at.replace(tzinfo=zone or UTC) - epoch) // timedelta(microseconds=1) for *_, at, zone in values
    ]


MEMORY = """
import resource, sys
from core.data.cells import Column
from core.data.ordered import Ordered
from core.data.schema import Schema
from core.data.sources import read

schema = Schema((Column("id", "string"), Column("time", "time", "at"), Column("card", "string"), Column("amount", "float")), time="time", key="id")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
small, large, how = sys.argv[1:]
def run(path):
    if how == "read":
        return sum(len(chunk) for chunk in read(path, schema))
    with Ordered(path, schema, memory_mb=64) as table:
        assert not table.sorted
        return sum(len(chunk) for chunk in table.chunks())
run(small)
before = peak()
print(run(large), int(peak() - before))
"""


@pytest.mark.parametrize(("how", "suffix"), [("read", "csv"), ("ordered", "parquet")])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, how: str, suffix: str) -> None:
    """3 million rows hold 180 MB as columns; a stream of them may take a fraction of that beyond one of 0.7 million."""
    paths = [tmp_path / f"{name}.{suffix}" for name in ("small", "large")]
    rng = np.random.default_rng(0)
    for path, parts in zip(paths, (7, 30), strict=True):
        writer: pyarrow.csv.CSVWriter | pq.ParquetWriter | None = None
        for part in range(parts):
            n = 100_000
            table = pa.table(
                {
                    "id": pa.array(part * n + np.arange(n) + 10**14).cast(pa.string()),
                    "at": pa.array(rng.integers(0, 10**13, n) + 1_500_000_000_000_000).cast(pa.timestamp("us")),
                    "card": pa.array(rng.integers(10**15, 10**16, n)).cast(pa.string()),
                    "amount": rng.lognormal(3, 1, n).round(2),
                }
            )
            writer = writer or (
                pyarrow.csv.CSVWriter(path, table.schema) if suffix == "csv" else pq.ParquetWriter(path, table.schema)
            )
            writer.write_table(table)
        assert writer is not None
        writer.close()
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, paths), how], capture_output=True, text=True, check=True
    )
    count, growth = done.stdout.split()
    assert int(count) == 3_000_000
    assert float(growth) < 60
