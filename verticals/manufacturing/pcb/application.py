"""PCB inspection as an `Application`: what the verbs, the tests and the service need to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from core.contract import Application, Arrays, Limits, Session
from core.data.pictures import read_picture
from core.errors import DataError, LeakError
from core.inference.session import TorchSession
from verticals.manufacturing.pcb.answers import cost, predict
from verticals.manufacturing.pcb.config import RECIPES, PcbConfig
from verticals.manufacturing.pcb.data import PcbData
from verticals.manufacturing.pcb.dataset import Dataset
from verticals.manufacturing.pcb.evaluation import evaluate, request_of, thresholds_of
from verticals.manufacturing.pcb.model import STRIDES, PcbDetector, TileForm
from verticals.manufacturing.pcb.predictor import PcbPredictor, Request
from verticals.manufacturing.pcb.synthetic import SyntheticConfig, make_board, write_dataset
from verticals.manufacturing.pcb.task import DetectionTask
from verticals.manufacturing.verdict import check_rules


def task(config: PcbConfig, data: PcbData) -> DetectionTask:
    """The network for the data's classes, with its loss. Raises ConfigError for a rule of another class."""
    check_rules(config.rules.classes, data.dataset.classes)
    return DetectionTask(_network(config, len(data.dataset.classes)), config.loss)


def model(config: PcbConfig, made: Mapping[str, Any]) -> PcbDetector:
    """The network without weights."""
    return _network(
        config.model_copy(update={"model": config.model.model_copy(update={"pretrained": False})}), len(made["classes"])
    )


def _network(config: PcbConfig, num_classes: int) -> PcbDetector:
    given = config.model
    return PcbDetector(
        num_classes,
        num_channels=config.data.num_channels * (2 if config.data.template else 1),
        tile=config.predict.tile,
        width=given.width,
        depth=given.depth,
        num_distances=given.num_distances,
        backbone=given.backbone,
        pretrained=given.pretrained,
    )


def constants(config: PcbConfig, data: PcbData, task: DetectionTask) -> dict[str, Any]:
    """Classes, and the threshold of each: the highest that misses no more of the validation boards' defects than allowed."""
    classes = data.dataset.classes
    without = {"classes": list(classes), "thresholds": dict.fromkeys(classes, 0.0)}
    network = cast(PcbDetector, task.model)
    predictor = PcbPredictor(config, without, TorchSession(TileForm(network), device=_device(task)))
    boards = data.samples("validation")
    found = [predictor([request_of(data, board)])[0].findings for board in boards]
    thresholds = thresholds_of(found, [board.boxes for board in boards], classes, escape=config.rules.escape)
    return {"classes": list(classes), "thresholds": thresholds}


def _device(task: DetectionTask) -> torch.device:
    return next(task.parameters()).device


def check(config: PcbConfig, source: str) -> dict[str, Any]:
    """Reads a data set or a picture whole and says what is in it; raises DataError at the first fault."""
    if Path(source).is_file():
        picture = read_picture(Path(source), num_channels=config.data.num_channels, white=config.data.white)
        low, high = int(picture.min()), int(picture.max())
        return {
            "shape": list(picture.shape),
            "values": [low, high],
            "text": f"{picture.shape[1]} x {picture.shape[0]} pixels, values {low} to {high}",
        }
    given = config.data
    data = PcbData(config, Dataset.open(source, split=given.split, seed=given.split_seed).for_training())
    for board in data.samples("all"):
        data.read(board)
    found: dict[str, Any] = data.fingerprint
    counts = ", ".join(f"{count} {side}" for side, count in found["boards"].items())
    defects = ", ".join(f"{count} {name}" for name, count in found["defects"].items())
    shared = f"; the list shares {len(found['groups_shared'])} boards between sides" if found["groups_shared"] else ""
    text = f"{found['format']}: {counts}{shared}; {defects}; {found['without_defects']} boards without a defect; sha256 {found['sha256'][:16]}"
    return {**found, "text": text}


def synthesize(config: PcbConfig, path: Path) -> dict[str, Any]:
    """Writes a synthetic data set into a new folder: COCO annotations, pictures, golden twins."""
    found = write_dataset(config.data.synthetic, path)
    counts = ", ".join(f"{count} {side}" for side, count in found["boards"].items())
    defects = ", ".join(f"{count} {name}" for name, count in found["defects"].items())
    return {"path": str(path), **found, "text": f"{path}: {counts} boards; {defects}"}


