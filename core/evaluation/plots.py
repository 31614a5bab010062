"""The usual plots of a detector, as inline SVG for `core.evaluation.report`.

matplotlib draws; its colours are then exchanged for the page's style variables, and its text for the page's font, so
that one drawing holds in light and dark. Curves are thinned to what the eye can see: a million rows make a page of
kilobytes. Nothing else in `core` imports matplotlib: import this module where a report is written.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from core.evaluation.metrics import auc_roc, average_precision, calibration_error, tail_reliability
from core.evaluation.report import Plot
from core.evaluation.scored import Floats, Scored
from core.evaluation.thresholds import Threshold, trade_off

POINTS = 300
"""Points that a drawn curve keeps."""

INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606", "#070707")
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)
}
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
}


def roc(rows: Mapping[str, Scored]) -> Plot:
    """ROC curves by name, false alarms on a log scale: a detector of rare events lives at the left end."""
    series = {}
    for name, scored in rows.items():
        _, true, false = scored.curve
        if true[-1] and false[-1]:
            floor = 0.5 / false[-1]
            x, y = _thin(np.log10(np.maximum(false / false[-1], floor)), true / true[-1])
            series[f"{name} (AUC {auc_roc(scored):.3f})"] = {"false_alarm_rate": 10**x, "recall": y}

    def draw(axes: Axes) -> None:
        guess = np.logspace(-5, 0, 50)
        axes.plot(guess, guess, color=MUTED, linewidth=1.0, linestyle="--", label="by chance")
        for colour, (name, line) in zip(_colours(series), series.items(), strict=True):
            axes.plot(line["false_alarm_rate"], line["recall"], color=colour, label=name)
        axes.set_xscale("log")
        lowest = min((float(line["false_alarm_rate"].min()) for line in series.values()), default=1e-4)
        axes.set(xlim=(max(lowest, 1e-5), 1), ylim=(0, 1.02), xlabel="false-alarm rate", ylabel="recall")
        _plain_logs(axes, "x")
        axes.legend(loc="upper left")

    return Plot("ROC", _svg("roc", draw), "Recall against the share of negatives alerted, on a log scale.", series)


def precision_recall(rows: Mapping[str, Scored]) -> Plot:
    """Precision against recall by name, with the prevalence that chance would reach."""
    series = {}
    for name, scored in rows.items():
        _, true, false = scored.curve
        if true[-1]:
            x, y = _thin(true / true[-1], true / (true + false))
            series[f"{name} (AP {average_precision(scored):.3f})"] = {"recall": x, "precision": y}

    def draw(axes: Axes) -> None:
        for colour, (name, line) in zip(_colours(series), series.items(), strict=True):
            axes.plot(line["recall"], line["precision"], color=colour, label=name)
        base = float(np.mean([scored.prevalence for scored in rows.values()]))
        axes.axhline(base, color=MUTED, linewidth=1.0, linestyle="--", label=f"by chance ({base:.2%})")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.legend(loc="center left")

    return Plot("Precision and recall", _svg("precision-recall", draw), "Precision at every recall.", series)


def reliability_curves(rows: Mapping[str, Scored]) -> Plot:
    """Observed against predicted share by name (`before`, `after` calibration), on log scales."""
    series = {}
    for name, scored in rows.items():
        predicted, observed, mass = tail_reliability(scored)
        series[f"{name} (ECE {calibration_error(scored):.4f})"] = {
            "predicted": predicted,
            "observed": observed,
            "rows": mass,
        }

    def draw(axes: Axes) -> None:
        shown = {
            name: (np.maximum(line["predicted"], 1e-6), np.maximum(line["observed"], 0.5 / line["rows"]))
            for name, line in series.items()
        }
        low = max(min(float(min(x.min(), y.min())) for x, y in shown.values()) / 1.5, 1e-6)
        axes.plot([low, 1], [low, 1], color=MUTED, linewidth=1.0, linestyle="--", label="perfect")
        for colour, (name, (x, y)) in zip(_colours(shown), shown.items(), strict=True):
            axes.plot(x, y, color=colour, marker="o", markersize=4, linewidth=1.2, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set(xlim=(low, 1.3), ylim=(low, 1.3), xlabel="predicted probability", ylabel="observed share")
        _plain_logs(axes, "xy")
        axes.legend(loc="upper left")

    caption = "Each point holds half of the rows above it; a bin without a positive is drawn at half a positive."
    return Plot("Reliability", _svg("reliability", draw), caption, series)


def score_histogram(rows: Scored, *, threshold: float | None = None) -> Plot:
    """Rows by probability and class; the probability on the scale of its log odds, the counts on a log scale."""
    score = np.clip(rows.score, 1e-6, 1 - 1e-6)
    odds = np.log(score / (1 - score))
    edges = np.linspace(odds.min() - 1e-6, odds.max() + 1e-6, 51)
    wide = np.ptp(odds) > 14
    ticks = np.array([1e-6, 1e-4, 0.01, 0.5, 0.99, 0.9999] if wide else [1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999])
    counts = {
        name: np.histogram(odds[chosen], edges)[0]
        for name, chosen in (("negative", ~rows.label), ("positive", rows.label))
    }

    def draw(axes: Axes) -> None:
        for colour, (name, count) in zip(SERIES, counts.items(), strict=False):
            axes.stairs(count, edges, baseline=0.5, fill=True, color=colour, alpha=0.25)
            axes.stairs(count, edges, baseline=0.5, color=colour, linewidth=1.5, label=f"{name} ({count.sum():,})")
        if threshold is not None and 0 < threshold < 1:
            axes.axvline(float(np.log(threshold / (1 - threshold))), color=INK, linewidth=1.2, linestyle=":")
        axes.set_yscale("log")
        axes.set(xlim=(edges[0], edges[-1]), xlabel="probability", ylabel="rows")
        axes.set_ylim(bottom=0.5)
        axes.xaxis.set_major_locator(FixedLocator(list(np.log(ticks / (1 - ticks)))))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{1 / (1 + np.exp(-x)):.6g}"))
        _plain_logs(axes, "y")
        axes.legend(loc="upper right")

    edge_values = 1 / (1 + np.exp(-edges))
    caption = "Rows by score and class." + (
        f" Dotted: the threshold, {threshold:.4g}." if threshold is not None else ""
    )
    return Plot("Scores", _svg("scores", draw), caption, {"edges": edge_values, **counts})


def training_curves(
    history: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str = "Training", label: str = "loss"
) -> Plot:
    """Named curves of (steps, values): losses of training and validation, or a figure over time."""
    series = {
        name: dict(
            zip(("step", "value"), _thin(np.asarray(steps, np.float64), np.asarray(values, np.float64)), strict=True)
        )
        for name, (steps, values) in history.items()
        if len(steps)
    }

    def draw(axes: Axes) -> None:
        for colour, (name, line) in zip(_colours(series), series.items(), strict=True):
            axes.plot(line["step"], line["value"], color=colour, label=name)
        axes.set(xlabel="step", ylabel=label)
        if series:
            axes.legend(loc="upper right")

    return Plot(title, _svg(f"training-{title}", draw), "", series)


def threshold_trade_off(rows: Scored, *, chosen: Threshold | None = None) -> Plot:
    """Recall and precision against alerts a day, and where the chosen threshold lies."""
    _, alerts, recall, precision = trade_off(rows)
    x, y = _thin(np.log10(alerts), recall)
    x_too, y_too = _thin(np.log10(alerts), precision)
    series = {
        "recall": {"alerts_per_day": 10**x, "value": y},
        "precision": {"alerts_per_day": 10**x_too, "value": y_too},
    }

    def draw(axes: Axes) -> None:
        for colour, (name, line) in zip(SERIES, series.items(), strict=False):
            axes.plot(line["alerts_per_day"], line["value"], color=colour, label=name)
        if chosen is not None and chosen.alerts_per_day > 0:
            axes.axvline(chosen.alerts_per_day, color=INK, linewidth=1.2, linestyle=":")
        axes.set_xscale("log")
        axes.set(ylim=(0, 1.02), xlabel="alerts a day", ylabel="share")
        _plain_logs(axes, "x")
        axes.legend(loc="center right")

    caption = "What each threshold would give."
    if chosen is not None:
        caption += (
            f" Dotted: the threshold {chosen.threshold:.4g}, {chosen.alerts_per_day:.4g} alerts a day, "
            f"recall {chosen.recall:.3f}, precision {chosen.precision:.3f}."
        )
    return Plot("Threshold", _svg("threshold", draw), caption, series)


def detection_plots(
    calibrated: Scored,
    *,
    uncalibrated: Scored | None = None,
    history: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    chosen: Threshold | None = None,
) -> list[Plot]:
    """The plots of a detector's report, in reading order; rows carry days, scores are probabilities."""
    names = {"before calibration": uncalibrated, "calibrated": calibrated}
    plots = [
        roc({"test": calibrated}),
        precision_recall({"test": calibrated}),
        threshold_trade_off(calibrated, chosen=chosen),
        score_histogram(calibrated, threshold=None if chosen is None else chosen.threshold),
        reliability_curves({name: rows for name, rows in names.items() if rows is not None}),
    ]
    return [*plots, training_curves(history)] if history else plots


