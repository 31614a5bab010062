"""`verticals predict`: the answer to every row of a file, in bounded memory, written whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from core.device import peak_bytes
from core.errors import DataError
from core.training.log import progress
from pipelines.model import open_model

Columns = Mapping[str, NDArray[Any]]


class Writer(Protocol):
    """Takes chunks of rows."""

    def write_table(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a row."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write_table(self, table: pa.Table) -> None:
        self._file.writelines(json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in table.to_pylist())

    def close(self) -> None:
        self._file.close()


FORMATS: dict[str, Callable[[Path, pa.Schema], Any]] = {
    ".parquet": lambda path, schema: pyarrow.parquet.ParquetWriter(path, schema),
    ".csv": lambda path, schema: pyarrow.csv.CSVWriter(path, schema),
    ".jsonl": lambda path, schema: JsonLines(path),
}


def predict(
    application: str,
    *,
    input: str,
    output: str,
    version: str = "production",
    run: str | None = None,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Scores the file `input` into `output` (.parquet, .csv or .jsonl).

    Raises:
        DataError: a fault in the file (nothing is written), or an output of another kind.
        ArtifactError: no such model, or it is damaged.
    """
    target = Path(output)
    if target.suffix not in FORMATS:
        raise DataError(f"output {output} has suffix {target.suffix!r}; allowed are {', '.join(FORMATS)}")
    if not target.resolve().parent.is_dir():
        raise DataError(f"the folder of {output} does not exist; make it first")
    if target.resolve() == Path(input).resolve():
        raise DataError(f"{output} is the input too; give another name")
    started = time.perf_counter()
    model = open_model(application, version=version, run=run, as_released=True)
    config = model.config.override(settings)
    rows, alerts = 0, 0
    with _whole(target) as sink, progress() as bar:
        task = bar.add_task("rows", total=None, note="")
        writer: Writer | None = None
        for columns in model.app.answers(model.predictor, config, input):
            table = pa.table({name: pa.array(values) for name, values in columns.items()})
            writer = writer or FORMATS[target.suffix](sink, table.schema)
            writer.write_table(table)
            rows += len(table)
            alerts += int(np.sum(columns["decision"] == "alert")) if "decision" in columns else 0
            bar.update(task, completed=rows)
        if writer:
            writer.close()
    seconds = time.perf_counter() - started
    result = {
        "output": output,
        "rows": rows,
        "alerts": alerts,
        "version": model.version,
        "seconds": round(seconds, 2),
        "peak_gib": round(peak_bytes() / 2**30, 2),
    }
    return {
        **result,
        "text": f"{rows} rows to {output} ({alerts} alerts) by version {model.version}, {seconds:.1f} s, peak memory {result['peak_gib']} GiB",
    }


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A file beside the target that takes its name when all is well, and is removed when not."""
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
