# ruff: noqa: E402
"""MobileNetV3 pruned, taught and quantized: size, latency and accuracy beside torch eager and OpenVINO in float32.

    python benchmarks/compression_chain.py [--quick] [--json FILE] [--picture SVG] [--seeds N] [--cache DIR] [--held test]

Defects cut out of printed circuit boards (DeepPCB, official lists) and of steel (NEU-DET, split by image), six classes
each. Networks are trained and scored on views of 128 pixels; latency is that of the same weights at 224 pixels (and at
128), one picture, one thread, all ways in turns in one process. Training is kept in the cache: a benchmark that was
stopped goes on. Choices were made with `--held validation`; `--held test` scores once.

A transformer's rows: a pretrained sentence encoder whose layers share their matrices by groups, recovered by distillation,
then int8; scored by caption retrieval (`compression_transformer.py`).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch start their threads
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.compression_models import Dataset, Held, Job, crops_of, network_of, run, works
from benchmarks.compression_transformer import shared_rows, shared_works
from benchmarks.defect_crops import SIDE, Crops, view
from benchmarks.tables import Record, goal, keep, table
from core.compression.calibration import calibration_rows
from core.compression.quantization import static, weights
from core.compression.sharing import num_file_bytes
from core.contract import Session, TensorSpec
from core.device import machine
from core.inference.export import write_network
from core.inference.session import Precision, TorchSession
from core.inference.session_openvino import OpenVinoSession
from core.inference.timing import interleaved

DATASETS: tuple[Dataset, ...] = ("boards", "steel")


class Plan(NamedTuple):
    """What is compared."""

    datasets: tuple[Dataset, ...]
    held: Held
    seeds: range
    ratios: tuple[float, ...]
    """Shares that are pruned, rising."""
    sides: tuple[int, ...]
    """Pixels of the pictures that are timed."""
    cache: Path
    quick: bool

    def jobs(self) -> list[Job]:
        """Every network, in the order of training; steel starts from the boards' teachers."""
        names: tuple[Dataset, ...] = self.datasets if self.quick or "steel" not in self.datasets else DATASETS
        every = [
            Job(name, self.held, seed, ratio) for seed in self.seeds for name in names for ratio in (0.0, *self.ratios)
        ]
        return [job for job in every if job.dataset in self.datasets or not job.ratio]


EAGER, FLOAT = "torch eager float32", "OpenVINO float32"
CHOSEN = (0.5, "int8 weights, bfloat16")
"""Share that is pruned, and way: what the goals are held against."""
CALIBRATION = 200
DRAWS = 2000


