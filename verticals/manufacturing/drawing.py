"""What was found, to look at: the board with its findings, and a gallery of them, board beside golden board."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from core.data.pictures import Picture
from verticals.manufacturing.boxes import Boxes

COLOURS = (
    (230, 57, 70),
    (29, 120, 216),
    (255, 159, 28),
    (123, 44, 191),
    (0, 150, 136),
    (214, 40, 140),
    (94, 116, 20),
    (120, 72, 0),
)
"""Red, green, blue of classes in turn."""
LONGEST = 2048
"""Pixels of the longer side of an annotated picture."""
CROP = 96
"""Least side of what the gallery shows of a board, in its pixels."""
CELL, CAPTION, COLUMNS = 160, 22, 5
"""Pixels of a picture in the gallery and of the line below it; findings side by side."""
MOST_IN_GALLERY = 200


def annotated(picture: Picture, findings: Boxes, counted: Sequence[bool], classes: Sequence[str]) -> NDArray[np.uint8]:
    """[Y, X, 3] the board, made smaller where it is large, a frame around each finding; thin and without a name where it does not count."""
    height, width = picture.shape[:2]
    scale = min(1.0, LONGEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = np.ascontiguousarray(
        _coloured(np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8))
    )
    for number, (corners, kind) in enumerate(zip(findings.corners, findings.classes.tolist(), strict=True)):
        x1, y1, x2, y2 = (round(float(side) * scale) for side in corners)
        colour = COLOURS[kind % len(COLOURS)]
        cv2.rectangle(image, (x1 - 2, y1 - 2), (x2 + 2, y2 + 2), colour, 2 if counted[number] else 1, cv2.LINE_AA)
        if not counted[number]:
            continue
        text = f"{number + 1} {classes[kind]} {findings.scores[number]:.2f}"
        _write(image, text, (x1 - 2, y1 - 6 if y1 > 16 else y2 + 14), colour)
    return image


def gallery(
    picture: Picture, golden: Picture | None, findings: Boxes, counted: Sequence[bool], classes: Sequence[str]
) -> NDArray[np.uint8]:
    """[Y, X, 3] each finding in a square of its own, beside the same place of the golden board where there is one."""
    count = min(len(findings.scores), MOST_IN_GALLERY)
    beside = 1 if golden is None else 2
    columns = min(COLUMNS, max(1, count))
    rows = max(1, -(-count // columns))
    sheet = np.full((rows * (CELL + CAPTION), columns * (beside * CELL + 4), 3), 255, np.uint8)
    if not count:
        _write(sheet, "no findings", (8, CELL // 2), (0, 0, 0))
    for number in range(count):
        top, left = number // columns * (CELL + CAPTION), number % columns * (beside * CELL + 4)
        corners, kind = findings.corners[number], int(findings.classes[number])
        for place, source in enumerate([picture] if golden is None else [picture, golden]):
            cell, (x, y, scale) = _cut(source, corners)
            if not place:
                frame = [
                    round((float(side) - offset) * scale) for side, offset in zip(corners, (x, y, x, y), strict=True)
                ]
                cv2.rectangle(cell, (frame[0], frame[1]), (frame[2], frame[3]), COLOURS[kind % len(COLOURS)], 1)
            sheet[top : top + CELL, left + place * CELL : left + place * CELL + CELL] = cell
        mark = "" if counted[number] else " -"
        text = f"{number + 1} {classes[kind]} {findings.scores[number]:.2f}{mark}"
        _write(sheet, text, (left + 2, top + CELL + 15), COLOURS[kind % len(COLOURS)])
    return sheet


def as_png(image: NDArray[np.uint8]) -> bytes:
    """The file of a picture in red, green, blue."""
    return bytes(cv2.imencode(".png", image[..., ::-1])[1])


def _coloured(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    flat = image[..., None] if image.ndim == 2 else image
    return np.repeat(flat, 3, axis=2) if flat.shape[2] == 1 else flat


def _cut(picture: Picture, corners: NDArray[np.float32]) -> tuple[NDArray[np.uint8], tuple[int, int, float]]:
    """A square around a box, as large as a cell; where it begins and how it was scaled."""
    height, width = picture.shape[:2]
    side = max(CROP, round(1.6 * float(max(corners[2] - corners[0], corners[3] - corners[1]))))
    x, y = (round(float(corners[axis] + corners[axis + 2]) / 2 - side / 2) for axis in (0, 1))
    x, y = (max(0, min(place, length - side)) for place, length in ((x, width), (y, height)))
    part = picture[y : y + side, x : x + side]
    padded = np.pad(part, [(0, side - part.shape[0]), (0, side - part.shape[1]), (0, 0)])
    cell = cv2.resize(padded, (CELL, CELL), interpolation=cv2.INTER_AREA if side > CELL else cv2.INTER_NEAREST)
    return np.ascontiguousarray(_coloured(np.asarray(cell, np.uint8))), (x, y, CELL / side)


def _write(image: NDArray[np.uint8], text: str, place: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """In white on a bar of the colour."""
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
    x, y = max(0, min(place[0], image.shape[1] - width)), place[1]
    cv2.rectangle(image, (x, y - height - 2), (x + width, y + below - 1), colour, -1)
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
