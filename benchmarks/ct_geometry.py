# ruff: noqa: E402
"""Where a mask lies in the patient: legal scans answered and read back by other programs, illegal ones refused by name.

    python benchmarks/ct_geometry.py [--quick] [--json FILE]

Each legal scan has three planted structures; a session that answers by Hounsfield units stands for the network, everything
else is what users run: read, turned, resampled, cut into windows, blended, brought back, written as SEG, RTSTRUCT and
NIfTI. These are read with highdicom, pydicom and nibabel alone. Peers read the same scans: highdicom and MONAI the DICOM
series, nibabel and MONAI the NIfTI files. `VERTICALS_DATA` adds a clinic's contours (ct/ibsi_sts).
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import pydicom
from scipy.spatial.transform import Rotation

from benchmarks import ct_faults
from benchmarks.ct_readers import PEERS, Found, found_in
from benchmarks.ct_threshold import HU, LABELS, plan_of, predictor_of
from benchmarks.tables import Record, goal, keep, table
from core.device import machine
from core.errors import VerticalsError
from verticals.medical.ct.application import predict
from verticals.medical.ct.config import CtConfig
from verticals.medical.dicom.rtstruct import write_rtstruct
from verticals.medical.dicom.rtstruct_read import read_rtstruct
from verticals.medical.dicom.seg import write_seg
from verticals.medical.dicom.seg_check import read_back
from verticals.medical.dicom.series import read_series
from verticals.medical.dicom.write import write_series
from verticals.medical.labels import structures
from verticals.medical.nifti import write_nifti
from verticals.medical.volume import AIR_HU, Axes, Grid, Volume

EXTENT_MM = (176.0, 150.0, 168.0)
PLANTED = {  # centre and half axes in mm, patient's axes, from the middle of the scan
    "kidney_right": ((42.0, -10.0, 10.0), (18.0, 16.0, 26.0)),
    "kidney_left": ((-40.0, -16.0, 24.0), (16.0, 18.0, 22.0)),
    "SpinalCord": ((3.0, -38.0, -32.0), (13.0, 13.0, 28.0)),
}
LIMIT_BYTES = 3 * 2**29
"""Of memory, for scans that shall be refused."""
TURNS = [
    Axes(order, flips)  # type: ignore[arg-type]
    for order in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
]


class Legal(NamedTuple):
    """A scan that has to be answered."""

    kind: str
    scan: Volume
    mask: Volume
    """The planted structures on its voxels."""
    spacing_mm: tuple[float, float, float]
    """Of the network."""
    form: str = "dicom"
    written: dict[str, Any] = {}
    """How the series is written."""


def body(
    spacing: Sequence[float],
    *,
    angles: tuple[float, float, float] = (0, 0, 0),
    tilt: float = 0.0,
    middle: tuple[float, float, float] = (-31.5, 17.25, -940.0),
) -> tuple[Volume, Volume]:
    """Scan and mask: a body in air, stacked along the last axis, turned by angles and tilted, both in degrees."""
    shape = [round(extent / mm) for extent, mm in zip(EXTENT_MM, spacing, strict=True)]
    local = np.diag(np.array(spacing, float))
    local[1, 2] = np.tan(np.radians(tilt)) * spacing[2]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ local
    affine[:3, 3] = np.array(middle) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    grid = Grid((shape[0], shape[1], shape[2]), affine)
    place = grid.world(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)) - middle
    across = (place[..., 0] / 80) ** 2 + (place[..., 1] / 68) ** 2
    scan = np.where(across < 1, 0, AIR_HU).astype(np.int16)
    mask = np.zeros(shape, np.uint8)
    for name, (centre, half) in PLANTED.items():
        inside = (((place - centre) / half) ** 2).sum(-1) < 1
        mask[inside] = LABELS[name]
        scan[inside] = HU[name]
    return Volume(scan, grid), Volume(mask, grid)


def legal(quick: bool) -> Iterator[Legal]:
    """Every scan that has to be answered right."""
    scan, mask = body((4, 4, 4.5))
    for number, turn in enumerate(TURNS):
        turned = scan.turned(turn), mask.turned(turn)
        if not quick or number % 6 == 0:
            yield Legal("orders and flips", *turned, (4, 4, 4.5))
            yield Legal("orders and flips, NIfTI", *turned, (3.5, 3.5, 3.5) if number % 2 else (4, 4, 4.5), "nifti")
        if not quick or number % 12 == 1:
            yield Legal("orders and flips, resampled", *turned, (3.5, 3.5, 3.5))
        if number % (12 if quick else 6) == 2:
            yield Legal("files and numbers shuffled", *turned, (4, 4, 4.5), written={"seed": number})
    for angles in ((10, -20, 35), (-35, 8, 170), (95, 5, 12), (40, 40, 40), (3, 2, -1), (180, 0, 44)):
        yield Legal("oblique", *body((4, 4, 4.5), angles=angles), (3.5, 3.5, 3.5))
    for tilt in (-30, -12, 5, 20, 30):
        yield Legal("gantry tilted", *body((3.5, 3.5, 5), tilt=tilt), (3.5, 3.5, 3.5))
    for tilt, angles in ((15, (12, -8, 30)), (-22, (0, 180, 0))):
        yield Legal("tilted and oblique", *body((3.5, 3.5, 5), tilt=tilt, angles=angles), (4, 4, 4))
    for spacing in ((2.5, 5, 4), (5, 2.5, 3), (3.1, 4.7, 3.9)):
        yield Legal("pixels not square", *body(spacing), (3.5, 3.5, 3.5))
    for spacing in ((2, 2, 2), (6, 6, 6)) if not quick else ((3, 3, 3), (6, 6, 6)):
        yield Legal("finer and coarser", *body(spacing), (4, 4, 4))
    for spacing in ((3, 3, 8), (3, 3, 12)):
        yield Legal("thick slices", *body(spacing), (3, 3, 4))
        yield Legal("thick slices", *body(spacing, angles=(0, 90, 0)), (3, 3, 4))
    for slope, intercept in ((0.5, -1024.0), (1.0, -8192.0), (-1.0, 3000.0), (0.1, 0.0)):
        written = {"slope": slope, "intercept": intercept}
        yield Legal("other stored numbers", *body((4, 4, 4.5)), (3.5, 3.5, 3.5), written=written)
    yield Legal("far from the origin", *body((4, 4, 4.5), middle=(900, -1500, 2500)), (3.5, 3.5, 3.5))


def planted(case: Legal) -> dict[str, Found]:
    """Centroids and voxels of the structures as they were put into the scan."""
    return {
        name: Found(case.mask.centroid_mm(number), int((case.mask.array == number).sum()))
        for name, number in LABELS.items()
        if number
    }


def answered(case: Legal, folder: Path) -> Record:
    """Worst error over structures and files of one scan, and what the peers make of it."""
    source = folder / ("scan.nii.gz" if case.form == "nifti" else "series")
    if case.form == "nifti":
        write_nifti(Volume(np.ascontiguousarray(case.scan.array), case.scan.grid), source)
    else:
        write_series(case.scan, source, **case.written)
    started = time.perf_counter()
    config = CtConfig()
    answer = predict(predictor_of(plan_of(case.spacing_mm)), config, str(source), folder / "answer")
    seconds = time.perf_counter() - started
    expected = planted(case)
    half_voxel = float(case.scan.grid.spacing_mm.min()) / 2
    ours = found_in(folder / "answer", list(expected))
    errors = {  # in half voxels: below 1 is right
        (file, name): float(np.linalg.norm(found[name].centroid_mm - expected[name].centroid_mm)) / half_voxel
        for file, found in ours.items()
        for name in expected
        if name in found
    }
    sided = all(found["kidney_right"].centroid_mm[0] > found["kidney_left"].centroid_mm[0] for found in ours.values())
    mask = folder / "answer" / "mask.nii.gz"
    peers = {}
    for peer, read in PEERS[case.form].items():
        peers[peer] = _placed(read, source, expected, half_voxel)
    return {
        "kind": case.kind,
        "form": case.form,
        "centroid": max(errors.values()),
        "files": len(ours),
        "whole": len(errors) == len(expected) * len(ours) and not answer["empty"],
        "sided": sided,
        "dice": min(_dice(mask, case, number) for number in LABELS.values() if number),
        "alike": _alike(ours),
        "s": seconds,
        **peers,
    }


def _alike(files: dict[str, dict[str, Found]]) -> bool:
    """Whether all files hold as many voxels of each structure; contours pass between voxels, so their areas differ a little."""
    mask = files["mask.nii.gz"]
    return all(
        abs(found[name].size / mask[name].size - 1) <= (0.1 if file == "rtstruct.dcm" else 0.0)
        for file, found in files.items()
        for name in mask
    )


def _placed(read: Callable[[Path], Volume], source: Path, expected: dict[str, Found], half_voxel: float) -> bool:
    """Whether a peer's voxels of each planted value lie where they were put."""
    try:
        volume = read(source)
    except Exception:  # a peer's own failures are of every kind
        return False
    for name, wanted in expected.items():
        index = np.argwhere(np.abs(volume.array - HU[name]) < 1)
        if not len(index):
            return False
        if np.linalg.norm(volume.grid.world(index.mean(0)) - wanted.centroid_mm) >= half_voxel:
            return False
    return True