class Classifier(nn.Module):
    """A network as it ships: pictures of one size."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network = network
        self.inputs = (TensorSpec("image", ("B", 3, side, side)),)
        self.outputs = (TensorSpec("logits", ("B", 6)),)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image)
        return logits


class Variant(NamedTuple):
    """One way to run one network."""

    name: str
    session: Session
    bytes: int


def variants(network: nn.Module, side: int, pixels: Tensor, folder: Path) -> Iterator[Variant]:
    """Float in torch and OpenVINO, bfloat16, int8 weights, int8 throughout.

    Args:
        pixels: [N, S, S] crops to calibrate on, every class among them.
    """
    form = Classifier(network, side).eval()
    folder.mkdir(parents=True)
    write_network(form, folder, "openvino")
    whole = folder / "model.xml"

    def opened(name: str, path: Path, precision: Precision) -> Variant:
        session = OpenVinoSession(path, inputs=form.inputs, outputs=form.outputs, precision=precision)
        return Variant(name, session, sum(path.with_suffix(end).stat().st_size for end in (".xml", ".bin")))

    yield Variant(EAGER, TorchSession(form), num_file_bytes(network))
    yield opened(FLOAT, whole, "float32")
    yield opened("OpenVINO bfloat16", whole, "bfloat16")
    yield opened("int8 weights, bfloat16", weights(whole, folder / "weights.xml"), "bfloat16")
    samples = [{"image": view(pixels[k : k + 1], side).contiguous().numpy()} for k in range(len(pixels))]
    yield opened("int8 throughout", static(whole, folder / "int8.xml", samples, preset="performance"), "float32")


def right(session: Session, crops: Crops) -> NDArray[np.bool_]:
    """[N] whether the class is told."""
    told = []
    for first in range(0, len(crops.label), 32):
        image = view(torch.from_numpy(crops.pixels[first : first + 32])).contiguous().numpy()
        told.append(session({"image": image})["logits"].argmax(1))
    found: NDArray[np.bool_] = np.concatenate(told) == crops.label
    return found


def interval(difference: NDArray[np.float64], group: NDArray[Any]) -> tuple[float, float]:
    """95 % of the mean over pictures, drawn by group (image) where there are many, else by picture."""
    names, place = np.unique(group, return_inverse=True)
    if len(names) < 30:
        names, place = np.arange(len(group)), np.arange(len(group))
    total, count = np.bincount(place, difference), np.bincount(place)
    drawn = np.random.default_rng(0).integers(0, len(names), (DRAWS, len(names)))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


Ways = dict[tuple[float, str], Session]
"""By share that is pruned and way."""


def scored(dataset: Dataset, plan: Plan, folder: Path) -> tuple[list[Record], Ways]:
    """Accuracy of every network and way, mean over seeds, and what it loses against its teacher in torch eager; and the
    first seed's sessions."""
    split = crops_of(dataset, plan.held)
    crops = split.held.rows(np.arange(len(split.held.label)) % 12 == 0) if plan.quick else split.held
    chosen = calibration_rows(split.train.label, 12 if plan.quick else CALIBRATION)
    pixels = torch.from_numpy(split.train.pixels[chosen])
    found: dict[tuple[float, str], list[NDArray[np.bool_]]] = {}
    size: dict[tuple[float, str], int] = {}
    first: Ways = {}
    for seed in plan.seeds:
        for ratio in (0.0, *plan.ratios):
            job = Job(dataset, plan.held, seed, ratio)
            for way in variants(network_of(job, plan.cache), SIDE, pixels, folder / job.name):
                found.setdefault((ratio, way.name), []).append(right(way.session, crops))
                size[ratio, way.name] = way.bytes
                first.setdefault((ratio, way.name), way.session)
    teacher = np.stack(found[0.0, EAGER]).astype(float)
    rows = []
    for key, each in found.items():
        accuracy = np.stack(each).astype(float)
        lost = (teacher - accuracy).mean(0)
        low, high = interval(accuracy.mean(0), crops.group)
        loss = interval(lost, crops.group)
        rows.append(
            {
                "dataset": dataset,
                "pruned": key[0],
                "way": key[1],
                "accuracy": 100 * float(accuracy.mean()),
                "low": 100 * low,
                "high": 100 * high,
                "seeds": " ".join(f"{100 * one.mean():.1f}" for one in accuracy),
                "loss": 100 * float(lost.mean()),
                "loss_low": 100 * loss[0],
                "loss_high": 100 * loss[1],
                "n": len(crops.label),
                "MB": size[key] / 1e6,
                "times_smaller": size[0.0, EAGER] / size[key],
            }
        )
    return rows, first


def timed(dataset: Dataset, plan: Plan, opened: Ways, folder: Path) -> dict[tuple[int, float, str], float]:
    """Median milliseconds of one picture by (side, ratio, way), of the first seed's networks; all in turns."""
    crops = crops_of(dataset, plan.held).train
    pixels = torch.from_numpy(crops.pixels[calibration_rows(crops.label, 12)])
    found: dict[tuple[int, float, str], float] = {}
    for side in plan.sides:
        image = {"image": view(pixels[:1], side).contiguous().numpy()}
        ways = opened  # at SIDE
        if side != SIDE:
            networks = {
                ratio: network_of(Job(dataset, plan.held, 0, ratio), plan.cache) for ratio in (0.0, *plan.ratios)
            }
            ways = {
                (ratio, way.name): way.session
                for ratio, network in networks.items()
                for way in variants(network, side, pixels, folder / f"{side}-{ratio}")
            }
        taken = interleaved({str(key): partial(way, image) for key, way in ways.items()}, 20 if plan.quick else 100)
        found |= {(side, *key): float(np.median(taken[str(key)].wall)) for key in ways}
    return found


