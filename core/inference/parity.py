"""Does an artifact answer as the network that it was made of? The whole way is compared, and a difference is named.

Both run through the application's Predictor over the same real samples. What differs is looked for in the order in which
an answer is made: constants, what is prepared for the network, the network itself, what is made of its outputs, the score.
Agreement that says nothing (one class everywhere) is a fault too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.config import Config
from core.contract import Application, Arrays, Data, Limits, Metrics, Session, TensorSpec
from core.errors import ArtifactError, VerticalsError
from core.inference.departure import error_of
from core.inference.diagnosis import changed, difference, exchanged, misread, turned, turned_labels
from core.inference.layout import differing_layout
from core.inference.parts import sessions_of
from core.inference.recording import Recorder
from core.inference.session import Precision

DOUBLE = 1e-10
"""Relative error that is allowed of float64, and none of whole numbers: who asks for such a type needs what it holds."""

SAME = 1e-6
"""Relative difference up to which prepared arrays are the same: they are made by the same code."""


class Side(NamedTuple):
    """A model as it answers."""

    name: str
    config: Config
    constants: Mapping[str, Any]
    session: Session


class Compared(NamedTuple):
    """What a comparison gave."""

    report: Report
    metrics: Metrics | None
    """The artifact's own, None where it could not answer."""


class Report(NamedTuple):
    """`parity.json`."""

    passed: bool
    findings: list[str]
    """What departs, in the order in which an answer is made; empty where parity was shown."""
    precision: str
    split: str
    samples: int
    tensors: dict[str, dict[str, float]]
    """Of each output: `error` on the same inputs and its `limit`."""
    answers: dict[str, dict[str, Any]]
    """Of each answer: `difference` and its `limit`, and how often each label was given."""
    score: dict[str, Any]
    """The figure's name, its value on both sides with the original's interval, and what may be lost."""
    figures: dict[str, Any]
    """Every figure of the artifact."""
    files: dict[str, str] = {}
    """sha256 of the files that were compared."""

    @property
    def text(self) -> str:
        """For a terminal."""
        lines = [
            f"parity ({self.precision}, {self.samples:,} samples of {self.split}): {'passed' if self.passed else 'FAILED'}"
        ]
        lines += [f"  departs: {finding}" for finding in self.findings]
        for name, row in self.tensors.items():
            lines.append(f"  output {name:<20} relative error {row['error']:.3g} (limit {row['limit']:g})")
        for name, row in self.answers.items():
            lines.append(f"  answer {name:<20} {row['kind']} {row['difference']:.3g} (limit {row['limit']:g})")
        if self.score:
            row = self.score
            lines.append(
                f"  score  {row['figure']:<20} {row['original']:.5f} -> {row['artifact']:.5f} (may lose {row['limit']:.3g})"
            )
        return "\n".join(lines)


def compare(
    app: Application,
    original: Side,
    artifact: Side,
    data: Data,
    split: str,
    *,
    precision: Precision,
    notes: Mapping[str, Any] | None = None,
    locate: Callable[[Arrays], str] | None = None,
) -> Compared:
    """
    Args:
        data: whose samples are answered.
        split: which of them.
        precision: chooses the application's limits.
        notes: what the artifact's record says of its compression.
        locate: one call's inputs -> the first layer that departs, in words.

    Raises:
        ArtifactError: the application has no limits for this precision.
        DataError: there are no such samples.
    """
    limits = app.limits.get(precision)
    if limits is None:
        raise ArtifactError(
            f"{app.name} has no parity limits for {precision}; there are limits for {', '.join(app.limits)}"
        )
    findings = [
        *(
            f"configuration: {line}"
            for line in changed(original.config.model_dump(mode="json"), artifact.config.model_dump(mode="json"))
        ),
        *(f"constants: {line}" for line in changed(original.constants, artifact.constants)),
        *_calibrated(notes or {}),
    ]
    layout = differing_layout(original.session, artifact.session)
    true, metrics, columns = _answered(app, original, data, split)
    if layout:
        return _failed([*findings, *layout], precision, split, metrics)
    try:
        given, other, _ = _answered(app, artifact, data, split)
    except (VerticalsError, ValueError, RuntimeError) as error:
        return _failed([*findings, f"the artifact fails on these samples: {error}"], precision, split, metrics)
    findings += _prepared(true, given, columns)
    tensors, worst = _tensors(true, artifact.session, limits)
    session_findings = _session(true, artifact.session, tensors, worst, locate, columns)
    answers = _answers(metrics, other, limits)
    where = _places(metrics, other, answers)
    score = _score(metrics, other, limits)
    findings += [*session_findings, *_finished(answers, where, score, bool(findings or session_findings))]
    report = Report(
        not findings, findings, precision, split, _count(metrics), tensors, answers, score, other.record()["figures"]
    )
    return Compared(report, other)


