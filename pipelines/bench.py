"""`verticals bench`: what a model costs on this machine."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from core.device import machine, peak_bytes
from core.errors import ConfigError
from pipelines.model import open_model


def bench(
    application: str, *, version: str = "production", run: str | None = None, requests: int = 500
) -> dict[str, Any]:
    """Latency of the network's step for one item and throughput by batch, one thread, example arrays of the right shape.

    Raises:
        ArtifactError: no such model, or it is damaged.
    """
    if requests < 10:
        raise ConfigError(f"--requests {requests}; allowed is 10 and more")
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        before = time.perf_counter()
        model = open_model(application, version=version, run=run)
        load_seconds = time.perf_counter() - before
        session = model.predictor.session  # type: ignore[attr-defined]
        rows = []
        for batch in (1, 32, 256):
            arrays = {
                spec.name: np.zeros([batch if isinstance(axis, str) else axis for axis in spec.shape], spec.dtype)
                for spec in session.inputs
            }
            times = []
            for _ in range(max(10, requests // batch)):
                start = time.perf_counter()
                session(arrays)
                times.append(time.perf_counter() - start)
            middle, high, highest = np.quantile(times[3:], (0.5, 0.95, 0.99)) * 1e3
            rows.append(
                {
                    "batch": batch,
                    "p50_ms": middle,
                    "p95_ms": high,
                    "p99_ms": highest,
                    "per_second": batch / middle * 1e3,
                }
            )
    finally:
        torch.set_num_threads(threads)
    size = (model.path / "model.safetensors").stat().st_size
    lines = [
        f"{model.version}: {size / 1e6:.2f} MB, loaded in {load_seconds:.2f} s, peak memory {peak_bytes() / 2**30:.2f} GiB, one thread"
    ]
    lines.append(f"{'batch':>8}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}{'per second':>12}")
    lines += [
        f"{r['batch']:>8}{r['p50_ms']:>10.3f}{r['p95_ms']:>10.3f}{r['p99_ms']:>10.3f}{r['per_second']:>12.0f}"
        for r in rows
    ]
    return {
        "version": model.version,
        "bytes": size,
        "load_seconds": load_seconds,
        "rows": rows,
        "machine": machine(),
        "text": "\n".join(lines),
    }
