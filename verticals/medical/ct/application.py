"""CT segmentation as an `Application`: what the verbs, the tests and the service need to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.contract import Application, Arrays, Estimate, Limits, Session
from core.errors import DataError, LeakError
from core.training.log import progress
from verticals.medical.answer import write_answer
from verticals.medical.connect.dicomweb import DicomWeb, choose_series
from verticals.medical.ct.config import RECIPES, CtConfig
from verticals.medical.ct.data import CtData
from verticals.medical.ct.dataset import Dataset
from verticals.medical.ct.evaluation import evaluate
from verticals.medical.ct.loader import cut
from verticals.medical.ct.model import UNet3D
from verticals.medical.ct.plan import Plan
from verticals.medical.ct.predictor import CtPredictor
from verticals.medical.ct.synthetic import SyntheticConfig, phantom, write_dataset
from verticals.medical.ct.task import SegmentationTask
from verticals.medical.dicom.write import write_series
from verticals.medical.formats import NAMES
from verticals.medical.scan import opened, volume_of
from verticals.medical.volume import AIR_HU, Volume


def task(config: CtConfig, data: CtData) -> SegmentationTask:
    """The network of the data's plan, with its loss."""
    return SegmentationTask(_network(config, data.plan), config.loss)


def model(config: CtConfig, made: Mapping[str, Any]) -> UNet3D:
    """The network without weights."""
    return _network(config, Plan.from_record(made["plan"]))


def _network(config: CtConfig, plan: Plan) -> UNet3D:
    return UNet3D(
        plan.num_classes,
        patch_size=plan.patch_size,
        widths=plan.widths,
        strides=plan.strides,
        windows=plan.windows,
        deep_supervision=config.plan.deep_supervision,
    )


def constants(config: CtConfig, data: CtData, task: SegmentationTask) -> dict[str, Any]:
    """The plan: spacing, window, Hounsfield units, labels."""
    return {"plan": data.plan.model_dump(mode="json")}


def predict(predictor: CtPredictor, config: CtConfig, source: str, target: Path) -> dict[str, Any]:
    """Writes the answer to a scan into a new folder: mask, DICOM objects, picture, volumes.

    Raises:
        DataError: what is wrong with the scan, or the folder exists; nothing is written.
        CapacityError: the scan needs more memory than there is; nothing was read.
    """
    if target.exists():
        raise DataError(f"{target} exists; name a new folder for the answer")
    with opened(Path(source)) as scan, progress() as bar:
        predictor.admit(scan.grid)
        given = scan.read()
        windows = bar.add_task("windows", total=1.0, note="")
        (found,) = predictor([volume_of(given)], progress=lambda share: bar.update(windows, completed=share))
        answer = write_answer(
            given, found.mask, predictor.structures, target, algorithm="verticals medical.ct", version=predictor.version
        )
    volumes = {finding.structure.name: round(finding.volume_ml, 2) for finding in answer.findings}
    listed = ", ".join(f"{name} {ml:g} mL" for name, ml in volumes.items()) or "no structure found"
    empty = f"; not found: {', '.join(answer.empty)}" if answer.empty else ""
    empty += "".join(f"; no {name}: {why}" for name, why in answer.left_out.items())
    return {
        "files": list(answer.files),
        "volumes_ml": volumes,
        "empty": list(answer.empty),
        "left_out": dict(answer.left_out),
        "windows": found.num_windows,
        "windows_of_air": found.num_skipped,
        "text": f"{target}: {listed}{empty}; {found.num_windows} windows, {found.num_skipped} of air,",
    }


def cost(predictor: CtPredictor, config: CtConfig, source: str) -> Estimate:
    """What `predict` will take of a scan, from its headers."""
    with opened(Path(source)) as scan:
        return predictor.estimate([scan.grid])


def check(config: CtConfig, source: str) -> dict[str, Any]:
    """Reads a data set or a scan whole and says what is in it; raises DataError at the first fault."""
    if (Path(source) / "dataset.json").exists() or (Path(source) / "imagesTr").exists():
        data = CtData(config.model_copy(update={"data": config.data.model_copy(update={"sources": (source,)})}))
        found: dict[str, Any] = data.fingerprint
        counts = ", ".join(f"{count} {side}" for side, count in found["cases"].items())
        counts += f", {found['unused']} labelled ones on no side" if found["unused"] else ""
        return {**found, "text": f"{counts}; sha256 {found['sha256'][:16]}\n{data.plan.text}"}
    with opened(Path(source)) as scan:
        volume = volume_of(scan.read())
    grid = volume.grid
    size, spacing = " x ".join(map(str, grid.shape)), " x ".join(f"{mm:.4g}" for mm in grid.spacing_mm)
    low, high = int(volume.array.min()), int(volume.array.max())
    return {
        "shape": list(grid.shape),
        "spacing_mm": grid.spacing_mm.tolist(),
        "affine": grid.affine.tolist(),
        "hu": [low, high],
        "text": f"{size} voxels of {spacing} mm, {low} to {high} HU"
        + ("" if grid.is_orthogonal else "; tilted: it is resampled to a straight grid and back"),
    }


