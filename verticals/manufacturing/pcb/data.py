"""The application's data: boards, and tiles cut from them on the fly for training. C channel, the template's last; S side."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.data.ahead import ahead
from core.data.pictures import Picture, read_picture
from core.errors import ConfigError, DataError
from verticals.manufacturing.boxes import Boxes
from verticals.manufacturing.pcb.augment import augmented
from verticals.manufacturing.pcb.boards import Board
from verticals.manufacturing.pcb.config import DataConfig, PcbConfig
from verticals.manufacturing.pcb.dataset import Dataset
from verticals.manufacturing.pcb.synthetic import write_dataset
from verticals.manufacturing.pcb.task import Batch

JITTER = 0.35
"""Largest distance from a tile's middle to the defect it is drawn around, in sides."""


class PcbData:
    """Boards by split, and batches of tiles. Pictures are read when they are asked for."""

    def __init__(self, config: PcbConfig, dataset: Dataset | None = None) -> None:
        """
        Args:
            dataset: to judge a model by; where None, the configuration's is opened, to train one.

        Raises:
            DataError: the first fault of the data set, no board on one of its sides where it is to train, or a board without a
                template where the network sees one.
            LeakError: a board on two sides of the split.
        """
        self.config = config
        if dataset is not None:
            self.dataset = dataset
        elif config.data.sources:
            given = config.data
            self.dataset = Dataset.open(given.sources[0], split=given.split, seed=given.split_seed).for_training()
        else:
            made = tempfile.mkdtemp(prefix="synthetic-")
            weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
            write_dataset(config.data.synthetic, Path(made) / "synthetic")
            self.dataset = Dataset.open(Path(made) / "synthetic")
        self._boards = self.dataset.sides.get("train", ())
        self._cache = _Cache(config.data, int(config.sampler.cache_gb * 1e9))
        if config.data.template:
            lacking = [
                board.name for boards in self.dataset.sides.values() for board in boards if board.template is None
            ]
            if lacking:
                raise DataError(
                    f"{len(lacking)} boards have no golden template, {lacking[0]!r} first: put it into a folder `templates` beside "
                    "`images`, under the picture's name; or train without, by data.template=false"
                )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Reads every file once."""
        return self.dataset.fingerprint

    def num_batches(self, *, world_size: int, epoch: int) -> int:
        """Raises ConfigError where a batch cannot be shared out evenly."""
        if self.config.sampler.batch_size % world_size:
            raise ConfigError(
                f"a batch of {self.config.sampler.batch_size} tiles over {world_size} processes; set sampler.batch_size to a multiple"
            )
        return self.config.sampler.num_batches

    def train(self, *, rank: int, world_size: int, epoch: int) -> Iterator[Batch]:
        """This rank's part of each global batch: the ranks' parts one after the other are the batch."""
        if not self._boards:
            raise DataError("no board to train on; list some for training")
        sampler = self.config.sampler
        own = sampler.batch_size // world_size
        order = self._order(epoch)
        tasks = (
            partial(self._batch, order, epoch, step * sampler.batch_size + rank * own, own)
            for step in range(self.num_batches(world_size=world_size, epoch=epoch))
        )
        return ahead(tasks, num_workers=sampler.num_workers)

    def samples(self, split: str) -> tuple[Board, ...]:
        """The boards of `train`, `validation` or `test`; `all` are those of every side.

        Raises:
            DataError: no such split, or no board in it.
        """
        if split == "all":
            return tuple(board for boards in self.dataset.sides.values() for board in boards)
        return self.dataset.boards(split)

    def read(self, board: Board) -> Picture:
        """[Y, X, C] uint8, the template's channels last. Raises DataError."""
        return self._cache.read(board)

    def _order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Place of the board of each tile of an epoch: each board as often as the others, or once more."""
        sampler = self.config.sampler
        random = np.random.default_rng([sampler.seed, epoch])
        count = -(-sampler.num_batches * sampler.batch_size // sampler.tiles_per_board)
        rounds = [random.permutation(len(self._boards)) for _ in range(-(-count // len(self._boards)))]
        return np.repeat(np.concatenate(rounds)[:count], sampler.tiles_per_board)

    def _batch(self, order: np.ndarray[Any, np.dtype[np.int64]], epoch: int, first: int, count: int) -> Batch:
        tiles = [self._tile(self._boards[order[number]], epoch, number) for number in range(first, first + count)]
        most = max(1, *(len(boxes.classes) for _, boxes in tiles))
        corners, classes = np.zeros((count, most, 4), np.float32), np.full((count, most), -1, np.int64)
        for place, (_, boxes) in enumerate(tiles):
            corners[place, : len(boxes.classes)] = boxes.corners
            classes[place, : len(boxes.classes)] = boxes.classes
        pictures = np.stack([tile.transpose(2, 0, 1) for tile, _ in tiles])
        return Batch(torch.from_numpy(pictures), torch.from_numpy(corners), torch.from_numpy(classes))

    def _tile(self, board: Board, epoch: int, number: int) -> tuple[Picture, Boxes]:
        sampler = self.config.sampler
        random = np.random.default_rng([sampler.seed, epoch, number])
        whole = self.read(board)
        height, width = whole.shape[:2]
        size = sampler.tile
        if len(board.boxes.classes) and random.random() < sampler.foreground:
            box = board.boxes.corners[random.integers(len(board.boxes.classes))]
            middle = (box[:2] + box[2:]) / 2 + random.uniform(-JITTER, JITTER, 2) * size
            x, y = (int(place) - size // 2 for place in middle)
            x, y = (max(0, min(place, length - size)) for place, length in ((x, width), (y, height)))
        else:
            x, y = (int(random.integers(max(1, length - size + 1))) for length in (width, height))
        tile = whole[y : y + size, x : x + size]
        boxes = visible(board.boxes.shifted(-x, -y), (size, size), sampler.least_visible)
        if tile.shape[:2] != (size, size):
            tile = np.pad(tile, [(0, size - tile.shape[0]), (0, size - tile.shape[1]), (0, 0)])
        if sampler.augment is None:
            return np.ascontiguousarray(tile), boxes
        return augmented(tile, boxes, self.config.data.num_channels, sampler.augment, random)


def visible(boxes: Boxes, size: tuple[int, int], least: float) -> Boxes:
    """What a tile shows of boxes: those of which it shows too little are left out.

    Long ones are shown where their whole width is, over twice that length.

    Args:
        size: width and height of the tile.
        least: share of the area.
    """
    edges = np.array([*size, *size], np.float32)
    corners = np.clip(boxes.corners, 0, edges)
    sides, whole = corners[:, 2:] - corners[:, :2], boxes.corners[:, 2:] - boxes.corners[:, :2]
    share = sides.prod(1) / np.maximum(whole.prod(1), 1e-6)
    short = whole.min(1)
    is_long = (sides.min(1) >= 0.9 * short) & (sides.max(1) >= 2 * short)
    return boxes._replace(corners=corners).take((sides.min(1) > 1) & ((share >= least) | is_long))


class _Cache:
    """Decoded boards, those used last, in as many bytes as allowed. Several threads may ask."""

    def __init__(self, config: DataConfig, most_bytes: int) -> None:
        self._config, self._most, self._held = config, most_bytes, 0
        self._boards: OrderedDict[str, Picture] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, board: Board) -> Picture:
        key = str(board.picture)
        with self._lock:
            if key in self._boards:
                self._boards.move_to_end(key)
                return self._boards[key]
        picture = self._decoded(board)
        with self._lock:
            if key not in self._boards and picture.nbytes <= self._most:
                self._boards[key] = picture
                self._held += picture.nbytes
                while self._held > self._most:
                    self._held -= self._boards.popitem(last=False)[1].nbytes
        return picture

    def _decoded(self, board: Board) -> Picture:
        paths = [board.picture, *([board.template] if self._config.template and board.template else [])]
        parts = [read_picture(path, num_channels=self._config.num_channels, white=self._config.white) for path in paths]
        if len(parts) == 2 and parts[0].shape != parts[1].shape:
            sizes = [f"{part.shape[1]} x {part.shape[0]}" for part in parts]
            raise DataError(
                f"{board.name} has {sizes[0]} pixels and its golden template {sizes[1]}; they have to be in register"
            )
        return np.concatenate(parts, axis=2)