def _dice(path: Path, case: Legal, number: int) -> float:
    """Of the NIfTI mask, read with nibabel, against the planted mask at the same places."""
    import nibabel

    image: Any = nibabel.load(path)
    index = np.argwhere(np.asarray(image.dataobj) == number)
    places = index @ image.affine[:3, :3].T + image.affine[:3, 3]
    there = np.rint(case.mask.grid.index(places)).astype(int)
    inside = (there >= 0).all(1) & (there < case.mask.grid.shape).all(1)
    shared = int((case.mask.array[tuple(there[inside].T)] == number).sum())
    return 2 * shared / (len(index) + int((case.mask.array == number).sum()))


def summed(rows: Sequence[Record]) -> list[Record]:
    """One row a kind."""
    made = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of = [row for row in rows if row["kind"] == kind]
        peers = PEERS[of[0]["form"]]
        made.append(
            {
                "kind": kind,
                "scans": len(of),
                "right": sum(map(right, of)),
                "worst, half voxels": max(row["centroid"] for row in of),
                "least Dice": min(row["dice"] for row in of),
                "s a scan": float(np.mean([row["s"] for row in of])),
                **{peer: sum(row[peer] for row in of) for peer in peers},
            }
        )
    return made


def right(row: Record) -> bool:
    """Every structure in every file within half a voxel, on its own side, of the same size in each."""
    return bool(row["centroid"] < 1 and row["sided"] and row["whole"] and row["alike"] and row["dice"] > 0.85)