def frontier(points: Sequence[Mapping[str, Any]], *, figure: str) -> Plot:
    """Score against latency: what a model costs and what it is worth, up and to the left being better.

    Args:
        points: each with `model`, `p50_ms`, `value`, `low` and `high` (or None), and where they are many with `series`:
            then a colour is a series, a mark a model, and a legend says both.
        figure: name of the score.
    """
    many = any("series" in point for point in points)
    groups = list(dict.fromkeys(point["series"] if many else point["model"] for point in points))
    marks = dict(zip(dict.fromkeys(point["model"] for point in points), "osD^vP*X", strict=False)) if many else {}

    def draw(axes: Axes) -> None:
        for place, point in enumerate(points):
            colour = SERIES[groups.index(point["series"] if many else point["model"]) % len(SERIES)]
            x, y = point["p50_ms"], point["value"]
            if point.get("low") is not None:
                axes.plot([x, x], [point["low"], point["high"]], color=colour, linewidth=0.8, alpha=0.5)
            axes.plot([x], [y], marks.get(point["model"], "o"), color=colour, markersize=5)
            if not many:
                up = 4 if place % 2 else -10
                axes.annotate(point["model"], (x, y), xytext=(6, up), textcoords="offset points", fontsize=8)
        if many:
            colours = [Line2D([], [], color=SERIES[k % len(SERIES)], label=name) for k, name in enumerate(groups)]
            ways = [Line2D([], [], color=MUTED, linestyle="", marker=mark, label=name) for name, mark in marks.items()]
            axes.legend(
                handles=[*colours, *ways], fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3
            )
        axes.set_xscale("log")
        axes.margins(x=0.05 if many else 0.3, y=0.15)
        axes.set(xlabel="latency, ms (median, log scale)", ylabel=figure)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())

    kept = ("series", "p50_ms", "value", "low", "high")
    series = {
        f"{place + 1}: {point['model']}": {key: point.get(key) for key in kept} for place, point in enumerate(points)
    }
    return Plot("Frontier", _svg("frontier", draw), f"{figure} with its 95 % interval against latency.", series)