def _answered(app: Application, side: Side, data: Data, split: str) -> tuple[Recorder, Metrics, list[str]]:
    recorder = Recorder(side.session)
    predictor = app.predictor(side.config, side.constants, recorder, version=side.name)
    return recorder, app.evaluate(predictor, data, split), list(getattr(predictor, "columns", ()))


def _failed(findings: list[str], precision: str, split: str, metrics: Metrics) -> Compared:
    return Compared(Report(False, findings, precision, split, _count(metrics), {}, {}, {}, {}), None)


def _count(metrics: Metrics) -> int:
    return len(next(iter(metrics.answers.values()), ()))


def _calibrated(notes: Mapping[str, Any]) -> list[str]:
    """A quantized network was calibrated on samples of every class."""
    classes = notes.get("calibration")
    if not isinstance(classes, Mapping):
        return []
    present = [name for name, count in classes.items() if count]
    if len(present) > 1:
        return []
    total = sum(classes.values())
    return [
        f"calibration: all {total} samples are of class {present[0]}: ranges of the other classes were never seen; calibrate on every class"
        if present
        else "calibration: there were no samples"
    ]


def _prepared(true: Recorder, given: Recorder, columns: list[str]) -> list[str]:
    """What the two Predictors handed to their networks, carried state apart."""
    state = {spec.name.removeprefix("new_") for spec in true.outputs}
    findings = []
    for spec in true.inputs:
        if spec.name in state:
            continue
        turn = None
        if true.num_calls != given.num_calls:
            turn = _turned(true, given, spec)
            findings.append(
                f"prepare: the network was called {given.num_calls} times, the original {true.num_calls} times"
                + (f": {spec.name} {turn}" if turn else "")
            )
            break
        both = sorted(true.calls.keys() & given.calls.keys())
        calls = [(true.calls[k].inputs, given.calls[k].inputs) for k in both]
        pairs = [(a[spec.name], b[spec.name]) for a, b in calls if spec.name in a and spec.name in b]
        pairs = [(np.atleast_1d(a), np.atleast_1d(b)) for a, b in pairs]
        if not pairs:
            continue
        unlike = [(a.shape, b.shape) for a, b in pairs if a.shape != b.shape]
        if unlike:
            findings.append(f"prepare: {spec.name} is {list(unlike[0][1])}, the original gets {list(unlike[0][0])}")
            continue
        if len({a.shape[1:] for a, _ in pairs}) == 1:
            a, b = (np.concatenate([pair[k] for pair in pairs]) for k in (0, 1))
        else:  # pictures of several sizes: the one that differs most
            a, b = max(pairs, key=lambda pair: error_of(*pair))
        if error_of(a, b) > SAME:
            words = _turned(true, given, spec) or difference(a, b, columns, tolerance=SAME)
            findings.append(f"prepare: {spec.name} {words}")
    return findings


def _turned(true: Recorder, given: Recorder, spec: TensorSpec) -> str | None:
    """How pictures or volumes [B, C, ...] were turned before the network got them, in axes after the first two."""
    if len(spec.shape) < 4:
        return None
    sides = [
        [channel for call in side.calls.values() for row in call.inputs.get(spec.name, ()) for channel in row]
        for side in (true, given)
    ]
    return turned(sides[0], sides[1])


def _limit(spec: TensorSpec, limits: Limits) -> float:
    if spec.dtype == "float64":
        return min(limits.tensor, DOUBLE)
    return limits.tensor if spec.dtype.startswith("float") else 0.0


def _tensors(true: Recorder, session: Session, limits: Limits) -> tuple[dict[str, dict[str, float]], Arrays]:
    """Errors of the artifact's outputs on the original's inputs, and the inputs of the worst call."""
    rows = {spec.name: {"error": 0.0, "limit": _limit(spec, limits)} for spec in true.outputs}
    scale = {
        name: max(
            (
                float(np.abs(call.outputs[name][np.isfinite(call.outputs[name])]).max(initial=0))
                for call in true.calls.values()
                if name in call.outputs
            ),
            default=0.0,
        )
        for name in rows
    }
    worst, largest = next(iter(true.calls.values())).inputs, -1.0
    for call in true.calls.values():
        results = session(call.inputs)
        for name, a in call.outputs.items():
            row, b = rows[name], results[name]
            own = float(np.abs(a[np.isfinite(a)]).max(initial=0))
            error = error_of(a, b)
            if np.isfinite(error):
                error *= own / max(scale[name], 1e-12)  # relative to the largest value of all calls
            row["error"] = max(row["error"], error)
            if error > largest:
                worst, largest = call.inputs, error
    return rows, worst


