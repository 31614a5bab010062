"""What frozen encoders make of a data set, made once: each picture in several views, each caption. A laptop trains on it in minutes.

A folder is known by what it is made of: the encoders' weights, the preprocessing, the pictures and captions, the views. It appears
whole or not at all. Arrays are mapped from disk in half precision.

Legend: N picture, V view, P place, K class, M caption, L token, C channel.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import nn

from core.data.pictures import read_picture
from core.durable.files import written
from core.training.log import progress
from verticals.multimodal.retrieval.encoders import Pooling, TextEncoder, VisionEncoder, pool
from verticals.multimodal.retrieval.pairs import Pair
from verticals.multimodal.retrieval.prepare import View, prepared
from verticals.multimodal.retrieval.tokens import Tokenizer

LAYOUT = 1
"""Raised whenever what is written here changes."""
BATCH = 32
BLOCK = 1024
"""Captions that are pooled at a time."""
Half = NDArray[np.float16]


@dataclass(frozen=True)
class Features:
    """Of pictures and their captions, in order."""

    pooled: Half
    """[N, V, C]"""
    places: Half
    """[N, V, P, C]"""
    classes: Half
    """[N, V, K]"""
    words: Half
    """[M, L, C] padded with 0."""
    mask: NDArray[np.bool_]
    """[M, L] where there is a word."""

    def read(self, pooling: Pooling) -> torch.Tensor:
        """[M, C] a vector of each caption."""
        parts = []
        for first in range(0, len(self.words), BLOCK):
            words, mask = (np.array(array[first : first + BLOCK]) for array in (self.words, self.mask))
            parts.append(pool(torch.from_numpy(words).float(), torch.from_numpy(mask), pooling))
        return torch.cat(parts)


def features_of(
    pairs: Sequence[Pair],
    views: Sequence[Sequence[View]],
    vision: VisionEncoder,
    text: TextEncoder,
    tokenizer: Tokenizer,
    *,
    folder: str,
    device: torch.device,
) -> Features:
    """
    Args:
        views: of each picture, as many of each.
        folder: where they are kept; empty for a temporary one that is gone when the process ends.

    Raises:
        DataError: a picture or a caption that cannot be read.
        Unavailable: the disk is full.
    """
    root = Path(folder or tempfile.mkdtemp(prefix="features-"))
    if not folder:
        weakref.finalize(vision, shutil.rmtree, root, ignore_errors=True)
    target = root / _key(pairs, views, vision, text, tokenizer)
    if not target.is_dir():
        with written():
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".features-", dir=root) as made:
                place = Path(made) / "features"
                place.mkdir()
                with torch.inference_mode():
                    _write_pictures(place, pairs, views, vision.to(device).eval())
                    _write_captions(place, pairs, text.to(device).eval(), tokenizer)
                if not target.is_dir():  # else another process was faster
                    place.rename(target)
    arrays: dict[str, Any] = {
        name: np.load(target / f"{name}.npy", mmap_mode="r") for name in Features.__dataclass_fields__
    }
    return Features(**arrays)


def _write_pictures(
    folder: Path, pairs: Sequence[Pair], views: Sequence[Sequence[View]], vision: VisionEncoder
) -> None:
    num_views = len(views[0])
    shapes = {
        "pooled": (vision.num_pooled,),
        "places": (vision.num_places, vision.num_channels),
        "classes": (vision.num_classes,),
    }
    arrays = {
        name: open_memmap(folder / f"{name}.npy", "w+", np.float16, (len(pairs), num_views, *shape))
        for name, shape in shapes.items()
    }
    device = next(vision.parameters()).device
    with progress() as bar:
        told = bar.add_task("pictures", total=len(pairs), note="")
        for place, (pair, wanted) in enumerate(zip(pairs, views, strict=True)):
            picture = read_picture(pair.file.read(), num_channels=3, name=pair.id)
            rows = np.stack([prepared(picture, vision.preprocessing, view) for view in wanted])
            made = vision(torch.from_numpy(rows).to(device))
            for name, array in arrays.items():
                array[place] = getattr(made, name).cpu().numpy()
            bar.update(told, advance=1)
    for array in arrays.values():
        array.flush()


def _write_captions(folder: Path, pairs: Sequence[Pair], text: TextEncoder, tokenizer: Tokenizer) -> None:
    captions = [caption for pair in pairs for caption in pair.captions]
    tokens = tokenizer(captions)
    words = open_memmap(folder / "words.npy", "w+", np.float16, (*tokens.ids.shape, text.num_channels))
    np.save(folder / "mask.npy", tokens.mask)
    device = next(text.parameters()).device
    order = np.argsort(tokens.mask.sum(1), kind="stable")  # those of one length together: little padding
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        length = int(tokens.mask[rows].sum(1).max())
        ids, mask = (torch.from_numpy(array[rows, :length]).to(device) for array in (tokens.ids, tokens.mask))
        words[rows, :length] = (text(ids, mask).words * mask[..., None]).cpu().numpy()
    words.flush()


def _key(
    pairs: Sequence[Pair],
    views: Sequence[Sequence[View]],
    vision: VisionEncoder,
    text: TextEncoder,
    tokenizer: Tokenizer,
) -> str:
    total = hashlib.sha256(f"{LAYOUT} {vision.preprocessing!r} {tokenizer.most}".encode())
    total.update(tokenizer.json.encode())
    for encoder in (vision, text):
        _add_weights(total.update, encoder)
    for pair, wanted in zip(pairs, views, strict=True):
        total.update(hashlib.sha256(pair.file.read()).digest())
        total.update("\0".join((*pair.captions, repr(list(wanted)))).encode())
    return total.hexdigest()[:32]


def _add_weights(update: Callable[[bytes], object], encoder: nn.Module) -> None:
    for name, tensor in encoder.state_dict().items():
        update(name.encode())
        update(tensor.detach().cpu().contiguous().numpy().tobytes())
