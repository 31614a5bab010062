"""Synthetic boards with a known answer: traces, pads and vias at random pitch, six kinds of defects, and the golden twin.

Nets are walks over a grid of nodes that share none, so that it is known where copper is, where it is not, and what lies beside
it: an open cuts a trace, a short joins two nets, a mouse bite and a spur change a trace's edge, copper lies where there was
none, a pin-hole goes through a pad. A box is what the defect changed, and a margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from core.config import Config
from core.data.pictures import Picture
from core.errors import DataError
from verticals.manufacturing.boxes import Boxes, boxes_of
from verticals.manufacturing.pcb.boards import Board, Listed
from verticals.manufacturing.pcb.formats import coco

CLASSES = ("open", "short", "mousebite", "spur", "copper", "pin-hole")
MARGIN = 3
"""Pixels that a box shows around what a defect changed."""
_STEPS = ((0, 1), (0, -1), (1, 0), (-1, 0))
Node = tuple[int, int]
"""Row and column."""
Point = tuple[float, float]
Corners = tuple[int, int, int, int]
Made = tuple[Corners, Sequence[Node]]
"""A defect's box, and the nodes that it lies at."""


class SyntheticConfig(Config):
    """How many boards are made up, and how they look."""

    num_boards: int = Field(24, ge=5)
    """Boards: a fifth is for testing, a sixth for validation, the rest for training."""
    shape: tuple[int, int] = (640, 640)
    """Height and width in pixels, up to 4096 and more."""
    pitch: tuple[int, int] = (28, 48)
    """Pixels from trace to trace; each board's own is drawn from the range."""
    defects: tuple[int, int] = (3, 12)
    """The fewest and the most of a board."""
    clean: float = Field(0.1, ge=0, le=1)
    """Share of boards without a defect."""
    noise: float = Field(4.0, ge=0)
    """Standard deviation of the noise in grey values."""
    shift: int = Field(0, ge=0)
    """Pixels by which a board may lie off its golden twin."""
    seed: int = Field(0, ge=0)
    """Of everything random."""


@dataclass(frozen=True)
class MadeBoard:
    """A board that was made up."""

    picture: Picture
    """[Y, X, 1]."""
    golden: Picture
    """Its twin without defects, taken apart: its noise is its own."""
    boxes: Boxes


def make_board(config: SyntheticConfig, seed: int, *, num_defects: int | None = None) -> MadeBoard:
    """
    Args:
        seed: of this board, beside the configuration's.
        num_defects: as many as the board has room for; drawn from the configuration's range where None.
    """
    random = np.random.default_rng((config.seed, seed))
    layout = _Layout(config, random)
    clean = layout.copper.copy()
    if num_defects is None:
        is_clean = random.random() < config.clean
        num_defects = 0 if is_clean else int(random.integers(config.defects[0], config.defects[1] + 1))
    boxes = layout.spoil(num_defects)
    right, down = (int(random.integers(-config.shift, config.shift + 1)) for _ in range(2))
    tones = random.uniform(40, 80), random.uniform(170, 215)
    picture = _photograph(layout.copper, tones, config.noise, random, right=right, down=down)
    golden = _photograph(clean, tones, config.noise, random)
    height, width = config.shape
    return MadeBoard(picture, golden, boxes.shifted(right, down).within(width, height))


def _photograph(
    copper: NDArray[np.uint8],
    tones: tuple[float, float],
    noise: float,
    random: np.random.Generator,
    *,
    right: int = 0,
    down: int = 0,
) -> Picture:
    """As a camera sees it: two tones, soft edges, noise."""
    seen = copper if not right and not down else np.roll(copper, (down, right), axis=(0, 1))
    soft = cv2.GaussianBlur(np.where(seen > 0, np.float32(tones[1]), np.float32(tones[0])), (0, 0), 0.7)
    picture = soft + noise * random.standard_normal(soft.shape, np.float32)
    grey: Picture = np.asarray(np.clip(np.rint(picture), 0, 255), np.uint8)
    return grey[..., None]


