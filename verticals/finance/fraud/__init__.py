"""Card fraud: every transaction gets a probability, a decision and its reasons, as of the moment it happens.

An LSTM with attention reads a card's events one by one and carries its state, so that scoring costs the same however long
the history is. Features count what card and terminal did before, and what is known of fraud by then, with its delay.
`APPLICATION` is imported when it is asked for: a client may use `requests`, and a tool the store, without torch.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "APPLICATION":
        from verticals.finance.fraud.application import APPLICATION

        return APPLICATION
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