def _session(
    true: Recorder,
    session: Session,
    tensors: dict[str, dict[str, float]],
    worst: Arrays,
    locate: Callable[[Arrays], str] | None,
    columns: list[str],
) -> list[str]:
    """What the network itself does otherwise on the same inputs."""
    over = {name: row for name, row in tensors.items() if not row["error"] <= row["limit"]}
    exact = {spec.name: spec.dtype for spec in true.outputs if spec.dtype in ("float64", "int64")}
    if not over:
        return []
    calls = list(true.calls.values())
    results = [session(call.inputs) for call in calls]
    swapped = exchanged(
        [call.outputs for call in calls], results, list(tensors), tolerance=max(row["limit"] for row in over.values())
    )
    if swapped:
        return [f"network: outputs {a} and {b} are exchanged" for a, b in swapped]
    given = sessions_of(session)
    for name, part in sessions_of(true.session).items():
        if turned := misread(part, given[name], columns, tolerance=SAME):
            return [f"network: it reads its inputs in another order: {turned}"]
    where = f"; it {locate(worst)}" if locate else ""
    findings = []
    for name, row in over.items():
        values = [result[name] for result in results if name in result]
        broken, total = sum(int((~np.isfinite(value)).sum()) for value in values), sum(value.size for value in values)
        what = (
            f"{broken} of {total} values are not finite: the range of its number type is exceeded"
            if broken
            else f"relative error {row['error']:.3g}, allowed is {row['limit']:g}"
        )
        hint = (
            f" ({exact[name]}: a runtime that computes in 32 bits cannot hold it)"
            if name in exact and not broken
            else ""
        )
        findings.append(f"network: output {name}: {what}{where}{hint}")
        where = ""  # said once
    return findings


def _answers(true: Metrics, given: Metrics, limits: Limits) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for name, limit in limits.answers.items():
        a, b = np.asarray(true.answers[name]), np.asarray(given.answers[name])
        number = a.dtype.kind == "f"
        if a.shape != b.shape:
            rows[name] = {"kind": "other shape", "difference": float("inf"), "limit": limit}
        elif number:
            rows[name] = {
                "kind": "differs by",
                "difference": _farthest(a, b),
                "limit": limit,
                "spread": float(np.ptp(a[np.isfinite(a)])) if np.isfinite(a).any() else 0.0,
            }
        else:
            labels, counts = np.unique(a, return_counts=True)
            share = float((a != b).mean()) if a.size else 0.0
            rows[name] = {
                "kind": "share unlike",
                "difference": share,
                "limit": limit,
                "labels": dict(zip(map(str, labels.tolist()), counts.tolist(), strict=True)),
            }
    return rows


def _farthest(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Largest difference; none where neither is a number, infinity where one alone is."""
    neither = np.isnan(a) & np.isnan(b)
    if (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    return float(np.abs(np.where(neither, 0, a) - np.where(neither, 0, b)).max(initial=0))


def _places(true: Metrics, given: Metrics, answers: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Of answers that are masks, and depart: how they were turned."""
    ours, theirs = getattr(true, "pictures", {}), getattr(given, "pictures", {})
    words = {
        name: turned_labels(ours[name], theirs[name])
        for name, row in answers.items()
        if name in ours and not row["difference"] <= row["limit"]
    }
    return {name: said for name, said in words.items() if said}


def _score(true: Metrics, given: Metrics, limits: Limits) -> dict[str, Any]:
    figures = [metrics.record()["figures"].get(limits.figure, {}) for metrics in (true, given)]
    values = [figure.get("value") if isinstance(figure, Mapping) else figure for figure in figures]
    positives = figures[0].get("positives") if limits.counts else None
    return {
        "figure": limits.figure,
        "original": float("nan") if values[0] is None else values[0],
        "artifact": float("nan") if values[1] is None else values[1],
        "interval": [figures[0].get("low"), figures[0].get("high")] if isinstance(figures[0], Mapping) else None,
        "limit": limits.drop + (1 / positives if positives else 0.0),
    }


def _finished(
    answers: dict[str, dict[str, Any]], where: dict[str, str], score: dict[str, Any], explained: bool
) -> list[str]:
    """What is made of the network's outputs. `where`: how masks were turned; `explained`: an earlier step departs already."""
    findings = []
    numbers_agree = all(row["difference"] <= row["limit"] for row in answers.values() if "labels" not in row)
    for name, row in answers.items():
        labels = row.get("labels")
        if labels is not None and len(labels) < 2:
            findings.append(
                f"samples: every {name} is {next(iter(labels), 'missing')}: agreement says nothing; give samples in which both happen"
            )
        elif row.get("spread") == 0.0:
            findings.append(
                f"samples: {name} is the same number everywhere: agreement says nothing; give other samples"
            )
        if not row["difference"] <= row["limit"]:
            alone = labels is not None and numbers_agree and not explained
            why = ": the numbers agree, so the threshold or the rule that makes labels of them differs" if alone else ""
            why = f": it {where[name]}" if name in where else why
            findings.append(f"finish: {name} {row['kind']} {row['difference']:.3g}, allowed is {row['limit']:g}{why}")
    if np.isnan(score["original"]):
        findings.append(f"samples: {score['figure']} does not exist on them: they hold one class only; give others")
    elif not score["original"] - score["artifact"] <= score["limit"]:
        findings.append(
            f"score: {score['figure']} falls from {score['original']:.5f} to {score['artifact']:.5f}; it may lose {score['limit']:.3g}"
        )
    return findings
