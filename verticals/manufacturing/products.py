"""Products by PartId, each with the golden board that it was taught by. A PartId that nobody taught is unknown, and passes nothing.

One folder a product; a new golden board is a new revision, written whole before the record names it. Earlier ones stay.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2

from core.data.pictures import Picture, read_picture
from core.durable.files import flush, flush_tree, remove, written
from core.errors import ArtifactError, DataError

RECORD = "product.json"
MOST_CACHED = 8
"""Golden boards that are kept decoded."""
_PART_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class UnknownPart(DataError):
    """Nobody taught this PartId."""

    def __init__(self, part_id: str) -> None:
        super().__init__(f"the PartId {part_id!r} was never taught: teach it with a golden board")


@dataclass(frozen=True)
class Product:
    """What was taught."""

    part_id: str
    revision: str
    """Of the golden board: the first digits of its sha256."""
    taught_at: float
    """Seconds since 1970 UTC."""
    width: int
    height: int
    mm_per_pixel: float | None
    """Scale of its pictures."""


def check_part_id(part_id: str) -> str:
    """Raises DataError for what is none."""
    if not _PART_ID.fullmatch(part_id):
        raise DataError(
            f"{part_id[:100]!r} is no PartId; allowed are up to 100 letters, digits, dots, hyphens and underscores, a letter or digit first"
        )
    return part_id


class Products:
    """The products in a folder. Any thread may call; one process writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._golden: OrderedDict[tuple[str, str, int], Picture] = OrderedDict()
        with written():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.glob(".*"):  # of a crash while one was taught
            remove(left)

    def teach(
        self, part_id: str, golden: Path | bytes, *, white: int = 65535, mm_per_pixel: float | None = None
    ) -> Product:
        """Takes a picture of a board without a defect as the product's golden board, from now on.

        Raises:
            DataError: no PartId, or no usable picture.
            CapacityError: the picture needs more memory than there is.
            Unavailable: the disk is full.
        """
        check_part_id(part_id)
        picture = read_picture(golden, num_channels=3, white=white, name="the golden board")
        encoded = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
        revision = hashlib.sha256(encoded).hexdigest()[:16]
        product = Product(part_id, revision, time.time(), picture.shape[1], picture.shape[0], mm_per_pixel)
        with self._lock, written():
            place, made = self._folder / part_id, self._folder / f".{part_id}"
            remove(made)
            made.mkdir(mode=0o700)
            golden_file, record = f"golden-{revision}.png", json.dumps(asdict(product))
            (made / golden_file).write_bytes(encoded)
            (made / RECORD).write_text(record, encoding="utf-8")
            flush_tree(made)
            if place.exists():  # earlier revisions stay: results name them
                (made / golden_file).replace(place / golden_file)
                (made / RECORD).replace(place / RECORD)
                flush(place)
                made.rmdir()
            else:
                made.rename(place)
                flush(self._folder)
        return product

    def get(self, part_id: str) -> Product:
        """
        Raises:
            UnknownPart: nobody taught it.
            DataError: it is no PartId.
            ArtifactError: its record is damaged.
        """
        check_part_id(part_id)
        try:
            return Product(**json.loads((self._folder / part_id / RECORD).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UnknownPart(part_id) from None
        except (OSError, ValueError, TypeError):
            raise ArtifactError(f"the record of the PartId {part_id!r} is damaged; teach the product again") from None

    def golden(self, product: Product, num_channels: int) -> Picture:
        """[Y, X, C] its golden board. Raises ArtifactError where its file is damaged."""
        key = product.part_id, product.revision, num_channels
        with self._lock:
            if key in self._golden:
                self._golden.move_to_end(key)
                return self._golden[key]
        path = self._folder / product.part_id / f"golden-{product.revision}.png"
        try:
            picture = read_picture(path, num_channels=num_channels)
        except DataError as error:
            raise ArtifactError(
                f"the golden board of the PartId {product.part_id!r}: {error}; teach it again"
            ) from None
        with self._lock:
            self._golden[key] = picture
            while len(self._golden) > MOST_CACHED:
                self._golden.popitem(last=False)
        return picture

    def all(self) -> list[Product]:
        """In order of their PartIds."""
        names = sorted(path.name for path in self._folder.iterdir() if not path.name.startswith("."))
        return [self.get(name) for name in names]
