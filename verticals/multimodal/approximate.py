"""Approximate search by FAISS, for more rows than are compared one by one: cells of like rows, in codes of 8 bits a number.

A question looks into some cells; the best codes are compared again exactly. How many cells is set when it is built, by what it finds of
the rows' own nearest. Legend: Q query, N row, D number of an embedding, K best.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from core.durable.files import flush, written
from core.errors import ArtifactError
from verticals.multimodal.exact import Found, search

GOAL = 0.995
"""Share of the ten nearest rows that is to be found, of rows of its own."""
QUESTIONS = 256
"""Rows that are asked for theirs."""
AGAIN = 8
"""Codes that are compared again exactly, for each row that is wanted; 64 at least."""
SAMPLES_PER_CELL = 64
BLOCK = 65_536
"""Rows that are added at a time."""


class Approximate:
    """The first rows of an index, as they were when it was built."""

    def __init__(self, path: Path) -> None:
        """Raises ArtifactError where a file is damaged."""
        try:
            self._index: Any = faiss.read_index(str(path))
            record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            self.num_rows, self.num_probes, self.recall = (
                int(record["rows"]),
                int(record["probes"]),
                float(record["recall"]),
            )
            if self._index.ntotal != self.num_rows:
                raise ValueError("its parts are of two builds")
        except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is damaged ({type(error).__name__}); remove it: it is built again") from None

    @classmethod
    def build(cls, vectors: NDArray[np.float32], path: Path, *, seed: int = 0) -> Approximate:
        """Of rows [N, D] of length 1. When this returns the file survives a power cut.

        Raises:
            Unavailable: the disk is full.
        """
        random = np.random.default_rng(seed)
        count, width = vectors.shape
        cells = max(16, int(4 * count**0.5))
        index: Any = faiss.index_factory(width, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = seed
        few = min(count, SAMPLES_PER_CELL * cells)
        index.train(np.asarray(vectors[np.sort(random.choice(count, few, replace=False))]))
        for first in range(0, count, BLOCK):
            index.add(np.ascontiguousarray(vectors[first : first + BLOCK]))
        probes, recall = _probes(index, vectors, random)
        with written():
            part = path.with_suffix(".part")
            try:
                faiss.write_index(index, str(part))
            except RuntimeError as error:  # FAISS' word for a full disk
                raise OSError(str(error)) from None
            path.with_suffix(".json").write_text(
                json.dumps({"rows": count, "probes": probes, "recall": recall}), encoding="utf-8"
            )
            flush(part, path.with_suffix(".json"))
            os.replace(part, path)
            flush(path.parent)
        return cls(path)

    def search(
        self, queries: NDArray[np.float32], num: int, vectors: NDArray[np.float32], is_there: NDArray[np.bool_]
    ) -> Found:
        """The best of its rows; K may be less than is wanted.

        Args:
            queries: [Q, D]
            vectors: [N, D] all rows, its own the first of them.
            is_there: [N]
        """
        rows = _candidates(self._index, queries, max(64, AGAIN * num), self.num_probes, is_there[: self.num_rows])
        scores = np.einsum("qd,qkd->qk", queries, vectors[np.maximum(rows, 0)])
        scores = np.where(rows >= 0, scores, -np.inf).astype(np.float32)
        order = np.lexsort((rows, -scores))[:, :num]
        best, chosen = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        whole = int(np.isfinite(best).sum(1).min()) if len(best) else 0
        return Found(best[:, :whole], chosen[:, :whole])


def _candidates(
    index: Any, queries: NDArray[np.float32], num: int, probes: int, is_there: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """[Q, num] rows by their codes, -1 where there are fewer."""
    settings: dict[str, Any] = {"nprobe": probes}
    if not is_there.all():
        bits = np.packbits(is_there, bitorder="little")
        settings["sel"] = faiss.IDSelectorBitmap(len(is_there), faiss.swig_ptr(bits))
    found = index.search(np.ascontiguousarray(queries), num, params=faiss.SearchParametersIVF(**settings))
    return np.asarray(found[1], np.int64)


def _probes(index: Any, vectors: NDArray[np.float32], random: np.random.Generator) -> tuple[int, float]:
    """Cells to look into, and the share of the ten nearest that is found then."""
    asked = np.asarray(vectors[np.sort(random.choice(len(vectors), min(QUESTIONS, len(vectors)), replace=False))])
    everything = np.ones(len(vectors), np.bool_)
    true = search(vectors, asked, 10, everything).rows
    probes, recall = 4, 0.0
    while True:
        rows = _candidates(index, asked, 8 * 10, probes, everything)
        recall = float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(true, rows, strict=True)]))
        if recall >= GOAL or probes >= index.nlist:
            return probes, recall
        probes = min(index.nlist, probes * 2)
