# ruff: noqa: E402
"""Seconds a scan and what they cost in Dice: torch, OpenVINO in float32, bfloat16 and int8, beside MONAI's sliding window.

    python benchmarks/ct_speed.py [--quick] [--json FILE] --run DIR [--scans N] [--gate N] [--mixed]

`--run` is a trained run: of `verticals train medical.ct --data ...`, or what `ct_openkbp.py --cache DIR` leaves in DIR/run. Its
network is exported and quantized by `verticals export` and `verticals compress` (each passes its parity gate, on `--gate` validation
scans), then all answer the same test scans with the same windows in turns in one process, every core each; medians over the scans of
the ratios to MONAI's inferer on torch eager. Windows of air are skipped in rows of their own. `--quick` trains the debug recipe on synthetic bodies.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray

from benchmarks.tables import Record, goal, keep, table
from core.contract import Session
from core.device import machine
from core.evaluation.cases import case_comparisons
from core.inference.model import config_of, network_of, session_of
from core.inference.session import Precision, SessionConfig, TorchSession
from core.run import Run
from pipelines.chain import CALIBRATION_SAMPLES, Chain
from pipelines.export import export
from pipelines.model import find
from pipelines.train import train
from verticals.medical.ct import APPLICATION
from verticals.medical.ct.cache import CaseCache
from verticals.medical.ct.data import CtData
from verticals.medical.ct.plan import Plan
from verticals.medical.ct.predictor import CtPredictor
from verticals.medical.pieces import keep_largest
from verticals.medical.volume import Grid, Volume

Answer = Callable[[Volume], NDArray[Any]]
"""A scan on the network's own grid -> its labels."""

PEER = "MONAI, torch eager"
GOALS = {"ours, OpenVINO bfloat16": 3.5, "ours, OpenVINO int8": 5.0}
MOST_LOST = 0.005
"""Of the mean Dice."""


def few(run: Path, folder: Path, *, validation: int, test: int) -> Path:
    """The run again, with so many cases of each side of its data set."""
    config = config_of(APPLICATION, run)
    source, chosen = Path(config.data.sources[0]), folder / "data"
    sides = CtData(config).dataset.sides
    chosen.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != "splits.json":
            (chosen / path.name).symlink_to(path.resolve())
    counts = {"train": None, "validation": validation, "test": test}
    names = {side: [case.name for case in sides[side][:count]] for side, count in counts.items()}
    (chosen / "splits.json").write_text(json.dumps(names))
    data = config.data.model_copy(update={"sources": (str(chosen),)})
    smaller = shutil.copytree(run, folder / "run")
    (smaller / "config.yaml").write_text(config.model_copy(update={"data": data}).to_yaml())
    return smaller


def quick(folder: Path) -> Path:
    """A run that was trained in seconds."""
    settings = ["data.synthetic.num_cases=6"]
    run = train("medical.ct", recipe="debug", settings=settings, runs=str(folder / "runs"), alias="none")["run"]
    torch.set_num_threads(os.cpu_count() or 1)
    return Path(run)


def artifacts(run: Path, folder: Path, *, mixed: bool, limit: float, num_samples: int) -> dict[str, Path]:
    """The run's network for OpenVINO, by precision; with int8 whose rest is bfloat16 where `mixed`.

    Args:
        limit: of the validation Dice that int8 may lose before layers stay in float.
        num_samples: windows that int8 is calibrated on.
    """
    made = {"bfloat16": folder / "bfloat16"}
    export(str(run), format="openvino", precision="bfloat16", output=str(made["bfloat16"]))
    rest = {"int8": "float32"} | ({"int8 and bfloat16": "bfloat16"} if mixed else {})
    for name, precision in rest.items():
        chain = Chain(
            find(str(run)),
            folder / f"chain-{precision}",
            limit=limit,
            form=None,
            format="openvino",
            precision=cast(Precision, precision),
            device="cpu",
        )
        with chain.tidy():  # what `verticals compress` does, without its table: a bench of every model takes long here
            chain.export()
            chain.quantize("static", num_samples=num_samples)
        made |= {precision: chain.stages[1].place.path, name: chain.stages[2].place.path}
    return made


