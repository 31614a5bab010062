"""Multimodal: `svc` is the vertical's BentoML service, imported when it is asked for."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "svc":
        from verticals.multimodal.service import svc

        return svc
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
