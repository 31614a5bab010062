"""The files of an index: rows of embeddings and details of one generation, and what searches see of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.errors import ArtifactError
from verticals.multimodal.approximate import Approximate
from verticals.multimodal.rows import Rows

logger = logging.getLogger(__name__)


class State(NamedTuple):
    """What searches see: it is replaced as a whole."""

    vectors: NDArray[np.float32]
    """[N, D]"""
    details: NDArray[np.float16] | None
    """[N, E]"""
    keys: NDArray[np.int64]
    """[N] of the list: a row may move, a key stays. 0 where the item is deleted."""
    is_there: NDArray[np.bool_]
    """[N]"""
    num_items: int
    nearest: Approximate | None
    """Of the first rows; None where all are compared."""


class Files:
    """The files of one generation."""

    def __init__(self, folder: Path, generation: int, width: int, detail_width: int) -> None:
        self.generation = generation
        self._vectors = Rows(folder / f"vectors-{generation}.f32", width=width, dtype=np.float32)
        details = folder / f"details-{generation}.f16"
        self._details = Rows(details, width=detail_width, dtype=np.float16) if detail_width else None

    @property
    def nearest_path(self) -> Path:
        return self._vectors.path.with_name(f"nearest-{self.generation}.faiss")

    @property
    def paths(self) -> list[Path]:
        rows = [rows.path for rows in (self._vectors, self._details) if rows is not None]
        return [*rows, self.nearest_path, self.nearest_path.with_suffix(".json")]

    def nearest(self) -> Approximate | None:
        """As it was built before; None where it is not there, or damaged, which is logged."""
        if not self.nearest_path.exists():
            return None
        try:
            return Approximate(self.nearest_path)
        except ArtifactError as error:
            logger.error("%s", str(error))
            return None

    def state(self, keys: NDArray[np.int64], nearest: Approximate | None) -> State:
        """What searches see of the first rows."""
        details = self._details.view(len(keys)) if self._details is not None else None
        there = keys > 0
        return State(self._vectors.view(len(keys)), details, keys, there, int(np.count_nonzero(there)), nearest)

    def write(
        self, first: int, vectors: Sequence[NDArray[np.float32]], details: Sequence[NDArray[np.float16] | None]
    ) -> None:
        """Puts rows from a place on; a detail that is None is blank."""
        self._vectors.write(first, np.stack(vectors))
        if self._details is not None:
            blank = np.zeros(self._details.width, np.float16)
            self._details.write(first, np.stack([blank if one is None else one for one in details]))

    def copy(self, first: int, state: State, rows: NDArray[np.int64]) -> None:
        """Puts rows of another generation here."""
        self._vectors.write(first, state.vectors[rows])
        if self._details is not None and state.details is not None:
            self._details.write(first, state.details[rows])

    def blank(self, rows: Iterable[int]) -> None:
        """Overwrites deleted rows."""
        for row in rows:
            for file in (self._vectors, self._details):
                if file is not None:
                    file.write(row, np.zeros((1, file.width), file.dtype))

    def close(self) -> None:
        for file in (self._vectors, self._details):
            if file is not None:
                file.close()
