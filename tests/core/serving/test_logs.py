from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from core.serving.logs import discreet, where

CARD = "4111111111111111"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)


def _chain() -> Exception:
    class Item(BaseModel):
        amount: int

    try:
        try:
            Item.model_validate({"amount": f"{CARD}x"})
        except ValueError as error:
            raise KeyError(CARD) from error
    except KeyError as error:
        return error
    raise AssertionError


def test_a_trace_names_types_and_places_of_every_cause_and_no_value() -> None:
    text = where(_chain())
    assert CARD not in text
    assert text.index("ValidationError") < text.index("led to") < text.index("builtins.KeyError")
    assert "test_logs.py" in text
    assert "_chain" in text


def test_no_way_into_a_log_keeps_the_value(written: io.StringIO) -> None:
    error = _chain()
    logger = logging.getLogger("bentoml.serve")
    with discreet():
        logger.error("plain trace", exc_info=error)
        logger.error("as an argument: %s", error)
        logger.error(error)
        try:
            raise error
        except KeyError:
            logger.exception("while handling")
        logging.getLogger("asyncio").error(f"Task exception was never retrieved\nfuture: <Task exception={error!r}>")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning(CARD, UserWarning, "a.py", 7)
        thread = threading.Thread(target=lambda: float(f"{CARD}x"), name="lost")
        thread.start()
        thread.join()
    text = written.getvalue()
    assert CARD not in text
    for kept in (
        "plain trace",
        "as an argument: builtins.KeyError",
        "while handling",
        "never retrieved",
        "a.py:7: UserWarning",
        "thread lost died",
    ):
        assert kept in text


def test_afterwards_everything_is_as_before(written: io.StringIO) -> None:
    before = logging.getLogRecordFactory(), warnings.showwarning, threading.excepthook, logging.getLogger("core").level
    with discreet():
        assert logging.getLogger("core").level == logging.INFO
    after = logging.getLogRecordFactory(), warnings.showwarning, threading.excepthook, logging.getLogger("core").level
    assert after == before
    logging.getLogger("any").error("shown: %s", ValueError("text"))
    assert "shown: text" in written.getvalue()