def synthesize(config: CtConfig, path: Path) -> dict[str, Any]:
    """Writes a synthetic data set into a new folder, and one more body as a DICOM series beside it."""
    found = write_dataset(config.data.synthetic, path)
    scan, _ = phantom(config.data.synthetic, config.data.synthetic.num_cases)
    write_series(scan, path / "dicom")
    counts = ", ".join(f"{count} {side}" for side, count in found["cases"].items())
    return {"path": str(path), **found, "text": f"{path}: {counts} scans; {path / 'dicom'}: one more as a DICOM series"}


class Pacs:
    """A PACS by DICOMweb, as an `Archive`."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError for what is no http or https URL."""
        self._web = DicomWeb(url)

    def fetch(self, study: str, series: str | None, folder: Path) -> None:
        """Writes the study's one CT series, or the one of that number or UID, into the folder.

        Raises:
            DataError: no such study or series, or several.
            Unavailable: the server does not answer.
        """
        with self._web as web:  # connections are open while they are used
            web.fetch_series(study, choose_series(web.find_series(study), series), folder)

    def store(self, answer: Path) -> int:
        """Stores the SEG of an answer's folder; none where no structure was found.

        Raises:
            DataError: the server refuses it.
            Unavailable: the server does not answer.
        """
        paths = [path for path in (answer / NAMES["seg"],) if path.exists()]
        with self._web as web:
            web.store(paths)
        return len(paths)


def samples(config: CtConfig, source: str) -> CtData:
    """All cases of another data set, whatever its split and its other labels.

    Raises:
        DataError: the first fault of the data set.
        LeakError: it is the one that the model was trained on.
    """
    if any(Path(own).resolve() == Path(source).resolve() for own in config.data.sources):
        raise LeakError(
            f"{source} is the data set that the model was trained on; without -i its test cases judge it, with -i another set"
        )
    return CtData(config, Dataset.open(source, is_split=False))


def calibration(
    config: CtConfig, constants: Mapping[str, Any], session: Session, data: CtData, count: int
) -> tuple[list[Arrays], dict[str, int]]:
    """Windows of validation scans, as near to equal numbers for every organ as there are, each around one of its voxels."""
    plan = Plan.from_record(constants["plan"])
    random = np.random.default_rng(0)
    cases = data.prepared("validation")
    seen = {name: 0 for name, number in plan.labels.items() if number}
    rows: list[Arrays] = []
    for turn in range(count):
        name = list(seen)[turn % len(seen)]
        having = [case for case in cases if len(case.places[plan.labels[name]])]
        if having:
            case = having[int(random.integers(len(having)))]
            places = case.places[plan.labels[name]]
            middle = places[int(random.integers(len(places)))]
            start = np.clip(
                middle - np.array(plan.patch_size) // 2, 0, np.maximum(0, np.array(case.shape) - plan.patch_size)
            )
            hu = cut(case.image, start, plan.patch_size, outside=AIR_HU)
            rows.append({"image": plan.normalized(hu)[None, None]})
            seen[name] += 1
    return rows, seen


def example() -> Volume:
    """A small synthetic body."""
    return phantom(SyntheticConfig(shape=(32, 32, 32), spacing_mm=(8.0, 8.0)), 0)[0]


def _distillation(config: CtConfig) -> torch.nn.Module:
    """Every voxel is one class of several."""
    from core.compression.distillation import TemperatureCrossEntropy  # training only

    return TemperatureCrossEntropy(2.0, axis=1)


INT8 = Limits(tensor=0.4, answers={"centroid_mm": 2.0, "volume_ml": 10.0, "mask": 1e-2}, figure="dice", drop=5e-3)

LIMITS = {
    "float32": Limits(
        tensor=2e-2, answers={"centroid_mm": 0.25, "volume_ml": 1.0, "mask": 1e-4}, figure="dice", drop=1e-3
    ),
    "bfloat16": Limits(
        tensor=0.1, answers={"centroid_mm": 1.0, "volume_ml": 5.0, "mask": 5e-3}, figure="dice", drop=5e-3
    ),
    "int8": INT8,
    "int8-bfloat16": INT8,
}
"""A mask may differ where two classes were close: a coarse voxel alone is 0.3 mL and moves a kidney's centre by 0.04 mm.

Tensors are held loosely, masks are not: in windows of real scans that are air but for a corner, clipped to one value, OpenVINO's
instance norm in float32 is off by up to 8e-3 (torch's, beside float64, by 1e-6), and not a voxel of the mask changes.
"""

APPLICATION = Application(
    name="medical.ct",
    title="CT segmentation",
    recipes=RECIPES,
    data=CtData,
    task=task,
    constants=constants,
    model=model,
    forms={"window": lambda network: network},
    whole=(),
    distillation=_distillation,
    limits=LIMITS,
    calibration=calibration,
    predictor=CtPredictor,
    has_threshold=False,
    evaluate=evaluate,
    samples=samples,
    predict=predict,
    cost=cost,
    archive=Pacs,
    check=check,
    synthesize=synthesize,
    remember=None,
    begins_filled=False,
    example=example,
    card=Path(__file__).parent / "README.md",
)
