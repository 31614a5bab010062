"""Which samples a quantized model's ranges are fitted on: a function one can see, and no library."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import ConfigError, DataError


def calibration_rows(labels: ArrayLike, count: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Rows to calibrate on: as near to equal numbers of every class as there are, chosen by chance within a class.

    The rare class drives activations where the common one never does: drawn by its share of the data it would be missing
    from a few hundred rows, and its ranges be cut off.

    Args:
        labels: [N] class of each row.
        count: rows wanted, at least one for each class; fewer are given where there are no more.
        seed: the same seed and labels give the same rows.

    Returns:
        [count] int64, rising.

    Raises:
        DataError: no rows, or of one class only.
        ConfigError: the count is smaller than the number of classes.
    """
    given = np.asarray(labels)
    if given.ndim != 1 or not len(given):
        raise DataError(
            f"no samples to calibrate on: the labels are {list(given.shape)}; give one label for each sample"
        )
    classes, sizes = np.unique(given, return_counts=True)
    if len(classes) == 1:
        raise DataError(
            f"all {len(given)} samples are of class {classes[0]}; calibration wants every class, the rare one too: give more"
        )
    if count < len(classes):
        raise ConfigError(
            f"{count} calibration samples of {len(classes)} classes; allowed is at least one for each class"
        )
    quota, left = np.zeros(len(classes), np.int64), min(count, len(given))
    for place, one in enumerate(np.argsort(sizes, kind="stable")):  # what a small class cannot give, the larger ones do
        quota[one] = min(sizes[one], left // (len(classes) - place))
        left -= quota[one]
    generator = np.random.default_rng(seed)
    chosen = [
        generator.choice(np.flatnonzero(given == one), size, replace=False)
        for one, size in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
