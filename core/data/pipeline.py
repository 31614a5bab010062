"""From columns to the matrix a network reads: transforms fitted on training rows only, recorded with the model.

    DataPipeline(sources=["behaviour.csv"], transforms=[FeatureScaler("minmax"), CategoricalEncoder()], target="bought").fit_transform()

Columns come as a mapping of arrays, or, for thousands of features, as a block [F, N] of which only a small part is
copied at a time. Legend: F feature of the block, N row, C column of the matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from core.data.cells import iso
from core.data.sources import Source, read_table
from core.data.transforms import CategoricalEncoder, FeatureScaler
from core.errors import ArtifactError, ConfigError, DataError, LeakError

__all__ = ["CategoricalEncoder", "DataPipeline", "FeatureScaler", "Prepared"]

Transform = FeatureScaler | CategoricalEncoder

BLOCK_CELLS = 1 << 22
"""Values of a block that are copied at a time."""


class Prepared(NamedTuple):
    """What `fit_transform` makes of the sources."""

    matrix: NDArray[np.float32]
    """[N, C]"""
    target: NDArray[Any] | None
    """[N] the target column as it was read."""
    names: list[str]
    """[C]"""


class _Run(NamedTuple):
    """Neighbouring features of the block with the same transform, or one further column."""

    owner: int
    column: str | None
    """None for features of the block."""
    source: int
    """Place among the columns given."""
    target: int
    """Place in the matrix."""
    first: int
    """Place within the scaler."""
    width: int
    """Columns of the matrix."""


class DataPipeline:
    """Scales numbers and encodes categories; what no transform takes passes through if it is a number."""

    def __init__(
        self,
        sources: Sequence[str | Path | Source] | str | Path | Source = (),
        transforms: Sequence[Transform] = (),
        target: str | None = None,
        *,
        time: str | None = None,
        ignore: Sequence[str] = (),
    ) -> None:
        """
        Args:
            sources: files or database tables with the same columns, for `fit_transform`.
            transforms: each takes the columns that it names, or all of its type that no other names.
            target: column to predict, never a feature.
            time: column of the sources that holds the time, never a feature.
            ignore: columns of the sources to leave out.
        """
        self.sources = [sources] if isinstance(sources, str | Path | Source) else list(sources)
        self.transforms = list(transforms)
        self.target, self.time, self.ignore = target, time, tuple(ignore)
        self.rows = 0
        """Rows that it was fitted on."""
        self._names: list[str] = []
        self._owners: list[int] = []
        """The transform of each column by its place in `transforms`; -1 passes through."""
        self._block = 0
        """How many of the columns come in a block."""
        self._fitted_until: int | None = None
        self._plan()

    def fit(
        self, columns: Mapping[str, NDArray[Any]], *, time: NDArray[np.int64] | None = None, until: int | None = None
    ) -> Self:
        """Learns from named columns [N]; see `fit_block`."""
        length = len(next(iter(columns.values()), ()))
        return self.fit_block(np.empty((0, length), np.float32), (), columns, time=time, until=until)

    def fit_block(
        self,
        block: NDArray[Any],
        names: Sequence[str],
        columns: Mapping[str, NDArray[Any]] | None = None,
        *,
        rows: NDArray[np.integer[Any]] | slice = slice(None),
        time: NDArray[np.int64] | None = None,
        until: int | None = None,
    ) -> Self:
        """Learns from a block of features and further columns; the matrix will have them in this order.

        Args:
            block: [F, N], one feature a row.
            names: [F] of the block.
            columns: [N] each; numbers or text.
            rows: which of the N to learn from; a feature at a time is copied.
            time: [N] microseconds since 1970 UTC, when each row happened.
            until: the first moment that must not be seen.

        Raises:
            LeakError: a row to learn from happened at `until` or later.
            ConfigError: a transform names a column that is not there, or a text has no encoder.
            DataError: no rows, or a value that is not finite.
        """
        if until is not None and time is None:
            raise ConfigError("until without time: pass the time of each row, which it is held against")
        times = None if time is None else time[rows]
        if until is not None and times is not None and len(times) and int(times.max()) >= until:
            raise LeakError(
                f"{int((times >= until).sum())} of {len(times)} rows to fit on happened at {iso(until)} or later "
                f"(newest {iso(int(times.max()))}); fit on the training days only"
            )
        columns = self._features(columns or {})
        self._names, self._block = [*names, *columns], len(names)
        if len(set(self._names)) < len(self._names):
            twice = sorted({name for name in self._names if self._names.count(name) > 1})
            raise ConfigError(f"column {', '.join(twice)} is given twice; each needs a name of its own")
        self._owners = [self._owner(name, columns.get(name)) for name in self._names]
        self._check_claims()
        values = {name: columns[name][rows] for name in columns}
        self.rows = len(next(iter(values.values()))) if values else block[:0, rows].shape[1]
        if not self.rows:
            raise DataError("no rows to fit on; allowed is at least one")
        for place, transform in enumerate(self.transforms):
            own = [name for name, owner in zip(self._names, self._owners, strict=True) if owner == place]
            if isinstance(transform, CategoricalEncoder):
                transform.fit({name: values[name] for name in own})
            else:
                at = {name: index for index, name in enumerate(names)}
                transform.fit((values[name] if name in values else block[at[name]][rows] for name in own), own)
        self._fitted_until = None if times is None else int(times.max())
        self._plan()
        return self

    def transform(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """[N, C] the matrix of named columns [N]; see `transform_block`."""
        length = len(next(iter(columns.values()), ()))
        return self.transform_block(np.empty((0, length), np.float32), (), columns)

    def transform_block(
        self, block: NDArray[Any], names: Sequence[str], columns: Mapping[str, NDArray[Any]] | None = None
    ) -> NDArray[np.float32]:
        """[N, C] the matrix of a block [F, N] and further columns [N], the same ones in the same order as in fitting.

        Raises:
            ConfigError: not fitted yet.
            DataError: columns missing or not known, a value that is not finite, a category refused by its encoder.
        """
        columns = self._checked(names, self._features(columns or {}))
        length = block.shape[1]
        matrix = np.empty((length, len(self._feature_names)), np.float32)
        step = max(1, BLOCK_CELLS // max(1, length))
        for run in self._runs:
            transform = self.transforms[run.owner] if run.owner >= 0 else None
            if run.column is None:
                for start in range(0, run.width, step):
                    stop = min(start + step, run.width)
                    part = block[run.source + start : run.source + stop].astype(np.float32)
                    if isinstance(transform, FeatureScaler):
                        transform.apply_(part, run.first + start)
                    matrix[:, run.target + start : run.target + stop] = part.T
            elif isinstance(transform, CategoricalEncoder):
                matrix[:, run.target : run.target + run.width] = transform.encode(run.column, columns[run.column])
            else:
                matrix[:, run.target] = _number(run, columns[run.column], transform)
        return matrix

    def fit_transform(self, *, until: int | None = None) -> Prepared:
        """Reads the sources into memory, fits, and transforms all rows.

        Args:
            until: fits on rows before this moment only (microseconds since 1970 UTC; the pipeline needs `time`).

        Raises:
            ConfigError: no sources, or no such target.
            DataError: the first fault of any row.
        """
        table = read_table(self.sources, time=self.time, ignore=self.ignore)
        if self.target is not None and self.target not in table:
            raise ConfigError(f"target {self.target!r} is not a column; the sources have {', '.join(table)}")
        time = table[self.time] if self.time is not None else None
        columns = self._features(table)
        if until is not None and time is not None:
            early = np.flatnonzero(time < until)
            self.fit({name: values[early] for name, values in columns.items()}, time=time[early], until=until)
        else:
            self.fit(columns, time=time, until=until)
        return Prepared(self.transform(columns), table.get(self.target or ""), self.feature_names)

    @property
    def feature_names(self) -> list[str]:
        """[C] names of the matrix's columns."""
        return list(self._feature_names)

    @property
    def fitted_until(self) -> int:
        """Time of the newest row fitted on, in microseconds since 1970 UTC. Raises LeakError where nobody knows."""
        if self._fitted_until is None:
            raise LeakError(
                "the pipeline was fitted without times: nothing shows that it saw no test day; fit with time="
            )
        return self._fitted_until

    def record(self) -> dict[str, Any]:
        """What was fitted, as JSON."""
        return {
            "target": self.target,
            "time": self.time,
            "rows": self.rows,
            "fitted_until": self._fitted_until,
            "names": list(self._names),
            "owners": list(self._owners),
            "block": self._block,
            "transforms": [transform.record() for transform in self.transforms],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Raises ArtifactError where the record is damaged."""
        kinds: dict[str, type[Transform]] = {kind.kind: kind for kind in (FeatureScaler, CategoricalEncoder)}
        try:
            transforms = [kinds[part["kind"]].from_record(part) for part in record["transforms"]]
            pipeline = cls((), transforms, record["target"], time=record["time"])
            pipeline.rows, pipeline._fitted_until = record["rows"], record["fitted_until"]
            pipeline._names, pipeline._owners = list(record["names"]), list(record["owners"])
            owned = [
                [name for name, owner in zip(pipeline._names, pipeline._owners, strict=True) if owner == k]
                for k in range(len(transforms))
            ]
            if any(list(transform.names) != names for transform, names in zip(transforms, owned, strict=True)):
                raise ValueError("columns and transforms do not fit together")
            pipeline._block = int(record["block"])
            pipeline._plan()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"the record of a pipeline is damaged ({error}); train again") from None
        return pipeline

    def _features(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {name: values for name, values in columns.items() if name not in (self.target, self.time)}

    def _owner(self, name: str, values: NDArray[Any] | None) -> int:
        """Which transform takes a column; `values` is None for a feature of the block."""
        text = values is not None and values.dtype.kind in "OUS"
        for place, transform in enumerate(self.transforms):
            if transform.columns is not None and name in transform.columns:
                if text and isinstance(transform, FeatureScaler):
                    raise ConfigError(
                        f"column {name} holds text; a FeatureScaler takes numbers: use a CategoricalEncoder"
                    )
                if values is None and isinstance(transform, CategoricalEncoder):
                    raise ConfigError(
                        f"feature {name} of the block is a number; a CategoricalEncoder takes further columns"
                    )
                return place
        kind = CategoricalEncoder if text else FeatureScaler
        for place, transform in enumerate(self.transforms):
            if transform.columns is None and isinstance(transform, kind):
                return place
        if text:
            raise ConfigError(
                f"column {name} holds text and no CategoricalEncoder takes it; add one, or leave the column out"
            )
        return -1

    def _check_claims(self) -> None:
        for transform in self.transforms:
            if missing := [name for name in transform.columns or () if name not in self._names]:
                raise ConfigError(
                    f"a {type(transform).__name__} names {', '.join(missing)}; the columns are {', '.join(self._names)}"
                )

    def _checked(self, names: Sequence[str], columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The further columns, where they and the block's names are those fitted on."""
        if not self._names:
            raise ConfigError("the pipeline is not fitted; call fit or from_record first")
        if [*names] != self._names[: self._block] or columns.keys() != set(self._names[self._block :]):
            given = [*names, *columns]
            missing, extra = [n for n in self._names if n not in given], [n for n in given if n not in self._names]
            raise DataError(
                f"the pipeline was fitted on {len(self._names)} columns, {self._block} of them in a block: "
                f"missing {missing[:5] or 'none'}, not known {extra[:5] or 'none'}; pass the same ones in the same order"
            )
        return columns

    def _plan(self) -> None:
        """Which columns of the matrix each transform fills, once for all calls."""
        self._feature_names: list[str] = []
        self._runs: list[_Run] = []
        for source, (name, owner) in enumerate(zip(self._names, self._owners, strict=True)):
            transform = self.transforms[owner] if owner >= 0 else None
            target, run = len(self._feature_names), self._runs[-1] if self._runs else None
            if isinstance(transform, CategoricalEncoder):
                own = transform.names_of(name)
                self._runs.append(_Run(owner, name, source, target, 0, len(own)))
            else:
                own = [name]
                if source < self._block and run is not None and run.owner == owner:
                    self._runs[-1] = run._replace(width=run.width + 1)
                else:
                    first = transform.names.index(name) if transform is not None else 0
                    self._runs.append(_Run(owner, None if source < self._block else name, source, target, first, 1))
            self._feature_names += own


def _number(run: _Run, values: NDArray[Any], scaler: FeatureScaler | None) -> NDArray[Any]:
    """[N] one further column, checked and scaled."""
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        raise DataError(f"column {run.column}: row {row + 1} is {numbers[row]}; allowed are finite numbers")
    return numbers if scaler is None else scaler.apply_(numbers[None], run.first)[0]
