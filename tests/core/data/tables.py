"""The small tables of these tests, and the ways to write them."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import sqlalchemy

from core.data.cells import Column
from core.data.schema import Schema
from core.data.sources import Source, read
from core.errors import DataError

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


def rows(source: str | Path | Source, schema: Schema = SCHEMA) -> pa.Table:
    chunks = list(read(source, schema, rows=1000))
    assert max(map(len, chunks)) <= 1000
    return pa.concat_tables(chunks)


def fault(source: str | Path | Source, schema: Schema = SCHEMA) -> str:
    with pytest.raises(DataError) as caught:
        rows(source, schema)
    return str(caught.value)


def microseconds(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000_000)


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
        pq.write_table(table, plain, row_group_size=2500)
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
