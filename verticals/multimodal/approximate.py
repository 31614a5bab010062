"""Approximate search by FAISS, for more rows than are compared one by one: cells of like rows, in codes of two bits a number.

Product quantization, 4 bits for two numbers, whose tables fit a processor's registers ("fast scan": André et al., 2015). A question looks
into some cells; the best codes are compared again exactly. How many cells and how many codes is set when they are made, by what is found
of the rows' own nearest: where like rows are few, that is all cells. Rows that come later are put into the cells that there are, until
there are twice as many rows: then cells are made anew. Legend: Q query, N row, D number of an embedding, K best.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from core.durable.files import flush, written
from core.errors import ArtifactError
from verticals.multimodal.exact import Found, search

library: Any = faiss
"""Its stubs lack what is asked of it here."""
GOAL = 0.995
"""Share of the ten nearest rows that is to be found, of rows of its own."""
QUESTIONS = 256
"""Rows that are asked for theirs."""
AGAIN = (8, 16, 32, 64)
"""Codes that are compared again exactly, for each row that is wanted: as few as find the goal. For ten rows at least."""
WANTED_OF_CELLS = 64
"""Rows that are wanted, for which so many cells are looked into as for ten; for more, more."""
MOST_AGAIN = 10_000
"""Codes of a question; more only where more rows are wanted."""
SAMPLES_PER_CELL = 64
MOST_GROWTH = 2
"""Rows for each row that the cells were made for, up to which they do."""
BLOCK = 16_384
"""Rows that are put in at a time."""
ROUNDING = 1e-6
"""Of a cosine."""


class Approximate:
    """The first rows of an index, as they were when it was built."""

    def __init__(self, path: Path) -> None:
        """Raises ArtifactError where a file is damaged."""
        try:
            self._index: Any = faiss.read_index(str(path))
            record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            self.num_rows, self.num_first = int(record["rows"]), int(record["first"])
            self.num_probes, self.num_again, self.recall = (
                int(record["probes"]),
                int(record["again"]),
                float(record["recall"]),
            )
            self.num_cells: int = library.downcast_index(self._index).nlist
            if self._index.ntotal != self.num_rows:
                raise ValueError("its parts are of two builds")
        except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is damaged ({type(error).__name__}); remove it: it is built again") from None

    @classmethod
    def build(
        cls,
        vectors: NDArray[np.float32],
        path: Path,
        *,
        before: Path | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Approximate | None:
        """Of rows [N, D] of length 1. When this returns the file survives a power cut.

        Args:
            before: what was built of the first rows.
            is_cancelled: asked now and then.

        Returns:
            None where it was cancelled.

        Raises:
            Unavailable: the disk is full.
            ArtifactError: what was built before is damaged.
        """
        count, random = len(vectors), np.random.default_rng(0)
        known = cls(before) if before is not None else None
        if known is not None and count <= MOST_GROWTH * known.num_first:
            index, first = known._index, known.num_first
        else:
            known, index, first = None, _cells(vectors, random), count
        for start in range(index.ntotal, count, BLOCK):
            if is_cancelled():
                return None
            index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))
        if known is not None:
            probes, again, recall = known.num_probes, known.num_again, known.recall
        else:
            probes, again, recall = _breadth(index, vectors, random)
        with written():
            part = path.with_suffix(".part")
            try:
                faiss.write_index(index, str(part))
            except RuntimeError as error:  # FAISS' word for a full disk
                raise OSError(str(error)) from None
            path.with_suffix(".json").write_text(
                json.dumps({"rows": count, "first": first, "probes": probes, "again": again, "recall": recall}),
                encoding="utf-8",
            )
            flush(part, path.with_suffix(".json"))
            os.replace(part, path)
            flush(path.parent)
        return cls(path)

    def search(
        self, queries: NDArray[np.float32], num: int, vectors: NDArray[np.float32], is_there: NDArray[np.bool_] | None
    ) -> Found:
        """The best of its rows: as many as are wanted, where there are so many.

        Args:
            queries: [Q, D]
            vectors: [N, D] all rows, its own the first of them.
            is_there: [N]; None where all are.
        """
        queries = np.ascontiguousarray(queries)
        wanted = max(num, min(self.num_again * max(num, 10), MOST_AGAIN))
        known = None if is_there is None else is_there[: self.num_rows]
        probes = min(self.num_cells, self.num_probes * -(-num // WANTED_OF_CELLS))
        rows = _candidates(self._index, queries, wanted, probes, known)
        while probes < self.num_cells and (rows[:, num - 1 : num] < 0).any():
            probes = min(self.num_cells, probes * 4)
            rows = _candidates(self._index, queries, wanted, probes, known)
        scores = _cosines(queries, vectors, rows)
        order = np.arange(len(rows))[:, None], np.lexsort((rows, -scores))[:, :num]
        best, chosen = scores[order], rows[order]
        whole = int(np.isfinite(best).sum(1).min()) if len(best) else 0
        return Found(best[:, :whole], chosen[:, :whole])


def _cells(vectors: NDArray[np.float32], random: np.random.Generator) -> Any:
    """Cells for so many rows, empty."""
    count, width = vectors.shape
    num, codes = max(16, int(count**0.5)), width // 2 if width % 2 == 0 else width
    index: Any = faiss.index_factory(width, f"IVF{num},PQ{codes}x4fs", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = 0
    few = min(count, SAMPLES_PER_CELL * num)
    index.train(np.asarray(vectors[np.sort(random.choice(count, few, replace=False))]))
    return index


def _candidates(
    index: Any, queries: NDArray[np.float32], num: int, probes: int, is_there: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """[Q, K] the best rows by their codes, -1 where there are fewer."""
    settings: dict[str, Any] = {"nprobe": probes}
    if is_there is not None:
        bits = np.packbits(is_there, bitorder="little")
        settings["sel"] = faiss.IDSelectorBitmap(len(is_there), faiss.swig_ptr(bits))
    return np.asarray(index.search(queries, num, params=faiss.SearchParametersIVF(**settings))[1], np.int64)


def _cosines(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """[Q, K] of each query with rows [Q, K] of its own; -inf where a row is -1. Other threads run meanwhile."""
    made = np.full(rows.shape, -np.inf, np.float32)
    library.fvec_inner_products_by_idx(
        *map(library.swig_ptr, (made, queries, vectors, rows)), vectors.shape[1], *rows.shape
    )
    return made


def _breadth(index: Any, vectors: NDArray[np.float32], random: np.random.Generator) -> tuple[int, int, float]:
    """Cells to look into, codes to compare again, and the share of the ten nearest that is found then.

    As near ones count too, since some rows are equal.
    """
    drawn = np.asarray(vectors[np.sort(random.choice(len(vectors), min(QUESTIONS, len(vectors)), replace=False))])
    asked = drawn[drawn.any(axis=1)]  # deleted rows are blank
    least = (
        search(vectors, asked, 10, np.ones(len(vectors), np.bool_)).scores.min(axis=1, initial=1.0)[:, None] - ROUNDING
    )
    if not len(asked):
        return 1, AGAIN[0], 1.0
    probes = 4
    while True:
        is_near = _cosines(asked, vectors, _candidates(index, asked, 10 * AGAIN[-1], probes, None)) >= least
        for again in AGAIN:  # candidates come the best first: fewer would be the first of them
            near = is_near[:, : 10 * again].sum(axis=1)
            recall = float(np.minimum(near / min(10, len(vectors)), 1).mean())
            if recall >= GOAL:
                return probes, again, recall
        if probes >= index.nlist:
            return probes, again, recall
        probes = min(index.nlist, probes * 2)
