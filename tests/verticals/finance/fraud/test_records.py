"""Transactions as `Events`: codes, mapping, further columns, and the handbook's own file."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.ordered import Ordered
from core.data.schema import Schema
from core.errors import ConfigError, DataError
from verticals.finance.fraud.events import Events
from verticals.finance.fraud.records import HANDBOOK, Records, key_code, key_codes, read_events, schema

HEADER = "TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_FRAUD"


def read(path: Path, table: Schema | None = None) -> list[Records]:
    with Ordered(path, table or schema()) as ordered:
        return list(read_events(ordered, rows=2))


@pytest.mark.parametrize(
    ("headers", "ignored", "words"),
    [
        (["FOO"], [], "--set data.ignore_columns=[FOO]"),
        (["FOO", "BAR"], ["NOTIZ"], "--set data.ignore_columns=[NOTIZ,FOO,BAR]"),
        (["a b"], [], """--set 'data.ignore_columns=["a b"]'"""),
    ],
)
def test_a_fault_names_the_setting_that_mends_it(headers: list[str], ignored: list[str], words: str) -> None:
    found = [*HANDBOOK.values(), "TX_FRAUD_SCENARIO", *ignored, *headers]
    with pytest.raises(DataError) as caught:
        schema(ignore=ignored).check_headers(found, "file")
    assert str(caught.value).endswith(words)
    with pytest.raises(DataError) as caught:
        schema().check_headers([*list(HANDBOOK.values())[:4], "TX_FRAUD_SCENARIO"], "file")
    assert str(caught.value).endswith("--set data.columns.amount=NAME_IN_FILE")


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_key_codes_are_key_code_of_each(keys: list[str]) -> None:
    assert key_codes(pa.array(keys, pa.string())).tolist() == [key_code(key) for key in keys]


def test_a_code_is_blake2b_of_the_text() -> None:
    digest = blake2b(b"596", digest_size=8).digest()
    assert key_code("596") == np.frombuffer(digest, "<i8")[0]
    for keys in (
        ["596", "ü"],
        np.array(["596", "ü"]),
        np.array(["596", "ü"], object),
        pa.array(["596", "ü"]),
        pa.chunked_array([["596"], ["ü"]]),
    ):
        assert key_codes(keys).tolist() == [key_code("596"), key_code("ü")]
    assert key_codes(np.array([596, -1])).tolist() == [key_code("596"), key_code("-1")]
    assert key_codes([]).tolist() == []
    assert key_codes([]).dtype == np.int64


def test_codes_of_the_handbook_do_not_collide() -> None:
    assert len(np.unique(key_codes(np.arange(200_000)))) == 200_000


def test_rows_come_as_events_in_time_order(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{HEADER}\nt-3,2018-04-03,c,m,3.5,\nt-1,2018-04-01,c,m,1.5,1\nt-2,2018-04-02,d,m,2.5,0\n")
    first, second = read(path)
    assert first.ids.tolist() == ["t-1", "t-2"]
    assert isinstance(first.events, Events)
    assert first.events.time.tolist() == [1_522_540_800_000_000, 1_522_627_200_000_000]
    assert first.events.customer.tolist() == [key_code("c"), key_code("d")]
    assert first.events.terminal.tolist() == [key_code("m")] * 2
    assert first.events.amount.tolist() == [1.5, 2.5]
    assert (first.events.fraud.tolist(), second.events.fraud.tolist()) == ([1, 0], [-1])
    assert [column.dtype for column in first.events.columns] == [np.int64, np.int64, np.int64, np.float64, np.int8]
    assert first.extra == {}


def test_other_names_and_further_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "NR,ZEIT,KARTE,TERMINAL_ID,BETRAG,km,mcc,NOTIZ\n1,2018-04-01,c,m,1.5,7,5411,x\n2,2018-04-02,c,m,2.5,8.5,,x\n"
    )
    columns = {"transaction_id": "NR", "time": "ZEIT", "customer": "KARTE", "amount": "BETRAG"}
    with pytest.raises(DataError, match="unexpected column NOTIZ"):
        read(path, schema(columns, numeric=["km"], categorical=["mcc"]))
    (records,) = read(path, schema(columns, numeric=["km"], categorical=["mcc"], ignore=["NOTIZ"]))
    assert records.extra["km"].tolist() == [7.0, 8.5]
    assert records.extra["mcc"].tolist() == ["5411", ""]
    assert records.events.fraud.tolist() == [-1, -1]
    assert read(path, schema(columns, ignore_extra=True))[0].extra == {}
    with pytest.raises(ConfigError, match="column mapping names betrag; allowed are transaction_id, time"):
        schema({"betrag": "BETRAG"})
    with pytest.raises(ConfigError, match="each may be named once"):
        schema({"amount": "TX_FRAUD"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("t-2,2018-04-02,c,m,-1,0", "row 2 (line 3): column TX_AMOUNT: '-1.0' is out of range; allowed is at least 0"),
        ("t-2,2018-04-02,c,m,inf,0", "row 2 (line 3): column TX_AMOUNT: 'inf' is not finite"),
        ("t-2,1970-01-18,c,m,1,0", "row 2 (line 3): column TX_DATETIME: 1970-01-18T00:00:00.000000Z lies before 1971"),
        ("t-2,2018-04-02,,m,1,0", "row 2 (line 3): column CUSTOMER_ID: is empty"),
        ("t-1,2018-04-02,4111,m,1,0", "row 2: column TRANSACTION_ID: the same transaction_id as"),
    ],
)
def test_bad_transactions_are_named(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{HEADER}\nt-1,2018-04-01,c,m,1.5,1\n{row}\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "4111" not in str(caught.value)


def test_the_answer_is_never_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{HEADER},TX_TIME_SECONDS,TX_TIME_DAYS,TX_FRAUD_SCENARIO\nt-1,2018-04-01,c,m,1.5,1,0,0,3\n")
    with Ordered(path, schema()) as ordered:
        (chunk,) = ordered.chunks()
        assert chunk.column_names == list(HANDBOOK)


def test_the_handbooks_file_reads_whole() -> None:
    folder = os.environ.get("VERTICALS_DATA", "../shared/data")
    path = Path(folder) / "fraud/handbook/transactions.parquet"
    if not path.is_file():
        pytest.skip(f"no evaluation data at {path}: set VERTICALS_DATA")
    table = pq.read_table(path, columns=["CUSTOMER_ID", "TX_DATETIME", "TX_AMOUNT"])
    with Ordered(path, schema()) as ordered:
        assert ordered.sorted
        assert (ordered.rows, ordered.repeats) == (1_466_282, 0)
        chunks = list(read_events(ordered))
    assert sum(int(chunk.events.fraud.sum()) for chunk in chunks) == 12_134
    time = np.concatenate([chunk.events.time for chunk in chunks])
    np.testing.assert_array_equal(
        time, table.column("TX_DATETIME").to_numpy().astype("datetime64[us]").astype(np.int64)
    )
    customer = np.concatenate([chunk.events.customer for chunk in chunks])
    assert len(np.unique(customer)) == len(np.unique(table.column("CUSTOMER_ID").to_numpy()))
    np.testing.assert_array_equal(
        np.concatenate([chunk.events.amount for chunk in chunks]), table.column("TX_AMOUNT").to_numpy()
    )
