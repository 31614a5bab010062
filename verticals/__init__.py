"""The industries' applications: their names, and `load`, which imports one on demand."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.contract import Application

APPLICATIONS = {
    "finance.fraud": "card fraud: a score, a decision and its reasons for every transaction",
    "manufacturing.pcb": "PCB inspection: small defects on large boards, boxes and a verdict, on a line's PC without a GPU",
    "medical.ct": "CT segmentation: a mask of organs in patient space, DICOM in, DICOM SEG out, in bounded memory",
    "multimodal.retrieval": "retrieval: find the image by its words, the words by its image",
}
"""Name -> one line. The name is also the module below `verticals`."""


def load(name: str) -> Application:
    """
    Raises:
        ConfigError: no application has that name.
    """
    from core.errors import ConfigError

    if name not in APPLICATIONS:
        raise ConfigError(f"no application {name!r}; there are: {', '.join(APPLICATIONS)}")
    application: Application = import_module(f"verticals.{name}").APPLICATION
    return application
