"""`verticals data multimodal.retrieval --load`: fills the service's index while the service does not run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from core import registry
from core.contract import Application
from core.errors import DataError
from core.inference.model import build
from core.inference.session import SessionConfig
from core.training.log import progress
from verticals.multimodal.collection import BATCH, Collection, Entry, Refusal
from verticals.multimodal.retrieval.answers import sources
from verticals.multimodal.settings import from_environment

MOST_TOLD = 10
"""Pictures that were refused, and are named."""


def fill(app: Application, source: str, store: str | None = None) -> dict[str, Any]:
    """Indexes the pictures of a data set or a folder by the model in production; those whose ids are in the index stay as they are.

    Args:
        store: folder of the index; None is the service's.

    Returns:
        Counts: `indexed`, `known` (before), `refused`, and `sounds`, which an index does not hold.

    Raises:
        DataError: no data set, or its first fault; nothing was indexed. Pictures that cannot be read are counted instead.
        ArtifactError: no model is in production, or a service holds the index.
        Unavailable: the disk is full; go on with the same command.
    """
    settings = from_environment()
    found = list(sources(Path(source)))
    version = registry.resolve(app.name)
    torch.set_num_threads(settings.threads)
    predictor = build(app, version.path, version.version, session=SessionConfig(threads=settings.threads))[1]
    collection = Collection(
        Path(store) if store else settings.folder,
        lambda: predictor,
        most_pixels=settings.most_pixels,
        kept_pixels=settings.kept_pixels,
        exact_up_to=settings.exact_up_to,
    )
    counts: Counter[str] = Counter(sounds=sum(one.is_sound for one in found))
    pictures = [one for one in found if not one.is_sound]
    refused: list[str] = []
    try:
        collection.open(predictor)
        with progress() as bar:
            told = bar.add_task("pictures", total=len(pictures), note="")
            for first in range(0, len(pictures), BATCH):
                part = pictures[first : first + BATCH]
                entries = []
                for one in part:
                    if one.id.isprintable() and collection.has(one.id):
                        counts["known"] += 1
                        continue
                    try:
                        data = one.file.read()
                    except DataError as error:
                        refused.append(f"{one.id!r}: {error}")
                    else:
                        entries.append(Entry(data, one.id, one.captions[0] if one.captions else None, one.metadata))
                for made in collection.add_each(entries):
                    if isinstance(made, Refusal):
                        refused.append(f"{made.id!r}: {made.reason}")
                    else:
                        counts["indexed"] += 1
                bar.update(told, advance=len(part))
        items, counts["refused"] = len(collection), len(refused)
    finally:
        collection.close()
    text = f"{store or settings.folder}: {counts['indexed']} pictures indexed by {version.version}, {items} in all"
    for name, said in (
        ("known", "had ids that are in the index and stay as they are"),
        ("refused", "refused"),
        ("sounds", "sounds left out"),
    ):
        text += f"; {counts[name]} {said}" if counts[name] else ""
    text += "".join(f"\n  {one}" for one in refused[:MOST_TOLD])
    return {**{name: counts[name] for name in ("indexed", "known", "refused", "sounds")}, "items": items, "text": text}
