"""A data set of boards, split by board: what is trained on and what judges never share a board, unless the list says so.

Published lists often tear boards apart (DeepPCB's do: all pictures of a group are cut from one scan). Such a list is refused,
unless `data.split` is `published`; then every table says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.errors import DataError, LeakError
from verticals.manufacturing.pcb.boards import Board, Listed
from verticals.manufacturing.pcb.formats import read_boards

Split = Literal["board", "published"]
SHARES = {"test": 0.2, "validation": 0.15}
"""Of boards, where a data set lists no such side."""


@dataclass(frozen=True)
class Dataset:
    """Boards by side, and their classes."""

    root: Path
    format: str
    classes: tuple[str, ...]
    sides: Mapping[str, tuple[Board, ...]]
    split: Split

    @classmethod
    def open(cls, root: Path | str, *, split: Split = "board", seed: int = 0) -> Dataset:
        """
        Args:
            split: `board` refuses lists that share a board; `published` takes them as they are.
            seed: of the split, where the data set has none.

        Raises:
            DataError: no data set, or its first fault.
            LeakError: a board on two sides.
        """
        root = Path(root)
        listed = read_boards(root)
        sides = _sides(listed, split, seed)
        if split == "board":
            _refuse_leaks(sides)
        _refuse_copies(sides)
        return cls(root, listed.format, listed.classes, sides, split)

    def boards(self, side: str) -> tuple[Board, ...]:
        """
        Raises:
            DataError: no such side, or no board on it.
        """
        if not self.sides.get(side):
            there = ", ".join(f"{name} ({len(boards)})" for name, boards in self.sides.items())
            raise DataError(
                f"the data set has no boards on the side {side!r}; there are {there}: list some for it, or add boards"
            )
        return self.sides[side]

    def for_training(self) -> Dataset:
        """Itself. Raises DataError where it is too small to train, to choose and to judge by."""
        for side in ("train", "validation", "test"):
            self.boards(side)
        return self

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Sources, counts and a hash of all that was read. Reads every file once."""
        total = hashlib.sha256()
        for side in sorted(self.sides):
            for board in self.sides[side]:
                total.update(f"{side} {board.name}\n".encode())
                for path in (board.picture, board.template):
                    if path is not None:
                        total.update(hashlib.sha256(path.read_bytes()).digest())
                total.update(np.ascontiguousarray(board.boxes.corners).tobytes() + board.boxes.classes.tobytes())
        counts = np.zeros(len(self.classes), np.int64)
        for boards in self.sides.values():
            for board in boards:
                counts += np.bincount(board.boxes.classes, minlength=len(self.classes))
        every = [board for side in self.sides.values() for board in side]
        return {
            "sources": [str(self.root)],
            "format": self.format,
            "split": self.split,
            "boards": {side: len(boards) for side, boards in self.sides.items()},
            "groups": {side: len({board.group for board in boards}) for side, boards in self.sides.items()},
            "groups_shared": sorted(_shared(self.sides)),
            "defects": dict(zip(self.classes, counts.tolist(), strict=True)),
            "without_defects": sum(not len(board.boxes.classes) for board in every),
            "with_template": sum(board.template is not None for board in every),
            "sha256": total.hexdigest(),
        }


def _sides(listed: Listed, split: Split, seed: int) -> dict[str, tuple[Board, ...]]:
    """Train, validation and test: as listed, and by board where the list lacks one."""
    sides = dict(listed.sides)
    if "all" in sides:
        rest, sides = sides["all"], {}
        rest, sides["test"] = _parted(rest, SHARES["test"], seed, by_group=True)
    else:
        rest = sides.get("train", ())
        if "test" not in sides and "validation" in sides:
            sides["test"] = sides.pop("validation")  # what its lists judge by
    if "test" not in sides:
        rest, sides["test"] = _parted(rest, SHARES["test"], seed, by_group=split == "board")
    if "validation" not in sides:
        rest, sides["validation"] = _parted(rest, SHARES["validation"], seed + 1, by_group=split == "board")
    return {"train": tuple(rest), "validation": tuple(sides["validation"]), "test": tuple(sides["test"])}


def _parted(
    boards: Sequence[Board], share: float, seed: int, *, by_group: bool
) -> tuple[tuple[Board, ...], tuple[Board, ...]]:
    """The rest, and about so many of them, by whole groups where asked."""
    random = np.random.default_rng(seed)
    kinds = sorted({board.group if by_group else board.name for board in boards})
    order = [kinds[place] for place in random.permutation(len(kinds))]
    sizes: dict[str, int] = {}
    for board in boards:
        key = board.group if by_group else board.name
        sizes[key] = sizes.get(key, 0) + 1
    chosen: set[str] = set()
    count, wanted = 0, share * len(boards)
    for key in order:
        if chosen and count + sizes[key] / 2 > wanted:
            continue
        if len(chosen) + 1 < len(kinds):
            chosen.add(key)
            count += sizes[key]
    rest = tuple(board for board in boards if (board.group if by_group else board.name) not in chosen)
    return rest, tuple(board for board in boards if (board.group if by_group else board.name) in chosen)


def _shared(sides: Mapping[str, Sequence[Board]]) -> set[str]:
    seen: dict[str, str] = {}
    shared = set()
    for side, boards in sides.items():
        for board in boards:
            if seen.setdefault(board.group, side) != side:
                shared.add(board.group)
    return shared


def _refuse_leaks(sides: Mapping[str, Sequence[Board]]) -> None:
    if shared := sorted(_shared(sides)):
        on = {side: sum(board.group == shared[0] for board in boards) for side, boards in sides.items()}
        counts = ", ".join(f"{count} on {side}" for side, count in on.items() if count)
        raise LeakError(
            f"board {shared[0]!r} has pictures on several sides ({counts}), as have {len(shared) - 1} others: figures would be too "
            "good. List each board on one side; or set data.split=published, and every table will say that the list shares boards"
        )


def _refuse_copies(sides: Mapping[str, Sequence[Board]]) -> None:
    """One picture on two sides, under whatever name."""
    by_size: dict[int, list[tuple[str, Board]]] = {}
    for side, boards in sides.items():
        for board in boards:
            by_size.setdefault(board.picture.stat().st_size, []).append((side, board))
    for rows in by_size.values():
        if len({side for side, _ in rows}) < 2:
            continue
        seen: dict[bytes, tuple[str, Board]] = {}
        for side, board in rows:
            known, other = seen.setdefault(hashlib.sha256(board.picture.read_bytes()).digest(), (side, board))
            if known != side:
                raise LeakError(
                    f"{board.name} on {side} and {other.name} on {known} are one picture; remove one of them"
                )
