"""The fraud service over HTTP beside an endpoint that does nothing, and `verticals predict` on files that grow.

Run by fraud_latency.py. The service is a real `bentoml serve` of fraud_noop.py.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from benchmarks.load import compared, loaded
from benchmarks.tables import Record, table

NAME = "finance.fraud"
ROOT = Path(__file__).resolve().parents[1]
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
GROWTH = (1, 4, 16)


def trained(folder: Path) -> Path:
    """A BENTOML_HOME with a debug model in production, made once for all tables."""
    home = folder / "home"
    if home.exists():
        return home
    home.mkdir()
    settings = ["--recipe", "debug", "--set", "fit.max_steps=20", "--runs", str(folder / "runs")]
    _verticals(["train", NAME, *settings, "--alias", "production"], home)
    return home


def _verticals(arguments: list[str], home: Path) -> str:
    """What the command prints, in a process of its own.

    A shell stands between: a process counts the size of the one that started it as its own peak.
    """
    done = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "BENTOML_HOME": str(home)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"verticals {arguments[0]} failed:\n{done.stderr}")
    return done.stdout


def over_http(quick: bool, folder: Path) -> list[Record]:
    from tests.bento import start, stop, wait_until_ready

    server = start("benchmarks.fraud_noop:svc", folder, trained(folder))
    try:
        wait_until_ready(server)
        port = int(server.url.rpartition(":")[2])
        taken = loaded(port, ("noop", "score"), _transaction, requests=96 if quick else 1600, rounds=1 if quick else 4)
        batches = [_batch(port, f"batch-{turn}", 1_000 if quick else 10_000) for turn in range(1 if quick else 3)]
    finally:
        stop(server)
    rows = compared(taken)
    table(
        "(d) Over HTTP: one worker, debug model, store with synchronous=full; each client has a card of its own and keeps its connection",
        rows,
        "noop is an endpoint added to the same service. Client and service share the machine. score gives reasons and is durable.",
    )
    size, seconds = batches[0][0], float(np.median([seconds for _, seconds in batches]))
    batch = {"endpoint": "score_batch", "transactions": size, "seconds": seconds, "events_per_second": size / seconds}
    table(f"    One request of {size:,} transactions, reasons for alerts, median of {len(batches)}", [batch])
    return [*rows, batch]


def _batch(port: int, name: str, count: int) -> tuple[int, float]:
    """Transactions of one `score_batch` of new cards, ten of each, and its seconds."""
    transactions = [
        {
            "transaction_id": f"{name}-{number}",
            "time": (START + timedelta(minutes=number)).isoformat(),
            "customer": f"card-{name}-{number % (count // 10)}",
            "terminal": f"terminal-{number % 499}",
            "amount": 20.0 + number % 71,
        }
        for number in range(count)
    ]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    start = time.perf_counter()
    connection.request(
        "POST", "/score_batch", json.dumps({"transactions": transactions}), {"Content-Type": "application/json"}
    )
    answer = connection.getresponse()
    text = answer.read()
    seconds = time.perf_counter() - start
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"score_batch answered {answer.status}: {text[:300]!r}")
    return count, seconds


def _transaction(name: str, number: int) -> bytes:
    """Of a client's own card."""
    transaction = {
        "transaction_id": f"{name}-{number}",
        "time": (START + timedelta(minutes=number)).isoformat(),
        "customer": f"card-{name}",
        "terminal": f"terminal-{number % 5}-{name}",
        "amount": 20.0 + number % 7,
    }
    return json.dumps(transaction).encode()


# -- a file larger than memory -----------------------------------------------------------------------------------------


def bounded_memory(quick: bool, folder: Path) -> list[Record]:
    from core.inference.model import build
    from verticals.finance.fraud import APPLICATION
    from verticals.finance.fraud.config import debug
    from verticals.finance.fraud.events import DAY
    from verticals.finance.fraud.features import Features
    from verticals.finance.fraud.synthetic import SyntheticConfig, synthetic_transactions

    made = debug()
    days = int(Features(made.features).horizon / DAY) + 8
    cards = 100 if quick else 2_500
    part = synthetic_transactions(
        SyntheticConfig(num_customers=cards, num_terminals=2 * cards, num_days=days, start=date(2018, 1, 1))
    )
    rows: list[Record] = []
    home = trained(folder)
    growth = (4, 8) if quick else GROWTH
    for times in (0, *growth):
        path = folder / f"{times}.parquet"
        count = _write(part.slice(0, 500) if not times else part, path, days=days, times=max(1, times))
        seconds, peak = _predict(path, folder / "scores.parquet", home)
        rows.append(
            {
                "file": f"{times}x" if times else "500 rows",
                "rows": count,
                "days": days * max(1, times) if times else 1,
                "file_mb": path.stat().st_size / 1e6,
                "seconds": seconds,
                "rows_per_second": count / seconds,
                "peak_rss_mb": peak / 1e6,
            }
        )
        path.unlink()
    version = next((home / "models").glob("*/*/config.yaml"), None)
    nbytes = build(APPLICATION, version.parent, "x")[1].layout.nbytes if version else 0
    horizon = int(len(part) / days * Features(made.features).horizon / DAY)
    table(
        f"(e) `verticals predict` on files of the same {len(part) // days:,} rows a day over ever more days, debug model",
        rows,
        f"Beyond the program itself (500 rows): about {horizon:,} events of the horizon with their sums and features, one state of "
        f"{nbytes:,} bytes for each of {cards:,} cards ({cards * nbytes / 1e6:.1f} MB), a chunk of 65,536 rows, and DuckDB's sorting, "
        "which holds up to 256 MiB before it writes to disk.",
    )
    more, memory = (rows[-1][key] / rows[-2][key] for key in ("rows", "peak_rss_mb"))
    print(f"  {more:.0f} times the rows ({growth[-2]}x to {growth[-1]}x): {memory:.2f} times the memory")
    return rows


def _write(part: pa.Table, path: Path, *, days: int, times: int) -> int:
    """The part again and again, each time later, under new ids; one row group each. Returns the rows."""
    place = part.schema.get_field_index("TRANSACTION_ID")
    at = part.schema.get_field_index("TX_DATETIME")
    with pyarrow.parquet.ParquetWriter(path, part.schema) as writer:
        for turn in range(times):
            ids = pa.array(np.arange(len(part)) + turn * len(part)).cast(part.schema.field(place).type)
            later = pyarrow.compute.add(part["TX_DATETIME"], pa.scalar(timedelta(days=days * turn), pa.duration("us")))
            shifted = part.set_column(place, part.schema.field(place), ids)
            writer.write_table(shifted.set_column(at, part.schema.field(at), later.cast(part.schema.field(at).type)))
    return len(part) * times


def _predict(source: Path, target: Path, home: Path) -> tuple[float, float]:
    """Seconds and peak bytes of the command."""
    start = time.perf_counter()
    printed = _verticals(["predict", NAME, "-i", str(source), "-o", str(target), "--json"], home)
    return time.perf_counter() - start, json.loads(printed)["peak_gb"] * 1e9
