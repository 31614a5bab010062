"""Every reader and every kind of bad input, by real files and real databases; row numbers exact."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import readers
from core.data.cells import Column, clock, iso
from core.data.schema import Schema
from core.data.sources import Source, infer, read, read_table
from core.errors import ConfigError, DataError

pytest_plugins = ("tests.servers",)

SCHEMA = Schema(
    (
        Column("id", "string", "ID"),
        Column("time", "time", "AT"),
        Column("card", "string", "CARD", private=True),
        Column("amount", "float", "AMOUNT", minimum=0, maximum=1e12),
        Column("fraud", "label", "FRAUD", required=False, gaps=True),
    ),
    time="time",
    key="id",
    ignore=("NOTE",),
)
HEADER = "ID,AT,CARD,AMOUNT,FRAUD"
GOOD = "1,2018-04-01 00:00:31,4111111111111111,57.16,0"
NEXT = "2,2018-04-01T00:02:10Z,card-2,81.51,1"


@pytest.fixture
def csv_file(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str, header: str = HEADER, name: str = "rows.csv") -> Path:
        path = tmp_path / name
        path.write_bytes("\n".join((header, *lines, "")).encode())
        return path

    return write


def rows(source: str | Path | Source, schema: Schema = SCHEMA) -> pa.Table:
    return pa.concat_tables(list(read(source, schema)))


def fault(source: str | Path | Source, schema: Schema = SCHEMA) -> str:
    with pytest.raises(DataError) as caught:
        rows(source, schema)
    return str(caught.value)


def microseconds(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000_000)


# ---- what is read


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
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, big: pa.Table) -> None:
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
    assert "decimal point" in fault(Source(str(path), delimiter=";"))
    thousands = csv_file("1;2018-04-01;a;1.234,5;0", header=HEADER.replace(",", ";"))
    assert "'1.234,5' is not a number with a decimal comma" in fault(Source(str(thousands), delimiter=";", decimal=","))


def test_columns_are_mapped(csv_file: Callable[..., Path]) -> None:
    path = csv_file("1,2018-04-01,a,5,0", header="ID,AT,KARTE,BETRAG,FRAUD")
    text = fault(path, Schema(tuple(c for c in SCHEMA.columns if c.name != "card"), ignore=("KARTE",)))
    assert "lacks column AMOUNT (amount); found ID, AT, KARTE, BETRAG, FRAUD" in text
    assert "columns={'amount': " in text
    mapped = SCHEMA.mapped({"card": "KARTE", "amount": "BETRAG"})
    assert rows(path, mapped).column("amount").to_pylist() == [5.0]
    with pytest.raises(ConfigError, match="names \\['betrag'\\]; the logical columns are"):
        SCHEMA.mapped({"betrag": "BETRAG"})


# ---- what is refused, cell by cell

BAD_CELLS = [
    ("AMOUNT", "-0.01", "'-0.01' is out of range; allowed is at least 0"),
    ("AMOUNT", "1e13", "is out of range; allowed is at least 0 and at most 1e+12"),
    ("AMOUNT", "inf", "'inf' is not finite"),
    ("AMOUNT", "NaN", "'nan' is not finite"),
    ("AMOUNT", "", "is empty or NaN"),
    ("AMOUNT", "  ", "is empty or NaN"),
    ("AMOUNT", "12 EUR", "'12 EUR' is not a number with a decimal point"),
    ("AMOUNT", "x" * 100, f"'{'x' * 37}...' is not a number"),
    ("AMOUNT", "4111 1111 1111 1111 x", "'<19 digits> x' is not a number"),
    ("AT", "2018-02-30", "'2018-02-30' is not ISO 8601"),
    ("AT", "01.04.2018", "'01.04.2018' is not ISO 8601"),
    ("AT", "1522540831", "'1522540831' is not ISO 8601"),
    ("AT", "", "is empty or NaN"),
    ("AT", "2218-04-01", "2218-04-01T00:00:00.000000Z lies in the future"),
    ("ID", "", "is empty or NaN"),
    ("CARD", " ", "is empty or NaN"),
    ("FRAUD", "2", "'2' is not 0 or 1"),
    ("FRAUD", "yes", "'yes' is not 0 or 1"),
]


def broken(header: str, value: str) -> dict[str, str]:
    record = dict(zip(HEADER.split(","), NEXT.split(","), strict=True))
    return {**record, "ID": "3", header: value}


@pytest.mark.parametrize(("header", "value", "message"), BAD_CELLS)
def test_a_bad_cell_is_named_by_row_line_and_column(
    csv_file: Callable[..., Path], header: str, value: str, message: str
) -> None:
    path = csv_file(GOOD, "", NEXT, ",".join(broken(header, value).values()), GOOD.replace("57.16", "-7"))
    text = fault(path)
    assert text.startswith(f"{path}: row 3 (line 5): column {header}: ")
    assert message in text


@pytest.mark.parametrize(("header", "value", "message"), BAD_CELLS)
def test_a_bad_cell_of_json_lines(tmp_path: Path, header: str, value: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps(record) for record in (broken("ID", "1"), broken("ID", "2"), broken(header, value)))
    )
    text = fault(path)
    assert text.startswith(f"{path}: row 3 (line 3): column {header}: ")
    assert message in text


@pytest.mark.parametrize(("header", "value", "message"), BAD_CELLS)
def test_a_bad_cell_of_a_database(tmp_path: Path, header: str, value: str, message: str) -> None:
    url = f"sqlite:///{tmp_path / 'bank.db'}"
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE rows (ID, AT, CARD, AMOUNT, FRAUD)"))
        for record in (broken("ID", "1"), broken("ID", "2"), broken(header, value)):
            connection.execute(sqlalchemy.text("INSERT INTO rows VALUES (:ID, :AT, :CARD, :AMOUNT, :FRAUD)"), record)
    engine.dispose()
    text = fault(f"{url}::rows")
    assert text.startswith(f"{url}::rows: row 3: column {header}: ")
    assert message in text


def test_the_earliest_bad_row_is_named_whatever_its_column_and_fault(csv_file: Callable[..., Path]) -> None:
    bad = [f"{k},2018-04-01,a,5,0" for k in range(1, 1001)]
    bad[400], bad[300], bad[200], bad[100] = (
        "401,2018-04-01,a,,0",
        "301,2018-04-01,a,x,0",
        "201,2018-04-01,a,-1,0",
        "101,x,a,5,0",
    )
    assert "row 101 (line 102): column AT: 'x'" in fault(csv_file(*bad))
    bad[100] = bad[99].replace("100,", "101,")
    assert "row 201 (line 202): column AMOUNT: '-1.0'" in fault(csv_file(*bad))
    bad[200] = bad[100].replace("101,", "201,")
    assert "row 301 (line 302): column AMOUNT: 'x'" in fault(csv_file(*bad))
    bad[300] = bad[100].replace("101,", "301,")
    assert "row 401 (line 402): column AMOUNT: is empty" in fault(csv_file(*bad))


def test_a_private_value_never_enters_a_message(csv_file: Callable[..., Path], tmp_path: Path) -> None:
    private = Schema((Column("card", "int", "CARD", private=True),), ignore=("ID", "AT", "AMOUNT", "FRAUD"))
    text = fault(csv_file(GOOD.replace("4111111111111111", "SECRET")), private)
    assert "row 1 (line 2): column CARD: a value not shown here" in text
    assert "SECRET" not in text


def test_a_file_without_header_shows_nothing_of_its_rows(csv_file: Callable[..., Path]) -> None:
    text = fault(csv_file(NEXT, header=GOOD))
    assert "its first row looks like data" in text
    assert "4111" not in text
    assert "57.16" not in text


def test_the_clock_decides_what_is_the_future(csv_file: Callable[..., Path]) -> None:
    def at(ahead: timedelta) -> Path:
        return csv_file(f"1,{iso(clock() + ahead // timedelta(microseconds=1))},a,5,0")

    assert len(rows(at(timedelta(hours=23)))) == 1
    assert "lies in the future; allowed is up to" in fault(at(timedelta(hours=25)))
    later = microseconds("2018-04-01T00:00:31")
    assert len(list(read(csv_file(GOOD), SCHEMA, now=later))) == 1
    with pytest.raises(DataError, match="in the future"):
        list(read(csv_file(GOOD), SCHEMA, now=later - 86_400_000_000 - 1))


# ---- what is refused, whole


def test_missing_extra_and_doubled_columns(csv_file: Callable[..., Path]) -> None:
    assert "lacks column AMOUNT (amount); found ID, AT, CARD, FRAUD" in fault(csv_file(header="ID,AT,CARD,FRAUD"))
    more = csv_file(GOOD + ",x,y", header=HEADER + ",NOTE,CITY")
    assert "unexpected column CITY; allowed are ID, AT, CARD, AMOUNT, FRAUD; pass ignore=('CITY',)" in fault(more)
    for allowed in ({"ignore": ("NOTE", "CITY")}, {"ignore_extra": True}):
        assert len(rows(more, Schema(SCHEMA.columns, **allowed))) == 1
    assert "column AMOUNT is there twice" in fault(csv_file(GOOD + ",5", header=HEADER + ",AMOUNT"))


def test_extra_and_missing_keys_of_a_later_json_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(broken("ID", "1"))
    path.write_text(f"{good}\n\n{json.dumps({**broken('ID', '2'), 'CITY': 'x'})}\n")
    assert f"{path}: row 2 (line 3): unexpected column CITY" in fault(path)
    lacking = {name: value for name, value in broken("ID", "2").items() if name != "AMOUNT"}
    path.write_text(f"{good}\n{json.dumps(lacking)}\n")
    assert f"{path}: row 2 (line 2): column AMOUNT: is empty" in fault(path)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet", "rows.csv.gz"])
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    assert f"{tmp_path / name}: is empty; allowed is" in fault(tmp_path / name)


def test_a_header_without_rows(csv_file: Callable[..., Path], tmp_path: Path) -> None:
    assert "has columns but no rows" in fault(csv_file())
    columns = {name: pa.array([], pa.string()) for name in HEADER.split(",")}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert "has columns but no rows" in fault(tmp_path / "t.parquet")
    fill(f"sqlite:///{tmp_path / 'e.db'}", pa.table({**columns, "N": pa.array([], pa.int64())}))
    assert "has columns but no rows" in fault(
        f"sqlite:///{tmp_path / 'e.db'}::SELECT ID, AT, CARD, AMOUNT, FRAUD FROM rows"
    )


def test_damaged_files(tmp_path: Path, big: pa.Table) -> None:
    path = tmp_path / "t.parquet"
    write_as(big, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert f"{path}: is not a whole Parquet file" in fault(path, BIG)
    path.write_bytes(content[:50] + bytes(len(content) // 2) + content[50 + len(content) // 2 :])
    assert f"{path}: is not a whole Parquet file" in fault(path, BIG)
    packed = tmp_path / "t.csv.gz"
    write_as(big, packed)
    packed.write_bytes(packed.read_bytes()[:-1000])
    assert f"{packed}: is not a whole gzip file" in fault(packed, BIG)
    packed.write_bytes(b"ID,AT,CARD\n")
    assert f"{packed}: is not a whole gzip file" in fault(packed, BIG)


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_file_that_is_not_utf_8(tmp_path: Path, quote: str) -> None:
    path = tmp_path / "rows.csv"
    start = f"{HEADER}\n{GOOD}\n2,2018-04-01,{quote}M".encode()
    path.write_bytes(start + "üller".encode("latin-1") + f"{quote},5,0\n".encode())
    assert f"{path}: line 3: byte {len(start)} (0xfc) is not UTF-8" in fault(path)
    path.write_bytes(f"{HEADER}\n{GOOD}\n".encode("utf-16"))
    assert f"{path}: line 1: byte 0 (0xff) is not UTF-8" in fault(path)
    lines = path.with_suffix(".jsonl")
    lines.write_bytes(json.dumps(broken("ID", "1")).encode() + b'\n{"ID": "\xfc"}\n')
    assert f"{lines}: line 2: byte" in fault(lines)


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_ragged_row(csv_file: Callable[..., Path], quote: str) -> None:
    for row, count in ((f"2,2018-04-01,{quote}a{quote},5", 4), (f"2,2018-04-01,{quote}a{quote},5,0,0", 6)):
        text = fault(csv_file(GOOD, "", row, NEXT))
        assert f"row 2 (line 4): has {count} fields, the header has 5" in text


def test_a_quote_left_open(csv_file: Callable[..., Path]) -> None:
    assert "row 2 (line 3): unexpected end of data" in fault(csv_file(GOOD, '2,2018-04-01,"a,5,0', NEXT))
    assert "row 1 (line 2): ',' expected after '\"'" in fault(csv_file('1,2018-04-01,"a"b,5,0'))


def test_a_line_without_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(HEADER.encode() + b"\n" + b"x" * (readers.BLOCK_BYTES + readers.LINE_BYTES + 5))
    assert "line 2 is longer than" in fault(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"ID": 1,', "is not JSON (Expecting property name"),
        ("[1, 2]", "is a JSON list; allowed is one object a line"),
        ('{"ID": "1"} {"ID": "2"}', "is not JSON (Extra data at character 13)"),
        ("[" * 100_000, "is nested too deeply"),
        (json.dumps({**broken("ID", "2"), "AMOUNT": [5]}), "column AMOUNT: holds a list"),
        (json.dumps({**broken("ID", "2"), "ID": 5.0}), "column ID: holds a float"),
        (json.dumps({**broken("ID", "2"), "AT": 1522540831}), "column AT: '1522540831' is not ISO 8601"),
        (json.dumps({**broken("ID", "2"), "AMOUNT": float("nan")}), "column AMOUNT: is empty or NaN"),
        (json.dumps({**broken("ID", "2"), "AMOUNT": None}), "column AMOUNT: is empty or NaN"),
    ],
)
def test_a_bad_json_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(broken("ID", "1")) + "\n" + line + "\n")
    text = fault(path)
    assert text.startswith(f"{path}: row 2")
    assert message in text


@pytest.mark.parametrize(
    ("header", "values", "message"),
    [
        ("ID", pa.array([1.0]), "row 1: column ID: holds double; allowed is text or an integer"),
        ("AT", pa.array([1522540831]), "row 1: column AT: holds int64, and a number does not say its unit"),
        ("AMOUNT", pa.array([[5.0]]), "row 1: column AMOUNT: holds list"),
        ("AMOUNT", pa.array([True]), "row 1: column AMOUNT: holds bool"),
        ("AMOUNT", pa.array([None], pa.null()), "row 1: column AMOUNT: is empty or NaN"),
        ("AMOUNT", pa.array([float("nan")]), "row 1: column AMOUNT: is empty or NaN"),
        ("AMOUNT", pa.array([Decimal("-1.5")]), "row 1: column AMOUNT: '-1.5' is out of range"),
        ("FRAUD", pa.array([0.5]), "row 1: column FRAUD: '0.5' is not 0 or 1"),
        ("CARD", pa.array([b"4111111111111111"]), "row 1: column CARD: holds binary"),
    ],
)
def test_a_parquet_column_of_a_wrong_type(tmp_path: Path, header: str, values: pa.Array, message: str) -> None:
    columns = {
        "ID": pa.array(["1"]),
        "AT": pa.array([datetime(2018, 4, 1)]),
        "CARD": pa.array(["a"]),
        "AMOUNT": pa.array([5.0]),
        "FRAUD": pa.array([0]),
    }
    pq.write_table(pa.table({**columns, header: values}), tmp_path / "t.parquet")
    assert message in fault(tmp_path / "t.parquet")


def test_unknown_files_and_sources(tmp_path: Path) -> None:
    assert "no such file" in fault(tmp_path / "absent.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in fault(tmp_path / "folder.csv")
    for name in ("rows.xlsx", "rows", "rows.parquet.gz", "rows.gz"):
        (tmp_path / name).write_bytes(b"x")
        assert "unknown kind of file; allowed are .csv, .jsonl" in fault(tmp_path / name)
    with pytest.raises(ConfigError, match="name what to read"):
        Source.of("sqlite:///bank.db")
    with pytest.raises(ConfigError, match="belong to a database URL"):
        Source("rows.csv", table="rows")


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


# ---- a table nobody described


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


# ---- the same rows, however they are written

BIG = Schema(
    (
        Column("id", "string"),
        Column("time", "time", "at"),
        Column("card", "string"),
        Column("amount", "float"),
        Column("fraud", "label", gaps=True),
    ),
    time="time",
    key="id",
)


@pytest.fixture(scope="module")
def big() -> pa.Table:
    rng = np.random.default_rng(0)
    n = 70_000
    return pa.table(
        {
            "id": np.arange(n),
            "at": pa.array(np.sort(rng.integers(0, 10**12, n)) + 1_500_000_000_000_000).cast(pa.timestamp("us")),
            "card": pa.array([f"Kärtchen {k}" for k in rng.integers(0, 5000, n)]),
            "amount": rng.lognormal(3, 2, n),
            "fraud": pa.array(rng.integers(0, 2, n), mask=rng.random(n) < 0.1),
        }
    )


def rows_of(table: pa.Table) -> pa.Table:
    time = table.column("at").cast(pa.int64())
    fraud = pc.fill_null(table.column("fraud"), -1).cast(pa.int8())
    return pa.table(
        {
            "id": table.column("id").cast(pa.string()),
            "time": time,
            "card": table.column("card"),
            "amount": table.column("amount"),
            "fraud": fraud,
        }
    )


def write_as(table: pa.Table, path: Path) -> None:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix == ".csv":
        pyarrow.csv.write_csv(table, plain)
    elif plain.suffix in (".json", ".ndjson"):
        plain.write_text("".join(json.dumps({**row, "at": row["at"].isoformat()}) + "\n" for row in table.to_pylist()))
    else:
        pq.write_table(table, plain, row_group_size=30_000)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes(), 1))


def fill(url: str, table: pa.Table) -> None:
    types = {"int64": "BIGINT", "double": "DOUBLE PRECISION", "string": "TEXT", "timestamp[us]": "TIMESTAMP"}
    fields = ", ".join(f"{field.name} {types[str(field.type)]}" for field in table.schema)
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP TABLE IF EXISTS rows"))
        connection.execute(sqlalchemy.text(f"CREATE TABLE rows ({fields})"))
        records = [
            {name: str(value) if isinstance(value, datetime) else value for name, value in row.items()}
            for row in table.to_pylist()
        ]
        if records:
            connection.execute(
                sqlalchemy.text(f"INSERT INTO rows VALUES ({', '.join(f':{name}' for name in table.column_names)})"),
                records,
            )
    engine.dispose()


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


# ---- memory

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
