"""Puts a difference between two arrays, or two records, into words: which columns, which order, which scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.contract import Arrays, Session
from core.inference.departure import error_of

NAMED = 4
"""Differences that are spelled out; the rest is counted."""

AXIS = 32
"""Length of a free axis, the first one apart, of arrays that are made up."""

MOST_TURNED = 16
"""Pictures or windows that are looked for among the others, in every turn."""


SHORT = 60
"""Characters of a value that are told."""


def changed(true: Any, given: Any) -> list[str]:
    """Where two nested records differ: `pipeline.transforms.0.mean.3 is 0.5, the original has 0.3`."""
    lines = list(_changed(true, given, ""))
    more = [f"and {len(lines) - NAMED} further values differ"] if len(lines) > NAMED else []
    return lines[:NAMED] + more


def _changed(true: Any, given: Any, path: str) -> Iterator[str]:
    if isinstance(true, Mapping) and isinstance(given, Mapping):
        for key in dict.fromkeys([*true, *given]):
            yield from _changed(true.get(key), given.get(key), f"{path}.{key}" if path else str(key))
    elif _is_list(true) and _is_list(given) and len(true) == len(given):
        for place, (a, b) in enumerate(zip(true, given, strict=True)):
            yield from _changed(a, b, f"{path}.{place}")
    elif _is_list(true) and _is_list(given):
        yield f"{path} has {len(given)} entries, the original has {len(true)}"
    elif true != given and isinstance(true, str) and isinstance(given, str) and min(len(true), len(given)) > SHORT:
        place = next(
            (at for at, (a, b) in enumerate(zip(true, given, strict=False)) if a != b), min(len(true), len(given))
        )
        a, b = (_short(text[place : place + SHORT]) for text in (true, given))
        yield f"{path} differs from character {place} on: {b}, the original has {a}"
    elif true != given and not (true != true and given != given):
        yield f"{path} is {_short(given)}, the original has {_short(true)}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHORT else text[: SHORT - 3] + "..."


def difference(true: NDArray[Any], given: NDArray[Any], columns: Sequence[str] = (), *, tolerance: float) -> str:
    """How two arrays of one shape differ, [N, C, ...]: exchanged columns, another scale, or by how much.

    Args:
        columns: [C] names; numbers where there are none.
        tolerance: relative difference up to which two columns are the same.
    """
    a, b = true.astype(np.float64), given.astype(np.float64)
    a, b = np.atleast_1d(a), np.atleast_1d(b)
    if a.ndim < 2:
        a, b = a[:, None], b[:, None]
    count = a.shape[1]
    name = "column" if a.ndim == 2 else "channel"
    names = [f"{columns[k]}" if len(columns) == count else f"{name} {k}" for k in range(count)]
    unlike = [k for k in range(count) if error_of(a[:, k], b[:, k]) > tolerance]
    moved = {k: _same_as(b[:, k], a, unlike, tolerance) for k in unlike}
    if count > 1 and unlike and all(source is not None and source != k for k, source in moved.items()):
        what = ", ".join(
            f"{names[k]} holds {names[source]}" for k, source in list(moved.items())[:NAMED] if source is not None
        )
        turned = a.ndim > 2 and moved == {k: count - 1 - k for k in moved}
        return f"has its {name}s exchanged: {what}" + (" (BGR for RGB)" if turned and count == 3 else "")
    if broken := int((np.isfinite(a) & ~np.isfinite(b)).sum()):
        return f"holds {broken} values that are not finite"
    if filled := int((~np.isfinite(a) & np.isfinite(b)).sum()):
        return (
            f"holds numbers in {filled} places that are not finite in the original: missing values are filled otherwise"
        )
    parts = [f"{names[k]} {_scaled(a[:, k], b[:, k])}" for k in unlike[:NAMED]]
    if a.ndim > 2 and len(unlike) == count:
        factor = _line(a, b)
        if factor is not None and factor[0]:
            return _said(*factor)
        if cut := _cut_off(a, b):
            return cut
        return f"differs in every channel ({_scaled(a, b)}): the picture is resized, cropped or normalised otherwise"
    more = f" and {len(unlike) - NAMED} further {name}s differ" if len(unlike) > NAMED else ""
    return "differs: " + "; ".join(parts) + more


def turned(true: Sequence[NDArray[Any]], given: Sequence[NDArray[Any]]) -> str | None:
    """How pictures or volumes were turned as a whole, in words; None where no turn explains the difference.

    They need not come in the same order: windows of a turned volume are turned windows, taken in another order.

    Args:
        true: [...] each, without a batch's or a channel's axis.
    """
    telling = [np.ascontiguousarray(array) for array in true if array.size and np.ptp(array) > 0][:MOST_TURNED]
    there = {(array.shape, np.ascontiguousarray(array).tobytes()) for array in given}
    if not telling or len({array.ndim for array in telling}) > 1:
        return None

    def found(order: tuple[int, ...], flips: tuple[bool, ...]) -> int:
        seen = (_turn(array, order, flips) for array in telling)
        return sum((array.shape, array.tobytes()) in there for array in seen)

    (same, *_), best, most = _turns(telling[0].ndim), None, 0
    least = found(*same)
    for turn in _turns(telling[0].ndim)[1:]:
        if (count := found(*turn)) > most:
            best, most = turn, count
    if best is None or most <= least or most < len(telling) / 4:
        return None
    return _turn_said(*best)


def turned_labels(true: Sequence[NDArray[Any]], given: Sequence[NDArray[Any]]) -> str | None:
    """How masks, one a sample, were turned; None where no turn brings most of their foreground together."""
    if not true or len({array.ndim for array in true}) > 1 or true[0].ndim < 2:
        return None

    def agreement(order: tuple[int, ...], flips: tuple[bool, ...]) -> float:
        alike = whole = 0
        for a, b in zip(true, given, strict=True):
            seen = _turn(a, order, flips)
            if seen.shape != b.shape:
                return 0.0
            there = (seen != 0) | (b != 0)
            alike, whole = alike + int((seen == b)[there].sum()), whole + int(there.sum())
        return alike / max(1, whole)

    same, *others = _turns(true[0].ndim)
    best = max(others, key=lambda turn: agreement(*turn))
    return _turn_said(*best) if agreement(*best) >= max(0.8, agreement(*same) + 0.1) else None


def _turns(ndim: int) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """Every order of axes with every choice of mirrored ones; the first changes nothing."""
    return [(order, flips) for order in permutations(range(ndim)) for flips in product((False, True), repeat=ndim)]


def _turn(array: NDArray[Any], order: tuple[int, ...], flips: tuple[bool, ...]) -> NDArray[Any]:
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    return np.ascontiguousarray(array.transpose(order)[steps])


def _turn_said(order: tuple[int, ...], flips: tuple[bool, ...]) -> str:
    moved = [f"axis {place} holds axis {axis}" for place, axis in enumerate(order) if place != axis]
    mirrored = [str(place) for place, flip in enumerate(flips) if flip]
    words = [f"has its axes exchanged: {', '.join(moved)}"] if moved else []
    if mirrored:
        words.append(f"is mirrored along {'axis' if len(mirrored) == 1 else 'axes'} {' and '.join(mirrored)}")
    return ", and ".join(words)


def exchanged(
    true: Sequence[Arrays], given: Sequence[Arrays], names: Sequence[str], *, tolerance: float
) -> list[tuple[str, str]]:
    """Pairs of outputs, of the same shape, each of which is what the other should be."""
    whole = {
        name: [
            np.concatenate([np.zeros(0), *(np.ravel(arrays[name]) for arrays in side if name in arrays)])
            for side in (true, given)
        ]
        for name in names
    }
    pairs = []
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            (a, b), (c, d) = whole[one], whole[other]
            if (
                a.shape == c.shape
                and error_of(a, b) > tolerance
                and error_of(a, d) <= tolerance
                and error_of(c, b) <= tolerance
            ):
                pairs.append((one, other))
    return pairs


def misread(true: Session, given: Session, columns: Sequence[str], *, tolerance: float) -> str | None:
    """Which columns or channels of its inputs a network reads in each other's place, None where it reads each as its own.

    Each column alone is set to 1 among zeros: an exchange shows as one column's answer to the other.
    """
    state = {spec.name.removeprefix("new_") for spec in true.outputs}
    for spec in true.inputs:
        if spec.name in state or len(spec.shape) < 2 or not isinstance(spec.shape[1], int) or spec.dtype != "float32":
            continue
        count = spec.shape[1]
        arrays = {
            other.name: np.zeros(
                [count if axis == spec.shape[0] else AXIS if isinstance(axis, str) else axis for axis in other.shape],
                other.dtype,
            )
            for other in true.inputs
        }
        arrays[spec.name][np.arange(count), np.arange(count)] = 1.0
        a, b = (
            np.concatenate([results[out.name].reshape(count, -1).astype(np.float64) for out in true.outputs], axis=1)
            for results in (true(arrays), given(arrays))
        )
        scale = np.abs(a).max(initial=1e-12)
        unlike = [k for k in range(count) if np.abs(a[k] - b[k]).max() > tolerance * scale]
        found = {k: next((j for j in unlike if np.abs(a[j] - b[k]).max() <= tolerance * scale), None) for k in unlike}
        if unlike and all(source is not None and source != k for k, source in found.items()):
            names = (
                columns
                if len(columns) == count
                else [f"{'channel' if len(spec.shape) > 2 else 'column'} {k}" for k in range(count)]
            )
            return ", ".join(f"{names[k]} as {names[j]}" for k, j in list(found.items())[:NAMED] if j is not None)
    return None


def _same_as(column: NDArray[Any], a: NDArray[Any], among: Sequence[int], tolerance: float) -> int | None:
    return next((k for k in among if error_of(a[:, k], column) <= tolerance), None)


def _line(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float] | None:
    """(factor, shift) with b = factor * a + shift, where that holds."""
    x, y = _finite(a, b)
    if not x.size or not (spread := x.var()) > 0:
        return None
    factor = float(((x - x.mean()) * (y - y.mean())).mean() / spread)
    shift = float(y.mean() - factor * x.mean())
    rest = np.abs(factor * x + shift - y).max()
    if not rest <= 1e-2 * np.abs(x - y).max():
        return None
    return factor, shift if abs(shift) > 1e-5 * np.abs(y).max() else 0.0


def _cut_off(a: NDArray[Any], b: NDArray[Any]) -> str | None:
    """Of values that are clipped: the line between those that neither side clips, or how much more of them is clipped."""
    x, y = _finite(a, b)
    if not x.size:
        return None
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    inner = (x > low) & (x < high) & (y > low) & (y < high)
    if inner.mean() > 0.999:
        return None
    if inner.sum() >= max(10, 0.001 * x.size):
        line = _line(x[inner], y[inner])
        if line is not None and (line[1] or abs(line[0] - 1) > 1e-4):
            return f"{_said(*line)} before it is clipped"
    for end, name in ((high, "largest"), (low, "smallest")):
        before, after = float((x == end).mean()), float((y == end).mean())
        if after > before + 0.25:
            return (
                f"holds its {name} value in {after:.0%} of places, the original in {before:.0%}: it is centred or scaled "
                "otherwise before it is clipped"
            )
    return None


def _finite(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Flat, where both are finite."""
    both = np.isfinite(a) & np.isfinite(b)
    return a[both], b[both]


def _said(factor: float, shift: float) -> str:
    if shift and abs(factor - 1) < 1e-4:
        return f"is the original plus {shift:.4g}: it is centred otherwise"
    moved = f" plus {shift:.4g}" if shift else ""
    return f"is {factor:.6g} times the original{moved}: it is scaled otherwise"


def _scaled(a: NDArray[Any], b: NDArray[Any]) -> str:
    x, y = _finite(a, b)
    if y.size and np.ptp(y) == 0 < np.ptp(x):
        return f"is {y[0]:.6g} everywhere"
    found = _line(a, b)
    if found is not None:
        return _said(*found)
    related = float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else float("nan")
    return f"differs by up to {np.abs(x - y).max():.4g} (correlation {related:.3f})"
