"""What an answer may be made of, and how its files are called and sent. Nothing heavy is imported: the service's door reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from core.errors import ConfigError

Format = Literal["nifti", "seg", "rtstruct", "preview"]
Wanted = Literal["nifti", "seg", "rtstruct", "preview", "json", "zip"]
"""A file of an answer: a format, its record, or all of it."""

NAMES: dict[Wanted, str] = {
    "nifti": "mask.nii.gz",
    "seg": "seg.dcm",
    "rtstruct": "rtstruct.dcm",
    "preview": "preview.png",
    "json": "answer.json",
    "zip": "answer.zip",
}
MEDIA: dict[Wanted, str] = {
    "nifti": "application/octet-stream",
    "seg": "application/dicom",
    "rtstruct": "application/dicom",
    "preview": "image/png",
    "json": "application/json",
    "zip": "application/zip",
}
_OF_DICOM: tuple[Format, ...] = ("seg", "rtstruct")


def chosen(formats: Sequence[Format] | None, *, of_dicom: bool) -> tuple[Format, ...]:
    """The formats of an answer, each once; all that the scan allows where None.

    Raises:
        ConfigError: a format that is unknown or that the scan does not allow.
    """
    known: tuple[Format, ...] = get_args(Format)
    possible = tuple(one for one in known if of_dicom or one not in _OF_DICOM)
    if formats is None:
        return possible
    if unknown := sorted(set(formats) - set(known)):
        raise ConfigError(f"formats {unknown}; allowed are {list(known)}")
    if missing := sorted(set(formats) - set(possible)):
        raise ConfigError(
            f"formats {missing} refer to the slices of a DICOM series, and the scan came without one; "
            f"allowed are {list(possible)}"
        )
    return tuple(one for one in known if one in formats)
