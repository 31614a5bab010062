"""What a request gets back: the mask in the formats that were asked for, a picture, and numbers, in one new folder.

The folder appears whole or not at all; DICOM objects in it have been read back and held against the mask. No patient data
leaves by a name of a file, and `answer.json` holds none.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import CapacityError, DataError, Unavailable
from verticals.medical.dicom import source
from verticals.medical.dicom.rtstruct import write_rtstruct
from verticals.medical.dicom.rtstruct_read import verify_rtstruct
from verticals.medical.dicom.seg import write_seg
from verticals.medical.dicom.seg_check import centroids, verify
from verticals.medical.dicom.series import Series
from verticals.medical.dicom.source import NOTICE, GeometryError
from verticals.medical.formats import NAMES, Format, chosen
from verticals.medical.labels import Structure, uncoded
from verticals.medical.nifti import write_nifti
from verticals.medical.preview import write_preview
from verticals.medical.volume import Grid, Volume

PICTURE_BYTES, FRAME_BYTES = 2**25, 25_000
"""What writing and reading back holds: of a picture of any size, and of each structure in each slice: a frame of a SEG,
described, or its contours, of which there may be no more."""


@dataclass(frozen=True)
class Finding:
    """A structure that the mask holds."""

    structure: Structure
    num_voxels: int
    volume_ml: float
    centroid_mm: tuple[float, float, float]
    """RAS."""


@dataclass(frozen=True)
class Answer:
    """A folder with the answer."""

    folder: Path
    files: tuple[str, ...]
    """Names in the folder, `answer.json` among them."""
    findings: tuple[Finding, ...]
    empty: tuple[str, ...]
    """Structures that the model knows and did not find."""
    uncoded: tuple[str, ...]
    """Names that no code was known for: DICOM has them as some anatomical structure."""
    left_out: Mapping[Format, str]
    """Formats that were asked for and that this mask is too much for, and why."""


def answer_bytes(grid: Grid, num_structures: int) -> int:
    """The most that `write_answer` holds beside scan and mask."""
    return PICTURE_BYTES + FRAME_BYTES * num_structures * grid.shape[2]


def write_answer(
    scan: Series | Volume,
    mask: Volume,
    structures: Sequence[Structure],
    folder: Path,
    *,
    algorithm: str,
    version: str,
    formats: Sequence[Format] | None = None,
    tell: Callable[[], None] = lambda: None,
) -> Answer:
    """Writes the answer to a new folder. A mask without any structure has no DICOM files; that is an answer too. One of specks
    has no structure set: `left_out` says so.

    Args:
        scan: a DICOM series, or a volume that came without one (NIfTI).
        mask: uint8 or uint16 labels on the scan's grid.
        folder: where it goes; must not exist.
        algorithm: name of the model.
        version: the model's.
        tell: called between the parts of the work; what it raises ends it, and nothing is left.
        formats: all that the scan allows where None: DICOM formats need a DICOM series.

    Raises:
        ConfigError: a format that is unknown or that the scan does not allow.
        DataError: the folder exists; a label that no structure has; a header that DICOM does not allow.
        GeometryError: what was written does not lie where the mask does.
        Unavailable: the disk is full or not writable.
    """
    volume, sources = (scan.volume, scan.sources) if isinstance(scan, Series) else (scan, None)
    wanted = chosen(formats, of_dicom=sources is not None)
    if not volume.grid.same_as(mask.grid):
        raise GeometryError("the mask is not on the scan's grid: map it back before it is written")
    if folder.exists():
        raise DataError("the folder for the answer exists already; name a new one")
    structures = sorted(structures, key=lambda structure: structure.number)
    source.voxels_per_slice(mask, structures)
    measured = centroids(mask, structures)
    findings = tuple(
        Finding(structure, voxels, voxels * mask.grid.voxel_ml, (float(centre[0]), float(centre[1]), float(centre[2])))
        for structure in structures
        for centre, voxels in (measured[structure.name],)
        if voxels
    )
    empty = tuple(structure.name for structure in structures if not measured[structure.name][1])
    left_out: dict[Format, str] = {}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".answer-", dir=folder.parent) as beside:
            staging = Path(beside) / "answer"
            staging.mkdir()
            tell()
            if "nifti" in wanted:
                write_nifti(mask, staging / NAMES["nifti"])
            if sources is not None and "seg" in wanted and findings:
                tell()
                write_seg(mask, sources, structures, staging / NAMES["seg"], algorithm=algorithm, version=version)
                tell()
                verify(staging / NAMES["seg"], mask, structures)
            if sources is not None and "rtstruct" in wanted and findings:
                tell()
                path, most = staging / NAMES["rtstruct"], answer_bytes(volume.grid, len(structures))
                try:
                    write_rtstruct(
                        mask, sources, structures, path, algorithm=algorithm, version=version, most_bytes=most
                    )
                except CapacityError as error:
                    left_out["rtstruct"] = str(error)
                else:
                    tell()
                    verify_rtstruct(path, mask, sources, structures)
            if "preview" in wanted:
                tell()
                write_preview(volume, mask, structures, staging / NAMES["preview"])
            answer = Answer(
                folder,
                (*sorted(path.name for path in staging.iterdir()), NAMES["json"]),
                findings,
                empty,
                uncoded(tuple(structures)),
                left_out,
            )
            text = json.dumps(_record(answer, mask, algorithm=algorithm, version=version), indent=1, ensure_ascii=False)
            (staging / NAMES["json"]).write_text(text + "\n", encoding="utf-8")
            staging.rename(folder)
    except OSError as error:
        if folder.exists():
            raise DataError("the folder for the answer was made by another request meanwhile; name a new one") from None
        raise Unavailable(
            f"the answer cannot be written ({error.strerror or type(error).__name__}); free space or choose another place"
        ) from None
    return answer


def _record(answer: Answer, mask: Volume, *, algorithm: str, version: str) -> dict[str, Any]:
    return {
        "notice": NOTICE,
        "algorithm": algorithm,
        "version": version,
        "software": source.software(version)[0],
        "files": list(answer.files),
        "coordinates": "mm, RAS+",
        "voxel_ml": mask.grid.voxel_ml,
        "structures": [
            {
                "number": finding.structure.number,
                "name": finding.structure.name,
                "code": f"SCT:{finding.structure.code.value}" if finding.structure.code else None,
                "meaning": finding.structure.code.meaning if finding.structure.code else None,
                "side": finding.structure.side,
                "voxels": finding.num_voxels,
                "volume_ml": round(finding.volume_ml, 4),
                "centroid_mm": [round(value, 3) for value in finding.centroid_mm],
            }
            for finding in answer.findings
        ],
        "empty": list(answer.empty),
        "uncoded": list(answer.uncoded),
        "left_out": dict(answer.left_out),
    }