def refusals(scan: Volume) -> list[Record]:
    """What is said of each illegal scan, and what peers do with it."""
    rows = []
    for fault in ct_faults.faults():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            source = fault.plant(scan, folder)
            said = ""
            try:
                predictor = predictor_of(plan_of((4, 4, 4.5)), limit_bytes=LIMIT_BYTES)
                predict(predictor, CtConfig(), str(source), folder / "answer")
            except VerticalsError as error:
                said = str(error)
            named = (
                bool(said)
                and all(any(one in said for one in word.split("|")) for word in fault.words)
                and not (folder / "answer").exists()
            )
            row: Record = {"illegal": fault.name, "refused": bool(said), "by name": named}
            for peer, read in PEERS[fault.form].items():
                row[peer] = _refuses(read, source)
            rows.append({**row, "said": said})
    return rows


def _refuses(read: Callable[[Path], Volume], source: Path) -> bool:
    try:
        read(source)
    except Exception:  # a peer's own failures are of every kind
        return True
    return False


def clinic(root: Path) -> list[Record]:
    """A clinic's contours to a mask, a SEG and contours again: how far each centroid lies from the contours' own."""
    rows: list[Record] = []
    for folder in sorted((root / "ct/ibsi_sts/dicom").glob("*/CT")):
        series = read_series(folder / "image")
        (path,) = (folder / "mask").iterdir()
        ((_, found),) = read_rtstruct(path, series.volume.grid, series.sources).items()
        expected = ct_faults.contour_centroid(pydicom.dcmread(path))
        mask = Volume(found.array.astype(np.uint8), found.grid)
        known = structures({"tumor": 1})
        with tempfile.TemporaryDirectory() as name:
            seg, drawn = Path(name) / "seg.dcm", Path(name) / "rt.dcm"
            write_seg(mask, series.sources, known, seg, algorithm="none", version="0")
            write_rtstruct(mask, series.sources, known, drawn, algorithm="none", version="0")
            again = read_rtstruct(drawn, mask.grid, series.sources)["tumor"]
            back = read_back(seg, mask.grid)["tumor"][0]
            redrawn = ct_faults.contour_centroid(pydicom.dcmread(drawn))
        rows.append(
            {
                "series": len(rows) + 1,
                "slices": mask.grid.shape[2],
                "half voxel mm": float(mask.grid.spacing_mm.min()) / 2,
                "mask mm": float(np.linalg.norm(mask.centroid_mm(1) - expected)),
                "SEG mm": float(np.linalg.norm(back - expected)),
                "contours again mm": float(np.linalg.norm(redrawn - expected)),
                "same voxels": bool(np.array_equal(again.array, found.array)),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer resampled scans, under a minute")
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # peers' own
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    rows: list[Record] = []
    for case in legal(given.quick):
        with tempfile.TemporaryDirectory() as name:
            rows.append(answered(case, Path(name)))
    kinds = summed(rows)
    table(f"{len(rows)} legal scans", kinds, "a peer's figure counts the scans whose markers it reads at the right mm")
    faults = refusals(body((4, 4, 4.5))[0])
    shown = [{key: value for key, value in row.items() if key != "said"} for row in faults]
    table(f"{len(faults)} illegal scans", shown)
    for row in faults:
        if not row["by name"]:
            print(f"  {row['illegal']}: {row['said'] or 'not refused'}")
    goals = [
        goal("every legal scan's structures within half a voxel in every file, sides right", all(map(right, rows))),
        goal("every illegal scan refused, its fault named", all(row["by name"] for row in faults)),
    ]
    root = os.environ.get("VERTICALS_DATA")
    drawn = clinic(Path(root)) if root else []
    if drawn:
        table("a clinic's contours", drawn)
        within = all(
            max(row["mask mm"], row["SEG mm"], row["contours again mm"]) < row["half voxel mm"] for row in drawn
        )
        goals.append(goal("contours through mask and SEG within half a voxel", within))
    totals = {
        peer: [sum(row.get(peer, 0) for row in part) for part in (rows, faults)] for of in PEERS.values() for peer in of
    }
    totals["ours"] = [sum(map(right, rows)), sum(row["by name"] for row in faults)]
    offered = {peer: [sum(peer in row for row in part) for part in (rows, faults)] for peer in totals}
    offered["ours"] = [len(rows), len(faults)]
    shares = [
        {"reader": peer, "legal placed right": f"{a} of {offered[peer][0]}", "illegal refused": f"{b} of {offered[peer][1]}"}
        for peer, (a, b) in totals.items()
    ]  # fmt: skip
    table("all", shares, "ours: refused with the fault's name; peers: any exception")
    keep(
        given.json, machine=machine(), legal=kinds, scans=rows, illegal=faults, clinic=drawn, shares=shares, goals=goals
    )


if __name__ == "__main__":
    main()
