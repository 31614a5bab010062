# ruff: noqa: E402
"""Boxes of overlapping tiles put together over the whole board: ours beside SAHI's and supervision's merges, the same boxes for all.

    python benchmarks/pcb_merge.py [--quick] [--json FILE] [--seeds N]

Scenes of 4096 x 4096 pixels, 64 tiles of 640, each box cut at the tiles' borders as a perfect detector would see it, and by a
noisy one: sides off by a normal error of 3 pixels, one box in ten dropped. F1 at an overlap of .5, the mean over seeds. Peers are
shown with their defaults and with the best of a grid of settings, chosen for each row on these same scenes: an upper bound.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import supervision
from numpy.typing import NDArray
from sahi.postprocess.combine import GreedyNMMPostprocess, NMMPostprocess, NMSPostprocess
from sahi.prediction import ObjectPrediction
from supervision.detection.utils.iou_and_nms import OverlapMetric

from benchmarks.tables import Record, goal, keep, table
from core.data.tiling import Tile, tiles
from core.device import machine
from verticals.manufacturing.boxes import Boxes, boxes_of, joined, overlap
from verticals.manufacturing.merge import merge

SIDE, TILE, OVERLAP = 4096, 640, 0.2
NUM_BOXES, NUM_CLASSES = 300, 3
LEAST_PIXELS = 4
"""A detector sees no piece that is narrower."""
JITTER, DROPPED = 3.0, 0.1
WITHIN = 0.005
MOST_MS = 50.0

Scene = Callable[[np.random.Generator], list[tuple[float, float, float, float]]]
Merge = Callable[[Sequence[Boxes], Sequence[Tile]], Boxes]


def isolated(random: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """Boxes of 16 to 80 pixels, none nearer to another than 8."""
    return _apart(random, lambda: random.uniform(16, 80, 2), gap=8)


def dense(random: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """Blocks of small boxes side by side, 2 to 6 pixels apart."""
    found: list[tuple[float, float, float, float]] = []
    while len(found) < NUM_BOXES:
        rows, columns = random.integers(3, 8, 2)
        width, height = random.uniform(14, 40, 2)
        gap = random.uniform(2, 6)
        x, y = random.uniform(0, SIDE - columns * (width + gap)), random.uniform(0, SIDE - rows * (height + gap))
        block = (x - 8, y - 8, x + columns * (width + gap) + 8, y + rows * (height + gap) + 8)
        if any(_meet(block, box) for box in found):
            continue
        found += [
            (
                x + c * (width + gap),
                y + r * (height + gap),
                x + c * (width + gap) + width,
                y + r * (height + gap) + height,
            )
            for r, c in product(range(rows), range(columns))
        ]
    return found[:NUM_BOXES]


def nested(random: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """Large boxes, each with one to three small ones inside."""
    found = []
    for x1, y1, x2, y2 in _apart(random, lambda: random.uniform(90, 320, 2), gap=8, count=NUM_BOXES // 3):
        found.append((x1, y1, x2, y2))
        inner: list[tuple[float, float, float, float]] = []
        for _ in range(int(random.integers(1, 4))):
            width, height = random.uniform(16, 40, 2)
            x, y = random.uniform(x1 + 4, x2 - width - 4), random.uniform(y1 + 4, y2 - height - 4)
            box = (x, y, x + width, y + height)
            if not any(_meet(box, other) for other in inner):
                inner.append(box)
        found += inner
    return found


def long_thin(random: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """Lines of 300 to 2,500 pixels, 8 to 20 wide, across many tiles."""

    def size() -> NDArray[np.float64]:
        long, thin = random.uniform(300, 2500), random.uniform(8, 20)
        return np.array([long, thin] if random.random() < 0.5 else [thin, long])

    return _apart(random, size, gap=10, count=120)


def mixed(random: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """Boxes of 8 to 500 pixels anywhere, that may overlap by less than .3."""
    found: list[tuple[float, float, float, float]] = []
    while len(found) < NUM_BOXES:
        width, height = np.exp(random.uniform(np.log(8), np.log(500), 2))
        x, y = random.uniform(0, SIDE - width), random.uniform(0, SIDE - height)
        box = (x, y, x + width, y + height)
        if not found or overlap(np.array(box), np.array(found)).max() < 0.3:
            found.append(box)
    return found


SCENES: dict[str, Scene] = {
    "isolated": isolated,
    "dense": dense,
    "nested": nested,
    "long, thin": long_thin,
    "random": mixed,
}


def _apart(
    random: np.random.Generator, size: Callable[[], NDArray[np.float64]], *, gap: float, count: int = NUM_BOXES
) -> list[tuple[float, float, float, float]]:
    found: list[tuple[float, float, float, float]] = []
    for _ in range(100 * count):
        if len(found) == count:
            break
        width, height = size()
        x, y = random.uniform(0, SIDE - width), random.uniform(0, SIDE - height)
        if not any(_meet((x - gap, y - gap, x + width + gap, y + height + gap), box) for box in found):
            found.append((x, y, x + width, y + height))
    return found


def _meet(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def drawn_on(scene: Scene, seed: int) -> Boxes:
    random = np.random.default_rng(seed)
    corners = scene(random)
    return boxes_of(
        corners, random.integers(0, NUM_CLASSES, len(corners)) if scene is not nested else np.zeros(len(corners), int)
    )


def seen(drawn: Boxes, grid: Sequence[Tile], *, noisy: bool, seed: int) -> list[Boxes]:
    """What a detector finds in each tile, in pixels of the board."""
    random = np.random.default_rng([seed, noisy])
    found = []
    for rows, columns in grid:
        area = np.array([columns.start, rows.start, columns.stop, rows.stop], np.float64)
        low, high = np.maximum(drawn.corners[:, :2], area[:2]), np.minimum(drawn.corners[:, 2:], area[2:])
        there = np.flatnonzero(((high - low) >= LEAST_PIXELS).all(1))
        corners = np.concatenate((low, high), axis=1)[there].astype(np.float64)
        scores = random.uniform(0.6, 1.0, len(there))
        if noisy:
            corners += random.normal(0, JITTER, corners.shape)
            corners = np.clip(corners, area[[0, 1, 0, 1]], area[[2, 3, 2, 3]])
            usable = (corners[:, 2:] > corners[:, :2]).all(1) & (random.random(len(there)) >= DROPPED)
            corners, there, scores = corners[usable], there[usable], scores[usable]
        found.append(boxes_of(corners, drawn.classes[there], scores))
    return found


def f1(found: Boxes, drawn: Boxes) -> float:
    """At an overlap of .5, found boxes of the best scores first."""
    free = np.ones(len(drawn.scores), bool)
    right = 0
    for place in np.argsort(-found.scores, kind="stable"):
        shared = overlap(found.corners[place], drawn.corners)
        shared[(drawn.classes != found.classes[place]) | ~free] = 0
        if len(shared) and shared.max() >= 0.5:
            free[shared.argmax()] = False
            right += 1
    return 2 * right / max(1, len(found.scores) + len(drawn.scores))


def ours(found: Sequence[Boxes], grid: Sequence[Tile]) -> Boxes:
    return merge(found, grid, (SIDE, SIDE))


def of_sahi(kind: type, metric: str, threshold: float) -> Merge:
    def run(found: Sequence[Boxes], grid: Sequence[Tile]) -> Boxes:
        every = joined(found)
        objects = [
            ObjectPrediction(
                bbox=box,
                category_id=int(number),
                category_name=str(number),
                score=float(score),
                shift_amount=[0, 0],
                full_shape=[SIDE, SIDE],
            )
            for box, number, score in zip(every.corners.tolist(), every.classes, every.scores, strict=True)
        ]
        kept = kind(match_threshold=threshold, match_metric=metric, class_agnostic=False)(objects)
        return boxes_of(
            [one.bbox.to_xyxy() for one in kept], [one.category.id for one in kept], [one.score.value for one in kept]
        )

    return run


def of_supervision(name: str, metric: OverlapMetric, threshold: float) -> Merge:
    def run(found: Sequence[Boxes], grid: Sequence[Tile]) -> Boxes:
        every = joined(found)
        if not len(every.scores):
            return every
        detections = supervision.Detections(
            xyxy=every.corners.astype(np.float64), confidence=every.scores, class_id=every.classes
        )
        kept = getattr(detections, name)(threshold=threshold, class_agnostic=False, overlap_metric=metric)
        return boxes_of(kept.xyxy, kept.class_id, kept.confidence)

    return run


def peers() -> Iterator[tuple[str, str, bool, Merge]]:
    """Library, settings, whether they are its defaults for sliced pictures, and the merge."""
    thresholds = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8)
    for kind, metric, threshold in product(
        (GreedyNMMPostprocess, NMMPostprocess, NMSPostprocess), ("IOS", "IOU"), thresholds
    ):
        default = (kind, metric, threshold) == (GreedyNMMPostprocess, "IOS", 0.5)
        yield (
            "SAHI",
            f"{kind.__name__.removesuffix('Postprocess')} {metric} {threshold}",
            default,
            of_sahi(kind, metric, threshold),
        )
    for name, shared, threshold in product(
        ("with_nms", "with_nmm"), (OverlapMetric.IOU, OverlapMetric.IOS), thresholds
    ):
        default = (name, shared, threshold) == ("with_nms", OverlapMetric.IOU, 0.5)
        yield (
            "supervision",
            f"{name.removeprefix('with_')} {shared.value} {threshold}",
            default,
            of_supervision(name, shared, threshold),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, defaults only, under a minute")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--first-seed", type=int, default=0, help="scenes of other seeds than those that were looked at"
    )
    given = parser.parse_args()
    seeds = range(given.first_seed, given.first_seed + (1 if given.quick else given.seeds))
    grid = tiles((SIDE, SIDE), (TILE, TILE), OVERLAP)
    others = [peer for peer in peers() if peer[2] or not given.quick]
    rows: list[Record] = []
    goals = []
    for (name, scene), noisy in product(SCENES.items(), (False, True)):
        scores: dict[str, list[float]] = {"ours": []}
        ms = []
        for seed in seeds:
            drawn = drawn_on(scene, seed)
            found = seen(drawn, grid, noisy=noisy, seed=seed)
            merge(found, grid, (SIDE, SIDE))
            started = time.perf_counter()
            merged = ours(found, grid)
            ms.append(1e3 * (time.perf_counter() - started))
            scores["ours"].append(f1(merged, drawn))
            for library, settings, _, run in others:
                scores.setdefault(f"{library} {settings}", []).append(f1(run(found, grid), drawn))
        means = {key: float(np.mean(values)) for key, values in scores.items()}
        row: Record = {"scene": name + (", noisy" if noisy else ""), "ours": round(means["ours"], 4)}
        for library in ("SAHI", "supervision"):
            default = next(
                f"{lib} {settings}" for lib, settings, is_default, _ in others if lib == library and is_default
            )
            best = max((key for key in means if key.startswith(library)), key=means.__getitem__)
            row |= {
                f"{library}, default": round(means[default], 4),
                f"{library}, best": round(means[best], 4),
                f"{library}'s best": best.removeprefix(library).strip(),
            }
        row["ours, ms"] = round(float(np.median(ms)), 1)
        rows.append(row)
        most = max(value for key, value in means.items() if key != "ours")
        goals.append(goal(f"{row['scene']}: best, or within {WITHIN}", means["ours"] >= most - WITHIN))
        goals.append(goal(f"{row['scene']}: at most {MOST_MS:g} ms", float(row["ours, ms"]) <= MOST_MS))
        print(row["scene"], file=sys.stderr)
    here = machine()
    table(f"F1 at .5, {len(seeds)} seeds, {len(grid)} tiles", rows, f"{here['cpu']}, {here['cores']} cores")
    keep(given.json, machine=here, rows=rows, goals=goals)


if __name__ == "__main__":
    main()
