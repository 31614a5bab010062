"""Every kind of bad input, by a real file or database: named by source, row, line and column, and private values hidden."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy

from core.data import readers
from core.data.cells import Column, clock, iso
from core.data.schema import Schema
from core.data.sources import Source, read
from core.errors import ConfigError, DataError
from tests.core.data.tables import BIG, GOOD, HEADER, NEXT, SCHEMA, fault, fill, microseconds, rows, write_as

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
