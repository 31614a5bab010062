"""What every benchmark shares: tables on the terminal and as records, and goals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def goal(text: str, reached: bool) -> Record:
    print(f"  goal: {text}: {'reached' if reached else 'NOT reached'}")
    return {"goal": text, "reached": reached}


def table(title: str, rows: Sequence[Record], note: str = "") -> None:
    """Prints rows under their keys."""
    print(f"\n{title}")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if note:
        print(f"  {note}")


def _cell(value: object) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def keep(path: str | None, **parts: Any) -> None:
    """Writes the records as JSON where a file is named."""
    if path:
        Path(path).write_text(json.dumps(parts, indent=1, default=str) + "\n")
