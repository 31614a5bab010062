"""`verticals serve`: a vertical's BentoML service, trained on synthetic data first where nothing is registered."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from core import registry
from core.errors import ArtifactError, ConfigError
from verticals import APPLICATIONS, load


def serve(
    vertical: str, *, host: str = "127.0.0.1", port: int = 3000, train_if_missing: bool = False
) -> dict[str, Any]:
    """Serves until stopped; the exit code is BentoML's.

    Raises:
        ConfigError: no such vertical.
        ArtifactError: an application has no production version and `train_if_missing` is off, or it is damaged.
    """
    applications = [name for name in APPLICATIONS if name.partition(".")[0] == vertical]
    if not applications:
        known = sorted({name.partition(".")[0] for name in APPLICATIONS})
        raise ConfigError(f"no vertical {vertical!r}; there are: {', '.join(known)}")
    for name in applications:
        if train_if_missing and "production" not in registry.aliases(name):
            from pipelines.train import train

            print(f"no version of {name} is in production: training one on synthetic data", file=sys.stderr)
            print(train(name, alias="production")["text"], file=sys.stderr)
            if load(name).begins_filled:
                _fill(name)
        else:
            registry.resolve(name)
    command = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        f"verticals.{vertical}:svc",
        "--host",
        host,
        "--port",
        str(port),
    ]
    environment = {"BENTOML_DO_NOT_TRACK": "true", **os.environ}
    if os.name == "posix":
        sys.stderr.flush()
        os.execvpe(command[0], command, environment)
    done = subprocess.run(command, env=environment)
    if done.returncode:
        raise ArtifactError(f"the service ended with exit code {done.returncode}")
    return {"text": "stopped"}


def _fill(name: str) -> None:
    """Puts synthetic data into what the service keeps."""
    from pipelines.data import data

    with tempfile.TemporaryDirectory() as folder:
        source = str(Path(folder) / "synthetic")
        try:
            data(name, synthetic=source)
            print(data(name, load=source)["text"], file=sys.stderr)
        except BaseException:
            again = f"verticals data {name} --synthetic FOLDER; verticals data {name} --load FOLDER"
            print(f"synthetic data were put in in part, or not at all; the rest comes by: {again}", file=sys.stderr)
            raise
