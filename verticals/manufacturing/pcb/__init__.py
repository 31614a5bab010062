"""PCB inspection: small defects on boards of 4096 x 4096 pixels, on a line's PC without a GPU.

An anchor-free detector sees overlapping tiles, and the golden board beside them where there is one; one merge that knows tiles'
borders makes boxes of the whole board, and rules a verdict. `APPLICATION` is imported when it is asked for.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "APPLICATION":
        from verticals.manufacturing.pcb.application import APPLICATION

        return APPLICATION
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
