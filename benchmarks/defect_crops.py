"""Defects cut out of printed circuit boards (DeepPCB) and of hot-rolled steel (NEU-DET), one square a box, as training
and test sets, and the views of them a network sees.

Axes: N crop, B batch, S side of a stored crop, R side of a view (pixels). A stored crop is wider than a view, so that
a view may be shifted. A network that is trained at one size of views and run at another loses most of what it learned, so
views are scored at the size they were trained at. The golden template of a board is not used.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from core.errors import DataError

BOARD_CLASSES = ("open", "short", "mousebite", "spur", "copper", "pin-hole")
"""In the order of DeepPCB's types 1 to 6."""
STEEL_CLASSES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")
NUM_BOARD_BOXES = {"trainval": 6873, "test": 1578}
"""Boxes of the official lists, as far as their pairs are here: all 1,000 of trainval and 250 of test. `wc -l` counts
6,872 in trainval, since one file has no newline at its end."""
NUM_STEEL_IMAGES, NUM_STEEL_BOXES = 600, 1422
VALIDATION_BOARDS = ("group44000", "group50600", "group92000")
"""Boards of trainval to choose a recipe on: most test boxes are of boards that training never sees."""

SIDE = 128
"""Of the view that is trained on and scored."""
STORED_SIDE = 144
MARGIN = 1.25
"""How much wider than a view a stored crop is."""
CONTEXT = 1.25
"""Side of a view, as a multiple of the longer side of the box. Boxes are drawn wide."""
SMALLEST_BOARD_VIEW, SMALLEST_STEEL_VIEW = 40, 64
"""Least side of a view, pixels of the image."""


class Crops(NamedTuple):
    """Grey crops with their classes and where each came from."""

    pixels: NDArray[np.uint8]
    """[N, S, S]"""
    label: NDArray[np.int64]
    """[N], index of the class"""
    group: NDArray[np.str_]
    """[N], the board group or the steel image: what a split must not tear apart"""

    def rows(self, chosen: NDArray[np.bool_]) -> Crops:
        """The crops where `chosen` [N] is true."""
        return Crops(self.pixels[chosen], self.label[chosen], self.group[chosen])

    def parted(self, held: NDArray[np.str_]) -> Split:
        """The crops of other groups to train on, those of the groups `held` to score."""
        inside = np.isin(self.group, held)
        return Split(self.rows(~inside), self.rows(inside))


class Split(NamedTuple):
    """Two sets that share no group; DeepPCB's official lists share boards, but no image."""

    train: Crops
    held: Crops


class Variation(NamedTuple):
    """What differs between two views of a crop, beside flips and quarter turns."""

    shift: float = 0.06
    """Of the view's side, to each side."""
    scale: float = 0.12
    """Of the view's side, up and down."""
    contrast: float = 0.0
    brightness: float = 0.0
    """Of the range from black to white, up and down."""


BOARD_VARIATION, STEEL_VARIATION = Variation(), Variation(contrast=0.3, brightness=0.15)


def board_test(folder: Path) -> Split:
    """DeepPCB's official lists: trainval to train on, what is here of test to score once."""
    return Split(read_boards(folder, "trainval"), read_boards(folder, "test"))


def board_validation(folder: Path) -> Split:
    """Trainval alone, `VALIDATION_BOARDS` held out: where choices are made."""
    return read_boards(folder, "trainval").parted(np.array(VALIDATION_BOARDS))


def steel_test(folder: Path) -> Split:
    """30 of the 100 images of each class to score, once; always the same."""
    crops = read_steel(folder)
    return crops.parted(_steel_images(crops, slice(0, 30)))


def steel_validation(folder: Path) -> Split:
    """The training part of `steel_test` alone, 25 images of each class held out: where choices are made."""
    crops = read_steel(folder)
    rest = crops.parted(_steel_images(crops, slice(0, 30))).train
    return rest.parted(_steel_images(crops, slice(30, 55)))


def read_boards(folder: Path, listing: str) -> Crops:
    """Crops of one official list of DeepPCB, `trainval` or `test`, grouped by board.

    Raises:
        DataError: a list that is not known, a row that is no box, or another number of boxes than published.
    """
    if listing not in NUM_BOARD_BOXES:
        raise DataError(f"list {listing!r} is not one of {sorted(NUM_BOARD_BOXES)}")
    pixels, label, group = [], [], []
    for scan, boxes in _rows(folder / f"{listing}.txt"):
        image = _grey(folder / scan.replace(".png", "_test.png"))
        for fields in _rows(folder / boxes):
            if len(fields) != 5 or not all(field.isdigit() for field in fields) or not 1 <= int(fields[4]) <= 6:
                raise DataError(f"{boxes}: row {' '.join(fields)!r} is not x1 y1 x2 y2 type, with type from 1 to 6")
            left, top, right, bottom, kind = map(int, fields)
            pixels.append(_cut(image, (left, top, right, bottom), SMALLEST_BOARD_VIEW))
            label.append(kind - 1)
            group.append(scan.split("/")[0])
    _check(folder / f"{listing}.txt", "boxes", len(label), NUM_BOARD_BOXES[listing])
    return Crops(np.stack(pixels), np.array(label, np.int64), np.array(group))