def samples(config: PcbConfig, source: str) -> PcbData:
    """All boards of another data set, whatever its split.

    Raises:
        DataError: the first fault of the data set.
        LeakError: it is the one that the model was trained on.
    """
    if any(Path(own).resolve() == Path(source).resolve() for own in config.data.sources):
        raise LeakError(
            f"{source} is the data set that the model was trained on; without -i its test boards judge it, with -i another set"
        )
    return PcbData(config, Dataset.open(source, split="published"))


def calibration(
    config: PcbConfig, constants: Mapping[str, Any], session: Session, data: PcbData, count: int
) -> tuple[list[Arrays], dict[str, int]]:
    """Tiles of validation boards, as near to equal numbers for every class as there are, each around one of its defects."""
    random = np.random.default_rng(0)
    classes: list[str] = list(constants["classes"])
    size = int(session.inputs[0].shape[-1])
    boards = data.samples("validation")
    places = {
        name: [
            (board, box)
            for board in boards
            for box in board.boxes.corners[board.boxes.classes == data.dataset.classes.index(name)]
        ]
        for name in classes
        if name in data.dataset.classes
    }
    filled = [name for name, having in places.items() if having]
    if not filled:
        raise DataError("no defect is drawn on the validation boards; int8 is calibrated on them")
    seen = dict.fromkeys(classes, 0)
    rows: list[Arrays] = []
    for turn in range(count):
        name = filled[turn % len(filled)]
        board, box = places[name][int(random.integers(len(places[name])))]
        whole = data.read(board)
        x, y = (
            int(np.clip((box[axis] + box[axis + 2]) / 2 - random.uniform(0.1, 0.9) * size, 0, max(0, length - size)))
            for axis, length in ((0, whole.shape[1]), (1, whole.shape[0]))
        )
        tile = whole[y : y + size, x : x + size].transpose(2, 0, 1)
        array = np.zeros((1, tile.shape[0], size, size), np.uint8)
        array[0, :, : tile.shape[1], : tile.shape[2]] = tile
        rows.append({"picture": array})
        seen[name] += 1
    return rows, seen


def example() -> Request:
    """A small synthetic board and its golden twin."""
    made = make_board(SyntheticConfig(shape=(256, 256), defects=(2, 4), clean=0.0), 0)
    return Request(made.picture, made.golden)


def _distillation(config: PcbConfig) -> torch.nn.Module:
    from core.compression.distillation import DetectionDistillation  # training only

    return DetectionDistillation(boxes_weight=0.02)  # boxes are in pixels


INT8 = Limits(
    tensor=0.5, answers={"findings": 0.9, "counting": 0.4, "score": 0.6}, figure="map50", drop=1.5e-2, counts=True
)

LIMITS = {
    "float32": Limits(
        tensor=2e-3, answers={"findings": 2e-2, "counting": 1e-2, "score": 2e-2}, figure="map50", drop=1e-3
    ),
    "bfloat16": Limits(
        tensor=0.1, answers={"findings": 0.5, "counting": 0.2, "score": 0.3}, figure="map50", drop=5e-3, counts=True
    ),
    "int8": INT8,
    "int8-bfloat16": INT8,
}
"""A finding whose score lies near its threshold may count for one and not for the other: the score of all is what binds, as far as so many defects tell."""

APPLICATION = Application(
    name="manufacturing.pcb",
    title="PCB inspection",
    recipes=RECIPES,
    data=PcbData,
    task=task,
    constants=constants,
    model=model,
    forms={"tile": TileForm},
    whole=tuple(f"heads.{level}.{layer}" for level in range(len(STRIDES)) for layer in ("logits", "sides")),
    distillation=_distillation,
    limits=LIMITS,
    calibration=calibration,
    predictor=PcbPredictor,
    has_threshold=False,
    evaluate=evaluate,
    samples=samples,
    predict=predict,
    cost=cost,
    archive=None,
    check=check,
    synthesize=synthesize,
    remember=None,
    begins_filled=False,
    example=example,
    card=Path(__file__).parent / "README.md",
)