def ways(run: Path, made: dict[str, Path]) -> dict[str, Answer]:
    """Every way to answer a scan, the peer first."""
    config, constants = config_of(APPLICATION, run), Run(run).read_json("constants.json")
    plan = Plan.from_record(constants["plan"])
    network = network_of(APPLICATION, run).eval()

    def peer(scan: Volume) -> NDArray[Any]:
        image = torch.from_numpy(plan.normalized(scan.array))[None, None]
        with torch.inference_mode():
            logits: Any = sliding_window_inference(
                image, plan.patch_size, 1, network, overlap=config.predict.overlap, mode="gaussian"
            )
            labels: NDArray[Any] = logits.argmax(1)[0].to(torch.uint8).numpy()
        keep_largest(labels, [plan.labels[name] for name in plan.one_piece])
        return labels

    def ours(session: Session, air_hu: int | None) -> Answer:
        predict = config.predict.model_copy(update={"air_hu": air_hu})
        predictor = CtPredictor(config.model_copy(update={"predict": predict}), constants, session)
        predictor.warm()
        return lambda scan: predictor([scan])[0].mask.array

    threads = SessionConfig(threads=os.cpu_count() or 1)
    found: dict[str, Answer] = {PEER: peer, "ours, torch eager": ours(TorchSession(network), None)}
    for name, path in made.items():
        session = session_of(APPLICATION, path, config=threads)
        found[f"ours, OpenVINO {name}"] = ours(session, None)
        found[f"ours, OpenVINO {name}, no air"] = ours(session, -500)
    return found


def dice(labels: NDArray[Any], drawn: NDArray[Any], num_classes: int) -> float:
    """Mean over the organs that are drawn."""
    scores = []
    for number in range(1, num_classes):
        ours, theirs = labels == number, drawn == number
        if theirs.any():
            scores.append(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
    return float(np.mean(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the debug recipe on synthetic bodies, about a minute")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--run", metavar="DIR", help="a trained run")
    parser.add_argument("--scans", type=int, default=25, help="test scans (default: 25)")
    parser.add_argument(
        "--gate", type=int, default=3, help="validation scans that artifacts are compared on (default: 3)"
    )
    parser.add_argument("--mixed", action="store_true", help="also int8 whose rest is bfloat16")
    parser.add_argument("--rounds", type=int, default=1, help="how often each scan is answered (default: 1)")
    given = parser.parse_args()
    if not given.quick and not given.run:
        parser.error("give --run DIR, a trained run, or --quick")
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = Path(given.run) if given.run else quick(folder)
        gate = few(run, folder / "gate", validation=given.gate, test=given.gate) if given.run else run
        made = artifacts(
            gate,
            folder,
            mixed=given.mixed,
            limit=0.02 if given.run else 1.0,
            num_samples=CALIBRATION_SAMPLES if given.run else 50,
        )
        run = few(run, folder / "measured", validation=1, test=given.scans) if given.run else run
        measured(run, ways(run, made), given)


def measured(run: Path, answers: dict[str, Answer], given: argparse.Namespace) -> None:
    """Answers in turns, and the table."""
    data = CtData(config_of(APPLICATION, run))
    plan = Plan.from_record(Run(run).read_json("constants.json")["plan"])
    seconds: dict[str, list[float]] = {name: [] for name in answers}
    scores: dict[str, list[float]] = {name: [] for name in answers}
    with CaseCache() as cache:
        for case in cache.prepared(data.samples("test"), plan):
            scan = Volume(np.array(case.image), Grid(case.shape, np.diag([*plan.spacing_mm, 1.0])))
            for _ in range(given.rounds):
                for name, answer in answers.items():
                    started = time.perf_counter()
                    labels = answer(scan)
                    seconds[name].append(time.perf_counter() - started)
                    scores[name].append(dice(labels, case.labels, plan.num_classes))
            print(f"{case.name}: {len(seconds[PEER])} of {len(data.samples('test')) * given.rounds}", file=sys.stderr)
    rows: list[Record] = []
    for name in answers:
        ratio = float(np.median(np.array(seconds[PEER]) / np.array(seconds[name])))
        lost = case_comparisons({"dice": scores[PEER]}, {"dice": scores[name]})["dice"]
        rows.append(
            {
                "way": name,
                "s a scan, median": float(np.median(seconds[name])),
                "times faster": ratio,
                "mean Dice": round(float(np.mean(scores[name])), 4),
                "Dice lost": round(lost.difference, 5),
                "95 %": f"{lost.low:+.4f} to {lost.high:+.4f}",
            }
        )
    here = machine()
    table(
        f"{len(seconds[PEER]) // given.rounds} test scans, windows of {plan.patch_size}",
        rows,
        f"{here['cpu']}, {here['cores']} cores, torch {here['torch']}",
    )
    by_name = {row["way"]: row for row in rows}
    goals = []
    if not given.quick:
        for name, times in GOALS.items():
            row = by_name[name]
            reached = row["times faster"] >= times and row["Dice lost"] <= MOST_LOST
            goals.append(goal(f"{name}: {times} times faster, at most {MOST_LOST} Dice lost", reached))
    keep(given.json, machine=here, rows=rows, seconds=seconds, goals=goals)


if __name__ == "__main__":
    main()
