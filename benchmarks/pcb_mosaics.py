"""Large boards made of DeepPCB's scans: real noise between board and golden board, and as many real defects as wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core.data.pictures import Picture
from verticals.manufacturing.boxes import Boxes, joined
from verticals.manufacturing.golden import GateConfig, align, differences, shifted
from verticals.manufacturing.pcb.data import PcbData
from verticals.manufacturing.pcb.evaluation import request_of


class Board(NamedTuple):
    """A mosaic."""

    picture: Picture
    golden: Picture
    defects: Boxes


def healed(data: PcbData, split: str) -> list[tuple[Picture, Picture, Boxes]]:
    """Scans, their templates in register, and the defects."""
    found = []
    for board in data.samples(split):
        request = request_of(data, board)
        assert request.golden is not None
        found.append((request.picture, align(request.picture, request.golden, search=32).golden, board.boxes))
    return found


def mosaic(
    scans: Sequence[tuple[Picture, Picture, Boxes]], side: int, defects: int, random: np.random.Generator
) -> Board:
    """A board of scans side by side, with so many defects left."""
    cell = scans[0][0].shape[0]
    count = -(-side // cell)
    picture, golden = (np.zeros((count * cell, count * cell, 1), np.uint8) for _ in range(2))
    places: list[Boxes] = []
    for number, chosen in enumerate(random.choice(len(scans), count**2, replace=len(scans) < count**2)):
        y, x = (at * cell for at in divmod(number, count))
        scan, twin, boxes = scans[chosen]
        picture[y : y + cell, x : x + cell], golden[y : y + cell, x : x + cell] = scan, twin
        places.append(boxes.shifted(x, y))
    every = joined(places)
    inside = np.nonzero((every.corners >= 8).all(1) & (every.corners <= side - 8).all(1))[0]
    left = random.choice(inside, min(defects, len(inside)), replace=False)
    for place in np.setdiff1d(np.arange(len(every.scores)), left):
        x1, y1, x2, y2 = (int(value) for value in every.corners[place])
        part = slice(max(0, y1 - 2), y2 + 2), slice(max(0, x1 - 2), x2 + 2)
        kept = [box for box in every.corners[left] if box[0] < x2 and box[2] > x1 and box[1] < y2 and box[3] > y1]
        if not kept:
            picture[part] = golden[part]
    right, down = (int(value) for value in random.integers(-3, 4, 2))
    moved = shifted(picture[:side, :side], right, down)
    return Board(moved, np.ascontiguousarray(golden[:side, :side]), every.take(left).shifted(right, down))


def seen_by_gate(scans: Sequence[tuple[Picture, Picture, Boxes]], gate: GateConfig) -> tuple[int, int]:
    """Defects of the test scans in whose box a pixel differs by more than the gate's noise, and all."""
    hits = [
        bool(differs[int(y1) : int(y2), int(x1) : int(x2)].any())
        for scan, golden, boxes in scans
        for differs in [differences(scan, golden, gate)]
        for x1, y1, x2, y2 in boxes.corners
    ]
    return sum(hits), len(hits)
