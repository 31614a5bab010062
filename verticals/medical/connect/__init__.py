"""How scans come in and results go back: DICOMweb, and a node of the DICOM network."""

from __future__ import annotations

import logging
import re

UID = re.compile(r"[0-9]+(\.[0-9]+)+")
"""Looser than the standard, as archives are: leading zeros pass."""
FAILURES = {0xA7: "out of resources", 0xA9: "does not match its SOP class", 0xC0: "cannot be understood"}
"""By the first byte of a reason; the others are told by number."""


def silence(*names: str) -> None:
    """Keep libraries from logging: their lines hold UIDs, addresses and values of the data."""
    for name in names:
        library = logging.getLogger(name)
        library.setLevel(logging.CRITICAL + 1)
        library.propagate = False


def is_uid(text: str) -> bool:
    return len(text) <= 64 and UID.fullmatch(text) is not None


def reason(status: int) -> str:
    """A DICOM failure in words."""
    text = FAILURES.get(status >> 8) or ("cannot be understood" if status >> 12 == 0xC else "refused")
    return f"{text} (0x{status:04X})"
