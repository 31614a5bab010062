"""CT segmentation: a mask of organs on the scan's own voxels, in patient space, within a memory bound known beforehand.

A 3-D U-Net sees overlapping windows; their answers are blended and turned to labels slab by slab, so that the logits of a
whole scan never exist. Scans come as NIfTI or DICOM in any orientation and go back as NIfTI, DICOM SEG and RTSTRUCT.
`APPLICATION` is imported when it is asked for: reading and writing scans needs no network.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "APPLICATION":
        from verticals.medical.ct.application import APPLICATION

        return APPLICATION
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