def judged(rows: list[Record], dataset: Dataset, side: int) -> list[Record]:
    """The goals, for the row that was chosen on validation boards and steel before the test crops were scored."""
    one = next(row for row in rows if (row["pruned"], row["way"]) == CHOSEN)
    name = f"{dataset}, {one['pruned']:.0%} pruned, {one['way']}"
    eager, whole = one[f"x_eager_{side}"], one[f"x_float_{side}"]
    loss = f"{one['loss']:.2f}, {one['loss_low']:.2f} to {one['loss_high']:.2f}"
    return [
        goal(f"{name}: at least 7 times smaller ({one['times_smaller']:.1f})", one["times_smaller"] >= 7),
        goal(f"{name}: at least 6 times torch eager ({eager:.1f})", eager >= 6),
        goal(f"{name}: at least 1.8 times OpenVINO float32 ({whole:.1f})", whole >= 1.8),
        goal(f"{name}: loses at most 1.2 points ({loss})", one["loss"] <= 1.2),
    ]


def drawn(rows: list[Record], side: int, path: Path) -> None:
    """The frontier as a picture: one panel a dataset."""
    from core.evaluation.plots import frontier
    from pipelines.chain import standalone

    for dataset in DATASETS:
        points = [
            {
                "model": row["way"],
                "series": f"{row['pruned']:.0%} pruned",
                "p50_ms": row[f"ms_{side}"],
                "value": row["accuracy"],
                "low": row["low"],
                "high": row["high"],
            }
            for row in rows
            if row["dataset"] == dataset
        ]
        if points:
            target = path.with_stem(f"{path.stem}-{dataset}")
            target.write_text(standalone(frontier(points, figure=f"accuracy, {dataset}, %").svg), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of steel after a few steps: shows that it runs")
    parser.add_argument("--json", metavar="FILE", help="the tables as records")
    parser.add_argument("--picture", metavar="SVG", type=Path, help="the frontier, one file a dataset")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/verticals/compression")
    parser.add_argument("--held", default="test", choices=("test", "validation"))
    parser.add_argument("--only", nargs="+", default=list(DATASETS), choices=DATASETS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if "VERTICALS_DATA" not in os.environ:
        raise SystemExit("VERTICALS_DATA does not say where the data are: pcb/DeepPCB and steel/NEU-DET below it")
    plan = Plan(
        datasets=("steel",) if given.quick else tuple(given.only),
        held=given.held,
        seeds=range(1 if given.quick else given.seeds),
        ratios=(0.5,) if given.quick else (0.35, 0.5),
        sides=(SIDE,) if given.quick else (224, SIDE),
        cache=given.cache / "quick" if given.quick else given.cache,
        quick=given.quick,
    )
    rows: list[Record] = []
    goals: list[Record] = []
    taught = works(plan.jobs(), plan.ratios, plan.cache, quick=plan.quick)
    seconds = run([*taught, *shared_works(plan.cache, quick=plan.quick)], plan.cache, processes=2)
    print(f"  training: {sum(seconds.values()) / 60:.0f} minutes of one core in all")
    with tempfile.TemporaryDirectory() as temporary:
        for dataset in plan.datasets:
            part, ways = scored(dataset, plan, Path(temporary) / dataset / "scored")
            times = timed(dataset, plan, ways, Path(temporary) / dataset / "timed")
            for row in part:
                for side in plan.sides:
                    own = times[side, row["pruned"], row["way"]]
                    row |= {
                        f"ms_{side}": own,
                        f"x_eager_{side}": times[side, 0.0, EAGER] / own,
                        f"x_float_{side}": times[side, 0.0, FLOAT] / own,
                    }
            table(
                f"{dataset}: accuracy at {SIDE} pixels on {part[0]['n']} crops ({plan.held}), {len(plan.seeds)} seeds; latency of one picture",
                [{key: value for key, value in row.items() if key != "dataset"} for row in part],
                "loss: points of accuracy against the unpruned network in torch eager, 95 % over pictures",
            )
            goals += judged(part, dataset, plan.sides[0])
            rows += part
        transformer, shared = shared_rows(Path(temporary), plan.quick, cache=plan.cache)
    if given.picture:
        drawn(rows, plan.sides[0], given.picture)
    keep(given.json, machine=machine(), rows=rows, transformer=transformer, goals=goals + shared, seconds=seconds)


if __name__ == "__main__":
    main()
