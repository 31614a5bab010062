"""The report of a training or an evaluation: one HTML file that opens offline, and the same content as a JSON record.

A report is a title and a list of sections, of four kinds: text, a record (nested configuration, fingerprints), a table,
and a plot that brings its own SVG (`core.evaluation.plots` draws the usual ones). No script and no outside resource;
everything but a plot's SVG is escaped. Colours come from style variables, so that light and dark both hold.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.evaluation.bootstrap import Comparison, Figures


class Text(NamedTuple):
    """Paragraphs, parted by blank lines."""

    title: str
    body: str


class Record(NamedTuple):
    """Nested values as they are recorded: a configuration, a data fingerprint. Shown folded, one dotted key a line."""

    title: str
    values: Mapping[str, Any]


class Table(NamedTuple):
    """Rows of text or numbers. The first column is a name, the others align right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


class Plot(NamedTuple):
    """A drawing and the numbers it shows."""

    title: str
    svg: str
    """An `<svg>` element: trusted, goes into the page as it is."""
    caption: str = ""
    series: Mapping[str, Any] = {}
    """What was drawn, for the JSON record."""


Section = Text | Record | Table | Plot


def figures_table(figures: Figures, *, title: str = "Figures", caption: str = "") -> Table:
    """The table of figures with their 95 % intervals and the counts they stand on."""
    columns, rows = figures.cells()
    return Table(title, columns, rows, caption)


def comparisons_table(comparisons: Mapping[str, Comparison], *, title: str, caption: str = "") -> Table:
    """The table of paired differences, first model minus second."""
    rows = [
        (name, f"{it.difference:+.4f}", f"{it.low:+.4f} to {it.high:+.4f}", f"{it.p_value:.3f}", f"{it.draws:,}")
        for name, it in comparisons.items()
    ]
    return Table(title, ("figure", "difference", "95 % interval", "p", "draws"), rows, caption)


def record(sections: Sequence[Section], *, title: str, subtitle: str = "") -> dict[str, Any]:
    """The report without its drawings, as JSON-able values: what stands in report.json."""
    content = [
        {"kind": type(section).__name__.lower()}
        | {key: plain(it) for key, it in section._asdict().items() if key != "svg"}
        for section in sections
    ]
    return {"title": title, "subtitle": subtitle, "sections": content}


def plain(value: Any) -> Any:
    """The value in JSON's own types: arrays become lists, what JSON cannot say (nan, infinity) becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def write_report(path: Path, sections: Sequence[Section], *, title: str, subtitle: str = "") -> None:
    """Writes the page, whole or not at all: a temporary file beside it is renamed.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    page = html(sections, title=title, subtitle=subtitle).encode()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(page)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def html(sections: Sequence[Section], *, title: str, subtitle: str = "") -> str:
    """The whole page; neighbouring plots share a grid."""
    body = []
    for drawn, group in groupby(sections, key=lambda section: isinstance(section, Plot)):
        inner = "\n".join(_section(section) for section in group)
        body.append(f'<div class="plots">\n{inner}\n</div>' if drawn else inner)
    under = f'<p class="subtitle">{escape(subtitle)}</p>' if subtitle else ""
    return _PAGE.format(title=escape(title), style=_STYLE, subtitle=under, body="\n".join(body))


def _section(section: Section) -> str:
    heading = f"<h2>{escape(section.title)}</h2>"
    match section:
        case Text(body=body):
            paragraphs = "\n".join(f"<p>{escape(part.strip())}</p>" for part in body.split("\n\n") if part.strip())
            return f"<section>\n{heading}\n{paragraphs}\n</section>"
        case Record(values=values):
            lines = list(_flat(plain(values)))
            rows = "\n".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in lines)
            count = f'<span class="count">{len(lines)} values</span>'
            return (
                f"<details>\n<summary>{heading}{count}</summary>\n"
                f'<div class="wide"><table class="record">\n{rows}\n</table></div>\n</details>'
            )
        case Table(columns=columns, rows=rows, caption=caption):
            head = "".join(f"<th>{escape(column)}</th>" for column in columns)
            lines_of = "\n".join(map(_row, rows))
            table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines_of}\n</tbody>\n</table>"
            scroll = f'<div class="wide" tabindex="0">{table}</div>'
            return f"<section>\n{heading}\n{scroll}\n{_caption(caption, 'p')}</section>"
        case Plot(svg=svg, caption=caption):
            return f"<figure>\n{heading}\n{svg}\n{_caption(caption, 'figcaption')}</figure>"


def _row(row: Sequence[Any]) -> str:
    name, *cells = [escape(_text(cell)) for cell in row]
    name = name.replace("_", "_<wbr>")
    return f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _text(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _caption(text: str, tag: str) -> str:
    return f'<{tag} class="caption">{escape(text)}</{tag}>\n' if text else ""


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as dotted keys; lists of plain values stay on one line."""
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, list) and any(isinstance(item, Mapping) for item in values):
        for place, item in enumerate(values):
            yield from _flat(item, f"{prefix}.{place}")
    elif isinstance(values, list):
        yield prefix, ", ".join(map(str, values)) or "none"
    else:
        yield prefix, "none" if values is None or values == {} else str(values)


_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --panel: #f6f7f9; --ink: #1b1f24; --muted: #5b6470; --line: #d9dee4;
  --grid: #e6e9ed; --series-1: #1f5fbf; --series-2: #c2500c; --series-3: #0f7b6c; --series-4: #8a3fa0; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --panel: #1c2025; --ink: #e6e9ec; --muted: #9aa4af;
  --line: #343a42; --grid: #2a3037; --series-1: #6aa7ff;
  --series-2: #ff9a52; --series-3: #43c7b2; --series-4: #d291e6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 8px; }
.subtitle, .caption, .count { color: var(--muted); }
.subtitle { margin: 0 0 8px; overflow-wrap: anywhere; }
.caption { font-size: .86rem; margin: 6px 0 0; }
section, details, .plots { margin-top: 28px; }
section p { max-width: 75ch; margin: 0 0 10px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; min-width: 50%; }
th, td { padding: 5px 14px 5px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tr > th:first-child { text-align: left; font-weight: 500; }
thead th { color: var(--muted); font-weight: 500; font-size: .84rem; }
details { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
details + details { margin-top: 10px; }
summary { cursor: pointer; }
summary h2 { display: inline; margin-right: 10px; }
details .wide { margin-top: 10px; }
.record { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .8rem; width: 100%; }
.record td { white-space: normal; overflow-wrap: anywhere; text-align: left; }
.record th { vertical-align: top; width: 34%; font-weight: 400; color: var(--muted); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; }
figure { margin: 0; padding: 14px 16px; background: var(--panel); border-radius: 8px; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; font-family: inherit; }
@media (max-width: 560px) { main { padding: 20px 14px 40px; } figure { padding: 12px 8px; }
  th, td { padding-right: 10px; } tbody > tr > th:first-child { white-space: normal; min-width: 9em; } 
  .record th { white-space: normal; overflow-wrap: anywhere; width: 42%; } .plots { gap: 12px; } }
@media print { figure { break-inside: avoid; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{subtitle}
{body}
</main>
</body>
</html>
"""