class _Layout:
    """Nets on a grid of nodes, and the copper they leave."""

    def __init__(self, config: SyntheticConfig, random: np.random.Generator) -> None:
        self.random = random
        height, width = config.shape
        self.pitch = int(random.integers(config.pitch[0], config.pitch[1] + 1))
        self.trace = max(4, round(self.pitch * random.uniform(0.28, 0.4)))
        self.rows, self.columns = max(2, height // self.pitch - 1), max(2, width // self.pitch - 1)
        self.copper = np.zeros((height, width), np.uint8)
        self.net: dict[Node, int] = {}
        self.pads: list[Node] = []
        self.straight: list[tuple[Node, Node]] = []
        order = random.permutation(self.rows * self.columns)
        for number, place in enumerate(order.tolist()):
            self._walk(number, divmod(place, self.columns))
        self.spoiled: set[Node] = set()
        self._nodes: list[Node] = []

    def _at(self, node: Node) -> tuple[int, int]:
        """x, y in pixels."""
        return (node[1] + 1) * self.pitch, (node[0] + 1) * self.pitch

    def _walk(self, number: int, start: Node) -> None:
        """A net from a free node on, straight for the most part; a fifth of the nodes stay free."""
        if start in self.net or self.random.random() < 0.25:
            return
        path, step = [start], _STEPS[int(self.random.integers(4))]
        self.net[start] = number
        for _ in range(int(self.random.integers(2, 16))):
            if self.random.random() < 0.2:
                step = _STEPS[int(self.random.integers(4))]
            after = path[-1][0] + step[0], path[-1][1] + step[1]
            if not (0 <= after[0] < self.rows and 0 <= after[1] < self.columns) or after in self.net:
                break
            self.net[after] = number
            path.append(after)
        for one, other in pairwise(path):
            cv2.line(self.copper, self._at(one), self._at(other), 255, self.trace)
            self.straight.append((one, other))
        for end in {path[0], path[-1]}:
            self._pad(end)

    def _pad(self, node: Node) -> None:
        x, y = self._at(node)
        radius = max(self.trace // 2 + 3, round(self.pitch * 0.34))
        kind = self.random.random()
        if kind < 0.4:
            cv2.circle(self.copper, (x, y), radius, 255, -1)
            self.pads.append(node)
        elif kind < 0.7:
            cv2.rectangle(self.copper, (x - radius, y - radius), (x + radius, y + radius), 255, -1)
            self.pads.append(node)
        else:  # a via
            cv2.circle(self.copper, (x, y), radius, 255, -1)
            cv2.circle(self.copper, (x, y), max(2, radius // 2), 0, -1)

    def spoil(self, count: int) -> Boxes:
        """So many defects of all kinds in turn, each at a place of its own; fewer where there is no room."""
        corners, classes = [], []
        kinds = self.random.permutation(len(CLASSES))
        for number in range(count):
            for more in range(len(CLASSES)):
                kind = int(kinds[(number + more) % len(CLASSES)])
                box = self._spoiled(kind)
                if box is not None:
                    corners.append(box)
                    classes.append(kind)
                    break
        return boxes_of(corners, classes)

    def _spoiled(self, kind: int) -> Corners | None:
        """A defect of a kind somewhere, and the box around it; None where fifty places had no room."""
        spoil = (self._open, self._short, self._bite, self._spur, self._blob, self._hole)[kind]
        for _ in range(50):
            if (made := spoil()) is not None:
                box, nodes = made
                self.spoiled |= {(n[0] + r, n[1] + c) for n in nodes for r in (-1, 0, 1) for c in (-1, 0, 1)}
                return box
        return None

    def _open(self) -> Made | None:
        """A gap across a trace."""
        if (edge := self._edge()) is None:
            return None
        middle, along, across = self._along(*edge)
        half, wide = self.pitch * self.random.uniform(0.06, 0.14), self.trace / 2 + 2
        return self._painted(middle, _corners(middle, along, across, half, wide), 0, edge)

    def _short(self) -> Made | None:
        """Copper from a net to the one beside it."""
        node = self._used()
        step = _STEPS[int(self.random.integers(4))]
        other = node[0] + step[0], node[1] + step[1]
        if self.net.get(other, self.net[node]) == self.net[node] or not self._fresh(node, other):
            return None
        middle, along, across = self._along(node, other)
        outline = _corners(middle, along, across, self.pitch / 2, self.trace * self.random.uniform(0.25, 0.5))
        return self._painted(middle, outline, 255, (node, other))

    def _bite(self) -> Made | None:
        """A dent in the edge of a trace."""
        return self._at_edge(0, self.trace * self.random.uniform(0.3, 0.45))

    def _spur(self) -> Made | None:
        """A thorn on the edge of a trace."""
        return self._at_edge(255, max(3.0, (self.pitch - self.trace) * self.random.uniform(0.2, 0.35)))

    def _at_edge(self, value: int, radius: float) -> Made | None:
        if (edge := self._edge()) is None:
            return None
        (x, y), along, across = self._along(*edge)
        side = self.random.choice((-1, 1)) * self.trace / 2
        place = x + side * across[0], y + side * across[1]
        stretch = self.random.uniform(0.7, 1.0)
        return self._painted(place, _round(place, along, across, radius * stretch, radius), value, edge)

    def _blob(self) -> Made | None:
        """Copper where there is none."""
        node = int(self.random.integers(self.rows)), int(self.random.integers(self.columns))
        if node in self.net or not self._fresh(node):
            return None
        place = self._at(node)
        radius = self.pitch * self.random.uniform(0.1, 0.24)
        return self._painted(
            place, _round(place, (1, 0), (0, 1), radius, radius * self.random.uniform(0.7, 1)), 255, (node,)
        )

    def _hole(self) -> Made | None:
        """A hole in a pad."""
        if not self.pads:
            return None
        node = self.pads[int(self.random.integers(len(self.pads)))]
        if not self._fresh(node):
            return None
        (x, y), reach = self._at(node), self.pitch * 0.12
        place = x + self.random.uniform(-reach, reach), y + self.random.uniform(-reach, reach)
        radius = max(2.0, self.pitch * self.random.uniform(0.07, 0.13))
        return self._painted(place, _round(place, (1, 0), (0, 1), radius, radius), 0, (node,))

    def _used(self) -> Node:
        if not self._nodes:
            self._nodes = list(self.net)
        return self._nodes[int(self.random.integers(len(self._nodes)))]

    def _edge(self) -> tuple[Node, Node] | None:
        """A straight piece of trace that no defect is near; None where the one that was drawn is not."""
        if not self.straight:
            return None
        one, other = self.straight[int(self.random.integers(len(self.straight)))]
        return (one, other) if self._fresh(one, other) else None

    def _fresh(self, *nodes: Node) -> bool:
        return self.spoiled.isdisjoint(nodes)

    def _along(self, one: Node, other: Node) -> tuple[Point, Point, Point]:
        """The middle of an edge, the direction along it and the one across."""
        (x1, y1), (x2, y2) = self._at(one), self._at(other)
        along = (x2 - x1) / self.pitch, (y2 - y1) / self.pitch
        return ((x1 + x2) / 2, (y1 + y2) / 2), along, (-along[1], along[0])

    def _painted(self, middle: Point, outline: NDArray[np.int32], value: int, nodes: Sequence[Node]) -> Made | None:
        """Fills the outline; None, and nothing is changed, where hardly a pixel differs."""
        left, top = (max(0, int(place) - self.pitch) for place in middle)
        part = self.copper[top : top + 2 * self.pitch, left : left + 2 * self.pitch]
        before = part.copy()
        cv2.fillPoly(self.copper, [outline], value)
        ys, xs = np.nonzero(part != before)
        if len(ys) < 8:
            part[:] = before
            return None
        x1, y1, x2, y2 = left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1
        return (int(x1) - MARGIN, int(y1) - MARGIN, int(x2) + MARGIN, int(y2) + MARGIN), nodes


def _corners(middle: Point, along: Point, across: Point, half: float, wide: float) -> NDArray[np.int32]:
    """A rectangle's outline, half as long along as across is half as wide."""
    places = [
        [middle[axis] + a * half * along[axis] + b * wide * across[axis] for axis in (0, 1)]
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    return np.rint(places).astype(np.int32)


def _round(middle: Point, along: Point, across: Point, half: float, wide: float) -> NDArray[np.int32]:
    """An ellipse's outline."""
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    places = [middle[axis] + half * np.cos(turn) * along[axis] + wide * np.sin(turn) * across[axis] for axis in (0, 1)]
    return np.rint(np.stack(places, axis=1)).astype(np.int32)


def write_dataset(config: SyntheticConfig, folder: Path) -> dict[str, Any]:
    """Writes boards, golden twins and COCO annotations of three sides into a new folder.

    Raises:
        DataError: the folder exists.
    """
    try:
        folder.mkdir()
    except FileExistsError:
        raise DataError(f"{folder} exists; name a new folder for the synthetic boards") from None
    for name in ("images", "templates"):
        (folder / name).mkdir()
    num_test, num_validation = max(1, config.num_boards // 5), max(1, config.num_boards // 6)
    order = [*["test"] * num_test, *["validation"] * num_validation]
    sides: dict[str, list[Board]] = {"train": [], "validation": [], "test": []}
    for number in range(config.num_boards):
        made, name = make_board(config, number), f"board_{number:03d}"
        paths = [folder / place / f"{name}.png" for place in ("images", "templates")]
        for path, picture in zip(paths, (made.picture, made.golden), strict=True):
            path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
        side = order[number] if number < len(order) else "train"
        sides[side].append(Board(name, paths[0], made.boxes, group=name, template=paths[1]))
    listed = Listed("coco", CLASSES, {side: tuple(boards) for side, boards in sides.items()})
    coco.write(folder, listed, lambda picture, target: picture)  # where they lie already
    drawn = np.concatenate([board.boxes.classes for board in listed.boards])
    counts = np.bincount(drawn, minlength=len(CLASSES)).tolist()
    return {
        "boards": {side: len(boards) for side, boards in sides.items()},
        "defects": dict(zip(CLASSES, counts, strict=True)),
    }
