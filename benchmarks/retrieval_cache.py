# ruff: noqa: E402
"""Frozen encoders: features made once and kept, beside pictures and captions encoded at every step. Pictures a second, and the score.

    python benchmarks/retrieval_cache.py [--quick] [--json FILE] [--epochs N]

The same pictures in the same order with the same captions, the same heads from the same start: 1,700 of Flickr8k's training pictures in
VERTICALS_DATA/vl/flickr8k train, the other 200 judge; SqueezeNet 1.0 and all-MiniLM-L6-v2. Kept features are in half precision. Without
the data, or with `--quick`, synthetic pictures and random encoders show that the line works.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.retrieval_flickr8k import config_of, data_of
from benchmarks.tables import Record, goal, keep, table
from core.device import machine, seed_everything
from core.distributed.strategy import Strategy
from core.inference.parts import torch_session
from core.training.log import Log
from core.training.loop import fit
from verticals.multimodal.retrieval.application import task
from verticals.multimodal.retrieval.config import RetrievalConfig
from verticals.multimodal.retrieval.data import RetrievalData
from verticals.multimodal.retrieval.dataset import Dataset
from verticals.multimodal.retrieval.evaluation import evaluate
from verticals.multimodal.retrieval.model import constants_of, pair_form
from verticals.multimodal.retrieval.predictor import RetrievalPredictor

MOST_POINTS = 0.01
"""Of mean recall, that the two may differ by."""


class Encoding(RetrievalData):
    """Encodes what it is asked for, every time."""

    _features = RetrievalData._pixels  # type: ignore[assignment]


def learned(config: RetrievalConfig, data: RetrievalData, *, made: Callable[[], object]) -> Record:
    """A row: what training took, and what it found.

    Args:
        made: makes what is kept, and is timed apart.
    """
    seed_everything(config.fit.seed)
    started = time.perf_counter()
    made()
    once = time.perf_counter() - started
    learner: Any = task(config, data)
    started = time.perf_counter()
    with Log(None, quiet=True) as log:
        fit(learner, data, config.fit, strategy=Strategy(torch.device("cpu")), log=log)
    seconds = time.perf_counter() - started
    session = torch_session(pair_form(learner.eval().model))
    found = evaluate(RetrievalPredictor(config, constants_of(data.encoders), session), data, "test").figures
    shown = data.num_batches(world_size=1, epoch=0) * config.sampler.batch_size * config.fit.epochs
    return {
        "made once in s": once,
        "trained in s": seconds,
        "pictures/s": shown / seconds,
        "pictures/s, all in all": shown / (once + seconds),
        "s an epoch": seconds / config.fit.epochs,
        "mean recall": float(found["mean recall"].value),
        "R@1 picture to text": float(found["R@1 picture to text"].value),
        "R@1 text to picture": float(found["R@1 text to picture"].value),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asked = argparse.Namespace(quick=given.quick, cache=folder, set=[f"fit.epochs={given.epochs}"])
        config = config_of(asked)
        kept = data_of(config, "validation")
        made = Encoding(config, Dataset(kept.dataset.root, kept.dataset.format, kept.dataset.sides))
        rows = [
            {"way": "features kept", **learned(config, kept, made=lambda: kept.features)},
            {"way": "encoded every time", **learned(config, made, made=lambda: None)},
        ]
    table(
        f"{given.epochs} epochs of {len(kept.samples('train'))} pictures, judged by {len(kept.samples('test'))}",
        rows,
        f"{machine()['cpu']}, {torch.get_num_threads()} threads; where nothing is kept, heads are begun from features that are not counted",
    )
    faster = rows[0]["pictures/s"] / rows[1]["pictures/s"]
    apart = abs(rows[0]["mean recall"] - rows[1]["mean recall"])
    goals = [goal(f"the same score: {apart:.4f} apart, {faster:.1f} times the pictures a second", apart <= MOST_POINTS)]
    keep(given.json, machine=machine(), rows=rows, goals=goals)


if __name__ == "__main__":
    main()