def read_steel(folder: Path) -> Crops:
    """Crops of NEU-DET, grouped by image; an image may hold boxes of several classes.

    Raises:
        DataError: a class that is not known, or another number of images or boxes than this copy has.
    """
    pixels, label, group = [], [], []
    annotations = sorted((folder / "annotations").glob("*.xml"))
    _check(folder / "annotations", "images", len(annotations), NUM_STEEL_IMAGES)
    for annotation in annotations:
        image = _grey(folder / "images" / f"{annotation.stem}.jpg")
        for found in ElementTree.parse(annotation).getroot().iter("object"):
            name, bounds = found.findtext("name", ""), found.find("bndbox")
            if name not in STEEL_CLASSES or bounds is None:
                raise DataError(f"{annotation}: object {name!r} has no bndbox or is not one of {STEEL_CLASSES}")
            left, top, right, bottom = (int(bounds.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax"))
            pixels.append(_cut(image, (left, top, right, bottom), SMALLEST_STEEL_VIEW))
            label.append(STEEL_CLASSES.index(name))
            group.append(annotation.stem)
    _check(folder / "annotations", "boxes", len(label), NUM_STEEL_BOXES)
    return Crops(np.stack(pixels), np.array(label, np.int64), np.array(group))


def view(
    pixels: Tensor, side: int = SIDE, *, vary: Variation | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """What the network sees of stored crops: the middle, or with `vary` a random view.

    Args:
        pixels: [B, S, S], uint8.
        side: R, pixels.

    Returns:
        [B, 3, R, R] in channels-last order, grey repeated, black -2 and white 2.
    """
    count = len(pixels)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=generator) - 1

    half = torch.full((count,), 1 / MARGIN)
    turn = torch.eye(2).repeat(count, 1, 1)
    move = torch.zeros(count, 2, 1)
    if vary is not None:
        half = half * (1 + vary.scale * uniform(count))
        turn = turn * uniform(count, 1, 2).sign()
        turn = torch.where(uniform(count, 1, 1) < 0, turn.flip(1), turn)
        move = 2 * vary.shift * half[:, None, None] * uniform(count, 2, 1)
    where = functional.affine_grid(
        torch.cat([half[:, None, None] * turn, move], 2), [count, 1, side, side], align_corners=False
    )
    grey = functional.grid_sample(pixels[:, None].float() / 255, where, padding_mode="border", align_corners=False)
    if vary is not None and (vary.contrast or vary.brightness):
        grey = (grey - 0.5) * (1 + vary.contrast * uniform(count, 1, 1, 1)) + 0.5
        grey = grey + vary.brightness * uniform(count, 1, 1, 1)
    return ((grey - 0.5) * 4).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def mobilenet(seed: int, *, num_classes: int = 6) -> nn.Module:
    """timm's MobileNetV3-Large, untrained; its last layer starts near zero.

    timm draws that layer from +-0.41, which over 1,280 features gives a first loss above that of guessing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = timm.create_model("mobilenetv3_large_100", num_classes=num_classes)
        last = network.get_submodule("classifier")
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
    return network.to(memory_format=torch.channels_last)


def _cut(image: NDArray[np.uint8], box: tuple[int, int, int, int], smallest: int) -> NDArray[np.uint8]:
    """A square around `box` (left, top, right, bottom; pixels), moved inside the image, as [S, S]."""
    left, top, right, bottom = box
    side = min(MARGIN * max(smallest, CONTEXT * max(right - left, bottom - top)), *image.shape)
    x, y = (
        min(max((low + high - side) / 2, 0.0), length - side)
        for low, high, length in ((left, right, image.shape[1]), (top, bottom, image.shape[0]))
    )
    return np.asarray(
        Image.fromarray(image).resize((STORED_SIDE, STORED_SIDE), Image.Resampling.BILINEAR, (x, y, x + side, y + side))
    )


def _steel_images(crops: Crops, part: slice) -> NDArray[np.str_]:
    """A part of the images of each class, in an order that never changes."""
    names = np.unique(crops.group)
    kinds = np.array([name.rsplit("_", 1)[0] for name in names])
    shuffled = np.random.RandomState(0)
    return np.concatenate([shuffled.permutation(names[kinds == kind])[part] for kind in STEEL_CLASSES])


def _grey(path: Path) -> NDArray[np.uint8]:
    try:
        return np.asarray(Image.open(path).convert("L"))
    except OSError as fault:
        raise DataError(f"{path} does not read as an image ({fault}); see the data's README") from fault


def _rows(path: Path) -> list[list[str]]:
    """The fields of each row, without empty rows."""
    try:
        return [row.split() for row in path.read_text().splitlines() if row.strip()]
    except OSError as fault:
        raise DataError(f"{path} does not read ({fault.strerror}); pass the folder that holds it") from fault


def _check(path: Path, what: str, given: int, expected: int) -> None:
    if given != expected:
        raise DataError(f"{path} has {given} {what}, not {expected}; the benchmark's figures are for the latter")
