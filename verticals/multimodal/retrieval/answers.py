"""What `verticals predict` writes for captioned pictures, or a folder of pictures: their embeddings, ready for any index."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.contract import Estimate
from core.data.pictures import SUFFIXES, header_of, picture_bytes, read_picture
from core.durable.files import written
from core.errors import CapacityError, DataError
from core.memory import resident_bytes
from core.training.log import progress
from verticals.multimodal.retrieval.config import RetrievalConfig
from verticals.multimodal.retrieval.formats import read_pairs
from verticals.multimodal.retrieval.pairs import Stored
from verticals.multimodal.retrieval.predictor import Request, RetrievalPredictor


class Source(NamedTuple):
    """A picture to encode, and what is said of it."""

    id: str
    picture: Stored
    captions: tuple[str, ...]


def predict(predictor: RetrievalPredictor, config: RetrievalConfig, source: str, target: Path) -> dict[str, Any]:
    """Encodes every picture and caption into a new folder: `pictures.npy` and `captions.npy` hold the embeddings, a row each,
    `items.jsonl` says for each picture its id, its row, the rows of its captions, and `reason` where it could not be read.

    Raises:
        DataError: no picture, or the target exists; nothing is written.
        Unavailable: the disk is full.
    """
    if target.exists():
        raise DataError(f"{target} exists; name a new folder for the answer")
    sources = list(_sources(Path(source)))
    num_captions = sum(len(one.captions) for one in sources)
    refused = 0
    with (
        written(),
        tempfile.TemporaryDirectory(dir=target.resolve().parent, prefix=".answer-") as made,
        progress() as bar,
    ):
        folder = Path(made) / "answer"
        folder.mkdir()
        arrays = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, predictor.width))
            for name, count in (("pictures", len(sources)), ("captions", num_captions))
            if count
        }
        told = bar.add_task("pictures", total=len(sources), note="")
        caption = 0
        with (folder / "items.jsonl").open("w", encoding="utf-8") as items:
            for row, one in enumerate(sources):
                record: dict[str, Any] = {
                    "id": one.id,
                    "row": row,
                    "captions": list(range(caption, caption + len(one.captions))),
                }
                try:
                    picture = read_picture(
                        one.picture.read(), num_channels=3, name=one.id, most_pixels=config.data.most_pixels
                    )
                    arrays["pictures"][row] = predictor([Request(picture=picture)])[0].picture
                except (DataError, CapacityError) as error:
                    refused += 1
                    record |= {"row": None, "reason": str(error)}
                if one.captions:
                    answers = predictor([Request(text=text) for text in one.captions])
                    arrays["captions"][caption : caption + len(answers)] = [answer.text for answer in answers]
                caption += len(one.captions)
                items.write(json.dumps(record, ensure_ascii=False) + "\n")
                bar.update(told, advance=1)
        for array in arrays.values():
            array.flush()
        os.rename(folder, target)
    text = f"{target}: {len(sources) - refused} pictures, {num_captions} captions" + (
        f"; {refused} could not be read, items.jsonl says why" if refused else ""
    )
    return {"pictures": len(sources) - refused, "captions": num_captions, "refused": refused, "text": text}


def cost(predictor: RetrievalPredictor, config: RetrievalConfig, source: str) -> Estimate:
    """What `predict` will take, from headers alone; pictures that cannot be read take nothing."""
    most, seconds = 0, 0.0
    for one in _sources(Path(source)):
        seconds += len(one.captions) * predictor.estimate([Request(text="a")]).seconds
        try:
            header = header_of(one.picture.read(), name=one.id)
        except DataError:
            continue
        most = max(most, picture_bytes(header, 3))
        seconds += predictor.estimate([Request(picture=np.zeros((16, 16, 3), np.uint8))]).seconds
    return Estimate(resident_bytes() + most, seconds)


def _sources(source: Path) -> Iterator[Source]:
    """A data set's pictures, or those of a folder. Raises DataError where there is none."""
    if source.is_file() and source.suffix.lower() in SUFFIXES:
        yield Source(source.name, Stored(source), ())
        return
    try:
        listed = read_pairs(source)
    except DataError:
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES) if source.is_dir() else []
        if not paths:
            raise
        for path in paths:
            yield Source(path.relative_to(source).as_posix(), Stored(path), ())
        return
    for pairs in listed.sides.values():
        for pair in pairs:
            yield Source(pair.id, pair.picture, pair.captions)
