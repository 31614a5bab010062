"""Keeps what clients send out of every log.

Values reach logs through exceptions: pydantic puts `input_value=` into its text, `float(x)` quotes x, asyncio prints the
exception of a forgotten task, warnings quote what they warn of. While `discreet()` lasts, every log record of the process
holds the type of an exception and where it was raised, never its text. Our own messages name fields, not values.
"""

from __future__ import annotations

import logging
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

_OURS = ("core", "verticals")


def where(error: BaseException) -> str:
    """The types of an exception and of its causes, with the lines of code that raised them; no values, no text."""
    parts: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        frames = "".join(traceback.format_list(traceback.extract_tb(link.__traceback__)))
        parts.append(f"{frames}{type(link).__module__}.{type(link).__qualname__} (text withheld)")
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\nled to:\n".join(reversed(parts))


@contextmanager
def discreet() -> Iterator[None]:
    """Cleans every log record, warning and thread's last words of this process until the block ends."""
    made, warned, died = logging.getLogRecordFactory(), warnings.showwarning, threading.excepthook
    levels = {name: logging.getLogger(name).level for name in _OURS}

    def record(*args: Any, **options: Any) -> logging.LogRecord:
        return _clean(made(*args, **options))

    logging.setLogRecordFactory(record)
    warnings.showwarning = _show_warning
    threading.excepthook = _thread_died
    for name, level in levels.items():
        if level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.setLogRecordFactory(made)
        warnings.showwarning = warned
        threading.excepthook = died
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _clean(record: logging.LogRecord) -> logging.LogRecord:
    if record.exc_info:
        error = record.exc_info[1]
        record.exc_text = where(error) if error is not None else None
        record.exc_info = None
    if isinstance(record.msg, BaseException):
        record.msg = _name(record.msg)
    if isinstance(record.args, tuple):
        record.args = tuple(_name(value) if isinstance(value, BaseException) else value for value in record.args)
    if record.name == "asyncio":  # its later lines are the repr of a task, with the exception in it
        record.msg, record.args = record.getMessage().partition("\n")[0], ()
    return record


def _name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__} (text withheld)"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    logging.getLogger("py.warnings").warning("%s:%s: %s (text withheld)", filename, lineno, category.__name__)


def _thread_died(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        trace: TracebackType | None = args.exc_traceback
        logging.getLogger(__name__).error(
            "thread %s died", args.thread.name if args.thread else "?", exc_info=(args.exc_type, args.exc_value, trace)
        )
