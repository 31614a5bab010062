"""Retrieval: find the image by its words, the words by its image.

Two encoders, of timm or torchvision and of transformers, meet in one space; a matching head that sees places and words looks again
at the best. `APPLICATION` is imported when it is asked for.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "APPLICATION":
        from verticals.multimodal.retrieval.application import APPLICATION

        return APPLICATION
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
