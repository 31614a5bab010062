"""What has to be set before anything is imported."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:  # before prometheus_client is imported, as `bentoml serve` does
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="prometheus-")
    atexit.register(shutil.rmtree, os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.servers"]
