"""What `verticals predict` writes for captioned pictures and sounds, or a folder of them: their embeddings, ready for any index."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from core.contract import Estimate
from core.data.pictures import SUFFIXES, header_of, picture_bytes, read_picture
from core.durable.files import written
from core.errors import CapacityError, DataError
from core.memory import resident_bytes
from core.training.log import progress
from verticals.multimodal.retrieval.audio import read_sound
from verticals.multimodal.retrieval.config import RetrievalConfig
from verticals.multimodal.retrieval.formats import NoLayout, read_pairs, samples, tars
from verticals.multimodal.retrieval.pairs import SOUNDS, Pair, Stored
from verticals.multimodal.retrieval.predictor import Request, RetrievalPredictor


def predict(predictor: RetrievalPredictor, config: RetrievalConfig, source: str, target: Path) -> dict[str, Any]:
    """Encodes everything into a new folder: `items.npy` holds the embeddings of pictures and sounds, `captions.npy` those of captions, a
    row each; `items.jsonl` says for each its id, its row, the rows of its captions, and `reason` where it could not be read.

    Raises:
        DataError: no picture, or the target exists; nothing is written.
        Unavailable: the disk is full.
    """
    if target.exists():
        raise DataError(f"{target} exists; name a new folder for the answer")
    found = list(sources(Path(source)))
    num_captions = sum(len(one.captions) for one in found)
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
            for name, count in (("items", len(found)), ("captions", num_captions))
            if count
        }
        told = bar.add_task("pictures", total=len(found), note="")
        caption = 0
        with (folder / "items.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as items:
            for row, one in enumerate(found):
                record: dict[str, Any] = {
                    "id": one.id,
                    "row": row,
                    "captions": list(range(caption, caption + len(one.captions))),
                }
                try:
                    arrays["items"][row] = predictor([_asked(one, config)])[0].query
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
    text = f"{target}: {len(found) - refused} pictures and sounds, {num_captions} captions" + (
        f"; {refused} could not be read, items.jsonl says why" if refused else ""
    )
    return {"items": len(found) - refused, "captions": num_captions, "refused": refused, "text": text}


def cost(predictor: RetrievalPredictor, config: RetrievalConfig, source: str) -> Estimate:
    """What `predict` will take, from headers alone; pictures that cannot be read take nothing."""
    most, seconds = 0, 0.0
    for one in sources(Path(source)):
        seconds += len(one.captions) * predictor.estimate([Request(text="a")]).seconds
        try:
            if one.is_sound:
                seconds += predictor.estimate([_asked(one, config)]).seconds
                continue
            header = header_of(one.file.read(), name=one.id)
        except DataError:
            continue
        most = max(most, picture_bytes(header, 3))
        seconds += predictor.estimate([Request(picture=np.zeros((16, 16, 3), np.uint8))]).seconds
    return Estimate(resident_bytes() + most, seconds)


def sources(source: Path) -> Iterator[Pair]:
    """A data set's pictures and sounds, or those of a folder; in tar files they need no words. Raises DataError where there is none."""
    if source.is_file() and source.suffix.lower() in (*SUFFIXES, *SOUNDS):
        yield Pair(source.name, Stored(source), ())
        return
    if packed := tars(source):
        beside = () if source.is_file() else source.rglob("*")
        if other := next((path.name for path in beside if path.suffix.lower() in (*SUFFIXES, *SOUNDS)), None):
            raise DataError(
                f"{source} holds tar files ({packed[0].name}) and pictures ({other!r}); name one tar, or move them apart"
            )
        for sample in samples(packed):
            yield sample.pair(needs_caption=False)
        return
    try:
        listed = read_pairs(source)
    except NoLayout:
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in (*SUFFIXES, *SOUNDS))
        if not paths:
            raise
        for path in paths:
            yield Pair(path.relative_to(source).as_posix(), Stored(path), ())
        return
    for pairs in listed.sides.values():
        yield from pairs


def _asked(one: Pair, config: RetrievalConfig) -> Request:
    """Raises DataError, CapacityError."""
    if one.is_sound:
        return Request(sound=read_sound(one.file.read(), name=one.id))
    return Request(read_picture(one.file.read(), num_channels=3, name=one.id, most_pixels=config.data.most_pixels))
