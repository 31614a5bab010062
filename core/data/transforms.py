"""Fitted transforms of single columns: scaling of numbers and one-hot encoding of categories.

What is fitted is a record of plain numbers and texts (JSON), never a pickle. Legend: F feature, N row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from core.errors import ArtifactError, ConfigError, DataError

Method = Literal["standard", "minmax", "robust", "log_standard"]
Unknown = Literal["ignore", "error"]

SMALLEST_SCALE = 1e-30
"""A spread below this is none: the column is constant, and becomes zero."""


TEMPORARY_CELLS = 1 << 18
"""Values of a block whose logarithm is held beside it at a time."""


class FeatureScaler:
    """Brings numbers to one scale: `(x - center) / scale`, for `log_standard` after `sign(x) * log(1 + |x|)`.

    `standard` takes mean and standard deviation, `minmax` minimum and range, `robust` median and interquartile range
    (the standard deviation where that is zero). A constant column becomes zero.
    """

    kind = "scaler"

    def __init__(
        self, method: Method = "standard", *, columns: Sequence[str] | None = None, clip: float | None = None
    ) -> None:
        """
        Args:
            columns: what it scales; every number that no other transform names where None.
            clip: bound of the scaled value, on both sides.
        """
        if method not in get_args(Method):
            raise ConfigError(f"scaler method {method!r}; allowed are {', '.join(get_args(Method))}")
        if clip is not None and not clip > 0:
            raise ConfigError(f"clip {clip}; allowed is a positive number, or none")
        self.method: Method = method
        self.columns = None if columns is None else tuple(columns)
        self.clip = clip
        self.names: tuple[str, ...] = ()
        self.center = np.zeros(0)
        """[F]"""
        self.scale = np.zeros(0)
        """[F] positive"""

    def fit(self, rows: Iterable[NDArray[Any]], names: Sequence[str]) -> Self:
        """Learns from the values of each feature, one at a time.

        Args:
            rows: F arrays of [N], or an array [F, N].

        Raises:
            DataError: no values, or one that is not finite.
        """
        constants = [self._constants(row, name) for row, name in zip(rows, names, strict=True)]
        self.names = tuple(names)
        self.center, self.scale = np.array(constants, np.float64).reshape(-1, 2).T.copy()
        return self

    def _constants(self, row: NDArray[Any], name: str) -> tuple[float, float]:
        values = row.astype(np.float64)
        if not len(values):
            raise DataError(f"feature {name}: no rows to fit on")
        if not np.isfinite(values).all():
            place = int(np.argmin(np.isfinite(values)))
            raise DataError(f"feature {name}: row {place + 1} is {values[place]}; allowed are finite numbers")
        if self.method == "log_standard":
            values = np.copysign(np.log1p(np.abs(values)), values)
        low, high = float(values.min()), float(values.max())
        if low == high:
            return low, 1.0
        with np.errstate(over="ignore"):
            if self.method == "minmax":
                center, scale = low, high - low
            elif self.method == "robust":
                first, center, third = (float(value) for value in np.percentile(values, (25, 50, 75)))
                scale = third - first if third - first > SMALLEST_SCALE else float(values.std())
            else:
                center, scale = float(values.mean()), float(values.std())
        if not np.isfinite([center, scale]).all():
            raise DataError(f"feature {name}: values from {low:g} to {high:g} are too large to scale")
        return center, scale if scale > SMALLEST_SCALE else 1.0

    def apply_(self, block: NDArray[np.floating[Any]], first: int = 0) -> NDArray[np.floating[Any]]:
        """Scales the features `first`, `first` + 1 ... in place, without a copy of the block.

        Args:
            block: [f, N] or, for one event, [f]; float32 or float64.
        """
        place = (slice(first, first + len(block)), *(None,) * (block.ndim - 1))
        if first + len(block) > len(self.names):
            raise ConfigError(f"features {first} to {first + len(block)} of {len(self.names)} fitted ones")
        if self.method == "log_standard":
            step = max(1, TEMPORARY_CELLS * len(block) // max(1, block.size))
            for start in range(0, len(block), step):
                part = block[start : start + step]
                np.copysign(np.log1p(np.abs(part)), part, out=part)
        block -= self.center.astype(block.dtype)[place]
        block /= self.scale.astype(block.dtype)[place]
        if self.clip is not None:
            np.clip(block, -self.clip, self.clip, out=block)
        return block

    def restore(self, block: NDArray[Any]) -> NDArray[np.float64]:
        """[F, N] scaled values back in their own unit (what was clipped stays so)."""
        values = block.astype(np.float64) * self.scale[:, None] + self.center[:, None]
        return np.copysign(np.expm1(np.abs(values)), values) if self.method == "log_standard" else values

    @property
    def feature_names(self) -> list[str]:
        return list(self.names)

    def record(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "method": self.method,
            "columns": None if self.columns is None else list(self.columns),
            "clip": self.clip,
            "names": list(self.names),
            "center": self.center.tolist(),
            "scale": self.scale.tolist(),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        scaler = cls(record["method"], columns=record["columns"], clip=record["clip"])
        scaler.names = tuple(record["names"])
        scaler.center, scaler.scale = np.asarray(record["center"], np.float64), np.asarray(record["scale"], np.float64)
        sizes = {len(scaler.names), len(scaler.center), len(scaler.scale)}
        if len(sizes) > 1 or not np.isfinite(scaler.center).all() or not (scaler.scale > 0).all():
            raise ArtifactError("the record of a scaler is damaged: names, centers and scales do not fit together")
        return scaler


class CategoricalEncoder:
    """One feature a category (1 where the row has it). Values never seen in fitting give zeros, rare ones share one."""

    kind = "encoder"

    def __init__(
        self, handle_unknown: Unknown = "ignore", *, max_categories: int = 100, columns: Sequence[str] | None = None
    ) -> None:
        """
        Args:
            handle_unknown: `ignore` gives zeros for a value never seen, `error` refuses it.
            max_categories: the most frequent ones of a column, with a feature of their own; the others share one.
            columns: what it encodes; every text that no other transform names where None.
        """
        if handle_unknown not in get_args(Unknown):
            raise ConfigError(f"handle_unknown {handle_unknown!r}; allowed are {', '.join(get_args(Unknown))}")
        if max_categories < 1:
            raise ConfigError(f"max_categories {max_categories}; allowed is at least 1")
        self.handle_unknown: Unknown = handle_unknown
        self.max_categories = max_categories
        self.columns = None if columns is None else tuple(columns)
        self.names: tuple[str, ...] = ()
        self._places: dict[str, dict[str, int]] = {}
        self._widths: dict[str, int] = {}

    def fit(self, columns: Mapping[str, NDArray[Any]]) -> Self:
        """Learns the categories of each column ([N] text, or integers that count as their decimal text)."""
        self.names = tuple(columns)
        self._places, self._widths = {}, {}
        for name, values in columns.items():
            counts = Counter(_categories(values))
            ordered = sorted(counts, key=lambda value: (-counts[value], value))
            self._places[name] = {value: min(place, self.max_categories) for place, value in enumerate(ordered)}
            self._widths[name] = min(len(ordered), self.max_categories + 1)
        return self

    def width(self, name: str) -> int:
        """Features of one column."""
        return self._widths[name]

    def encode(self, name: str, values: NDArray[Any]) -> NDArray[np.float32]:
        """[N] values -> [N, width] ones and zeros.

        Raises:
            DataError: a value never seen, where `handle_unknown` is `error`.
        """
        known = self._places[name]
        place = np.fromiter((known.get(value, -1) for value in _categories(values)), np.int64, len(values))
        if self.handle_unknown == "error" and (place < 0).any():
            row = int(np.argmax(place < 0))
            raise DataError(
                f"column {name}: row {row + 1} has a category never seen in fitting; allowed are the {len(known)} seen, or handle_unknown='ignore'"
            )
        out = np.zeros((len(values), self._widths[name]), np.float32)
        rows = np.flatnonzero(place >= 0)
        out[rows, place[rows]] = 1.0
        return out

    def names_of(self, name: str) -> list[str]:
        """Feature names of one column."""
        own = [f"{name}={value}" for value, place in self._places[name].items() if place < self.max_categories]
        return own + [f"{name}~rare"] * (self._widths[name] - len(own))

    @property
    def feature_names(self) -> list[str]:
        return [feature for name in self.names for feature in self.names_of(name)]

    def record(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "handle_unknown": self.handle_unknown,
            "max_categories": self.max_categories,
            "columns": None if self.columns is None else list(self.columns),
            "categories": {name: list(places) for name, places in self._places.items()},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        encoder = cls(record["handle_unknown"], max_categories=record["max_categories"], columns=record["columns"])
        encoder.names = tuple(record["categories"])
        for name, values in record["categories"].items():
            encoder._places[name] = {value: min(place, encoder.max_categories) for place, value in enumerate(values)}
            encoder._widths[name] = min(len(values), encoder.max_categories + 1)
        return encoder


def _categories(values: NDArray[Any]) -> list[str]:
    """Each value as text; 5.0 is 5, as a whole number may arrive either way."""
    return [value if type(value) is str else _category(value) for value in values.tolist()]


def _category(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
