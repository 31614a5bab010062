"""Prometheus metrics of our own, beside those that BentoML keeps of requests.

They are made at first use: prometheus_client decides at its import whether several workers share their figures
(PROMETHEUS_MULTIPROC_DIR), and BentoML sets that variable before it starts a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0, 300.0)
"""Bounds of the latency histogram's buckets. All floats: BentoML sorts buckets as text otherwise."""

SCORES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Bounds of the score histogram's buckets: fine where rare events have their thresholds."""

SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class _Metrics(NamedTuple):
    predictions: Counter
    latency: Histogram
    score: Histogram
    batch: Histogram
    info: Gauge
    threshold: Gauge
    reloads: Counter
    errors: Counter
    jobs: Gauge


def predicted(
    application: str, version: str, decision: str, *, score: float | None = None, seconds: float | None = None
) -> None:
    """Counts one answer.

    Args:
        decision: a word of a small fixed set; it becomes a label.
        score: probability between 0 and 1.
        seconds: time from the request's arrival to its answer.
    """
    metrics = _metrics()
    metrics.predictions.labels(application, version, decision).inc()
    if score is not None:
        metrics.score.labels(application, version).observe(score)
    if seconds is not None:
        metrics.latency.labels(application, version).observe(seconds)


def batched(application: str, size: int) -> None:
    """Records how many requests were answered together."""
    _metrics().batch.labels(application).observe(size)


def model_loaded(application: str, version: str, *, replaces: str | None = None) -> None:
    """Says that this process now answers with `version`, and no more with `replaces`."""
    metrics = _metrics()
    if replaces is not None and replaces != version:
        metrics.info.labels(application, replaces).set(0)
    metrics.info.labels(application, version).set(1)


def threshold_set(application: str, version: str, threshold: float) -> None:
    """Records an override of the decision threshold."""
    _metrics().threshold.labels(application, version).set(threshold)


def reloaded(application: str, outcome: str) -> None:
    """Counts an attempt to load another version; `outcome` is `loaded` or `failed`."""
    _metrics().reloads.labels(application, outcome).inc()


def refused(service: str, code: str) -> None:
    """Counts an error answer by the code in its envelope."""
    _metrics().errors.labels(service, code).inc()


def queued(application: str, counts: Mapping[str, int]) -> None:
    """Records how many jobs are in each state."""
    for state, count in counts.items():
        _metrics().jobs.labels(application, state).set(count)


@cache
def _metrics() -> _Metrics:
    from prometheus_client import Counter, Gauge, Histogram

    model = ("application", "version")
    return _Metrics(
        Counter("verticals_prediction_total", "Answers given", (*model, "decision")),
        Histogram("verticals_prediction_duration_seconds", "Time to an answer", model, buckets=SECONDS),
        Histogram("verticals_score", "Scores given", model, buckets=SCORES),
        Histogram("verticals_batch_size", "Requests answered together", ("application",), buckets=SIZES),
        Gauge("verticals_model_info", "Workers that answer with this version", model, multiprocess_mode="livesum"),
        Gauge("verticals_threshold", "Override of the decision threshold", model, multiprocess_mode="livemostrecent"),
        Counter("verticals_model_reload_total", "Attempts to load another version", ("application", "outcome")),
        Counter("verticals_error_total", "Error answers by code", ("service", "code")),
        Gauge("verticals_jobs", "Jobs by state", ("application", "state"), multiprocess_mode="livemostrecent"),
    )