def _colours(series: Mapping[str, object]) -> list[str]:
    """A colour a series; after four they come round again."""
    return [SERIES[place % len(SERIES)] for place in range(len(series))]


def _thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most POINTS of a curve's points, evenly along its drawn length, the first and the last among them."""
    if len(x) <= POINTS:
        return x, y
    steps = np.hypot(np.diff(x) / (np.ptp(x) or 1.0), np.diff(y) / (np.ptp(y) or 1.0))
    along = np.append(0.0, np.cumsum(np.nan_to_num(steps)))
    places = np.unique(np.searchsorted(along, np.linspace(0.0, along[-1], POINTS)).clip(max=len(x) - 1))
    return x[places], y[places]


def _plain_logs(axes: Axes, which: str) -> None:
    """Decades as plain numbers (0.001, 10), without labels between."""
    for axis in [getattr(axes, f"{name}axis") for name in which]:
        axis.set_major_locator(LogLocator(numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axis.set_minor_formatter(NullFormatter())


def _svg(name: str, draw: Callable[[Axes], None]) -> str:
    """One drawing as an `<svg>` element in the page's colours and font; the same input gives the same bytes."""
    settings: Any = {**_STYLE, "svg.hashsalt": name}
    with rc_context(settings):
        figure = Figure(figsize=(4.8, 3.3), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text))
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1).strip()
