from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from core.monitoring import metrics

ROOT = Path(__file__).resolve().parents[3]

WORKER = """
from core.monitoring import metrics
metrics.predicted("a.b", "v1", "accept", score=0.25, seconds=0.003)
metrics.predicted("a.b", "v1", "refuse", score=0.75)
metrics.model_loaded("a.b", "v1")
metrics.model_loaded("a.b", "v2", replaces="v1")
metrics.threshold_set("a.b", "v2", 0.4)
metrics.reloaded("a.b", "loaded")
metrics.batched("a.b", 3)
metrics.refused("echo", "conflict")
metrics.queued("a.b", {"queued": 2, "running": 1})
"""

COLLECT = """
import json
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(json.dumps([[s.name, s.labels, s.value] for m in registry.collect() for s in m.samples]))
"""


def _python(code: str, environment: dict[str, str]) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def test_the_figures_of_two_workers_add_up(tmp_path: Path) -> None:
    shared = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    _python(WORKER, shared)
    _python(WORKER, shared)
    samples = {(name, *sorted(labels.items())): value for name, labels, value in json.loads(_python(COLLECT, shared))}
    v1, v2 = (("application", "a.b"), ("version", "v1")), (("application", "a.b"), ("version", "v2"))
    assert samples["verticals_prediction_total", v1[0], ("decision", "accept"), v1[1]] == 2
    assert samples["verticals_prediction_total", v1[0], ("decision", "refuse"), v1[1]] == 2
    assert samples["verticals_prediction_duration_seconds_count", *v1] == 2  # only where a time was given
    assert samples["verticals_score_bucket", v1[0], ("le", "0.2"), v1[1]] == 0
    assert samples["verticals_score_bucket", v1[0], ("le", "0.3"), v1[1]] == 2
    assert samples["verticals_score_bucket", v1[0], ("le", "1.0"), v1[1]] == 4
    assert samples["verticals_model_info", *v1] == 0
    assert samples["verticals_model_info", *v2] == 2
    assert samples["verticals_threshold", *v2] == 0.4
    assert samples["verticals_model_reload_total", v1[0], ("outcome", "loaded")] == 2
    assert samples["verticals_batch_size_sum", v1[0]] == 6
    assert samples["verticals_error_total", ("code", "conflict"), ("service", "echo")] == 2
    assert samples["verticals_jobs", v1[0], ("state", "queued")] == 2


def test_importing_it_leaves_the_choice_of_shared_figures_open() -> None:
    code = "import sys, core.monitoring.metrics; print('prometheus_client' in sys.modules)"
    assert _python(code, {}).strip() == "False"


def test_buckets_are_floats_in_order() -> None:
    for bounds in (metrics.SECONDS, metrics.SCORES, metrics.SIZES):
        assert all(type(bound) is float for bound in bounds)
        assert list(bounds) == sorted(set(bounds))
