"""A line in a process of its own, for tests that kill it: an untrained network, everything else as it is."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from core.inference.session import TorchSession
from verticals.manufacturing.line import Line
from verticals.manufacturing.pcb.config import debug
from verticals.manufacturing.pcb.model import PcbDetector, TileForm
from verticals.manufacturing.pcb.predictor import PcbPredictor
from verticals.manufacturing.settings import from_environment

CLASSES = ("open", "short")


def predictor() -> PcbPredictor:
    config = debug().override(["predict.tile=64", "model.width=0.125", "predict.least_score=0.9"])
    network = PcbDetector(len(CLASSES), num_channels=2, tile=64, width=0.125)
    made = {"classes": list(CLASSES), "thresholds": dict.fromkeys(CLASSES, 0.5)}
    return PcbPredictor(config, made, TorchSession(TileForm(network)), version="untrained")


def main() -> None:
    import torch

    torch.set_num_threads(1)
    model = predictor()
    line = Line(from_environment(), lambda: model)
    ended = threading.Event()

    def end(*_: Any) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    line.start()
    print("ready", flush=True)
    ended.wait()
    line.stop()


if __name__ == "__main__":
    sys.exit(main())
