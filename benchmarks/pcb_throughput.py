# ruff: noqa: E402
"""A picture of 4096 x 4096 pixels in, boxes out: torch through SAHI, tiled by us, int8, pruned int8, nano, and with the gate.

    python benchmarks/pcb_throughput.py [--quick] [--json FILE] [--cache DIR] [--boards N] [--set KEY=VALUE]

Boards are mosaics of DeepPCB's test scans (VERTICALS_DATA/pcb/DeepPCB): every defect but 0 to 5 of a board (and but 50) is healed
from its template, so that the noise between board and golden board is that of the real pairs; the board is then shifted by up
to 3 pixels. `--cache` is the folder of `pcb_deeppcb.py`, whose networks `small` and `nano` are taken; what is exported, pruned and
quantized from them (each with parity, through the whole pipeline) is kept there. Rows are timed in turns, medians over boards. mAP
is that of the test scans themselves, each inspected whole. Memory is the peak of a process of its own that inspects one board.
With `--quick`, a debug network and small boards show that the line works; such figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from benchmarks.pcb_deeppcb import Judged, best_threshold, detected
from benchmarks.pcb_mosaics import Board, healed, mosaic, seen_by_gate
from benchmarks.pcb_peers import by_sahi
from benchmarks.tables import Record, goal, keep, table
from core.device import machine
from core.errors import ParityError, ScoreError
from core.inference.model import session_of
from core.inference.session import SessionConfig
from core.memory import peak_bytes
from core.run import Run
from pipelines.chain import Chain
from pipelines.model import Place, find, size_of
from pipelines.train import train
from verticals.manufacturing.boxes import Boxes, overlap
from verticals.manufacturing.golden import GateConfig
from verticals.manufacturing.pcb import APPLICATION
from verticals.manufacturing.pcb.config import PcbConfig
from verticals.manufacturing.pcb.data import PcbData
from verticals.manufacturing.pcb.evaluation import Evaluation
from verticals.manufacturing.pcb.predictor import PcbPredictor, Request
from verticals.manufacturing.precision import AUTHORS
from verticals.manufacturing.verdict import counts

TILE, OVERLAP = 320, 0.2
GATE = GateConfig()
PRUNED = 0.25
"""Share of the channels that go, in three steps; after each the network learns from the small one."""
LIMIT = 0.015
"""Of the validation score that a step may lose."""
FRAMES = 12
"""Boards a second that the seeds name."""


class Made(NamedTuple):
    """A run of `--cache`, exported and made int8; or pruned and taught before that."""

    source: str
    epochs: int = 0
    """Of learning after each step of pruning; 0 prunes nothing."""


MADE = {"small": Made("small"), "nano": Made("nano"), "nano-pruned": Made("nano", 2), "small-pruned": Made("small", 1)}


class Row(NamedTuple):
    """A way to inspect."""

    name: str
    network: str
    """A run of `--cache`, or what was made of one."""
    gated: bool = False
    sahi: bool = False


ROWS = (
    Row("small, torch, SAHI", "small", sahi=True),
    Row("small, torch, our tiles", "small"),
    Row("small, OpenVINO float32", "small/run-openvino"),
    Row("small, int8", "small/run-openvino-int8"),
    Row("small, pruned, int8", "small-pruned/small-openvino-int8"),
    Row("nano, OpenVINO float32", "nano/run-openvino"),
    Row("nano, int8", "nano/run-openvino-int8"),
    Row("nano, pruned, int8", "nano-pruned/small-openvino-int8"),
    Row("small, int8, gated", "small/run-openvino-int8", gated=True),
    Row("nano, pruned, int8, gated", "nano-pruned/small-openvino-int8", gated=True),
)
FLOAT, SHIPPED = "small, torch, our tiles", "nano, pruned, int8"


def made(cache: Path, settings: Sequence[str]) -> dict[str, str]:
    """Exports, int8 and pruned networks of the runs, each once; what could not be made, and why."""
    failed = {}
    for name, (source, epochs) in MADE.items():
        folder = cache / "compressed" / name
        if (folder / "done").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        run = _tiled(cache, source, settings)
        chain = Chain(
            find(str(run)), folder, limit=LIMIT, form=None, format="openvino", precision="float32", device="cpu"
        )
        try:
            with chain.tidy():
                if epochs:
                    teacher = find(str(_tiled(cache, "small", settings)))
                    chain.recover(PRUNED, "group", teacher, [f"fit.epochs={epochs}", "fit.optim.lr=1e-3"])
                chain.export()
                chain.quantize("static")
        except (ParityError, ScoreError) as error:
            failed[name] = str(error).splitlines()[0]
            continue
        (folder / "done").write_text("")
    return failed


def _tiled(cache: Path, name: str, settings: Sequence[str]) -> Path:
    """The run with the tile of this benchmark."""
    path = cache / "tiled" / name
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(cache / f"{name}.run", path)
    config = PcbConfig.from_yaml(Run(path).read_text("config.yaml"))
    (path / "config.yaml").write_text(
        config.override([f"predict.tile={TILE}", f"predict.overlap={OVERLAP}", *settings]).to_yaml()
    )
    return path


def place_of(cache: Path, network: str) -> Place:
    return find(str(cache / "compressed" / network if "/" in network else cache / "tiled" / network))


def detector(row: Row, cache: Path, threads: int) -> tuple[Callable[[Request], Boxes], PcbPredictor]:
    """Board and golden board to findings."""
    place = place_of(cache, row.network)
    is_torch = "/" not in row.network
    torch.set_num_threads(threads)
    session = SessionConfig(threads=1, streams=1 if is_torch else threads)
    opened = session_of(APPLICATION, place.path, config=session)
    config = PcbConfig.from_yaml(Run(place.path).read_text("config.yaml"))
    config = config.model_copy(
        update={"predict": config.predict.model_copy(update={"gate": GATE if row.gated else None})}
    )
    constants = Run(place.path).read_json("constants.json")
    predictor = PcbPredictor(config, constants, opened, streams=session.streams)
    if row.sahi:
        return partial(by_sahi, predictor, overlap=OVERLAP), predictor
    return lambda request: predictor([request])[0].findings, predictor


class Counted(NamedTuple):
    """Of a board at the thresholds."""

    found: int
    drawn: int
    false_alarms: int


def counted(predictor: PcbPredictor, findings: Boxes, defects: Boxes) -> Counted:
    """Defects that a finding that counts overlaps, whatever it calls them; and findings that count and overlap none."""
    hits = findings.take(np.array(counts(findings, predictor.classes, predictor.thresholds, {}), bool))
    if not len(hits.scores) or not len(defects.scores):
        return Counted(0, len(defects.scores), len(hits.scores))
    fits = overlap(hits.corners[:, None], defects.corners[None]) >= AUTHORS
    return Counted(int(fits.any(0).sum()), len(defects.scores), int((~fits.any(1)).sum()))


def timed(
    rows: Mapping[str, tuple[Callable[[Request], Boxes], PcbPredictor]], boards: Sequence[Board]
) -> dict[str, tuple[list[float], list[Counted]]]:
    """Seconds and counts of every row on every board, in turns."""
    found: dict[str, tuple[list[float], list[Counted]]] = {name: ([], []) for name in rows}
    random = np.random.default_rng(0)
    for board in boards:
        for name in random.permutation(list(rows)).tolist():
            detect, predictor = rows[name]
            started = time.perf_counter()
            findings = detect(Request(board.picture, board.golden))
            found[name][0].append(time.perf_counter() - started)
            found[name][1].append(counted(predictor, findings, board.defects))
    return found


def judged_on_scans(
    rows: Mapping[str, tuple[Callable[[Request], Boxes], PcbPredictor]], data: PcbData
) -> dict[str, Judged]:
    """mAP of each network on the test scans; gated rows are networks that are there already."""
    boards = data.samples("test")
    drawn, names = [board.boxes for board in boards], [board.name for board in boards]
    done = {}
    for name, (detect, predictor) in rows.items():
        found = detected(detect, data, "test")
        hits = [np.array(counts(one, predictor.classes, predictor.thresholds, {}), bool) for one in found]
        evaluation = Evaluation("test", predictor.classes, names, np.zeros(len(names), bool), (), found, hits, drawn)
        done[name] = Judged(
            evaluation, None, predictor.thresholds, best_threshold(found, drawn, len(predictor.classes))
        )
    return done


def memory_of(row: Row, cache: Path, board: Board, threads: int) -> float:
    """Peak GB of a process that opens the network and inspects the board."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "board.npz", picture=board.picture, golden=board.golden)
        command = [sys.executable, __file__, "--one", row.name, "--cache", str(cache), "--threads", str(threads)]
        done = subprocess.run([*command, "--board", f"{folder}/board.npz"], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])) / 1e9


def one(given: argparse.Namespace) -> None:
    row = next(row for row in ROWS if row.name == given.one)
    detect, _ = detector(row, Path(given.cache), given.threads)
    with np.load(given.board) as board:
        detect(Request(board["picture"], board["golden"]))
    print(json.dumps(peak_bytes()))


def quick_runs(cache: Path) -> None:
    """Debug networks in place of trained ones."""
    for name, width in (("small", 0.25), ("nano", 0.125)):
        if not (cache / f"{name}.run").exists():
            settings = [f"model.width={width}"]
            said = train("manufacturing.pcb", recipe="debug", settings=settings, runs=str(cache / "runs"), alias="none")
            shutil.copytree(said["run"], cache / f"{name}.run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="debug networks and small boards")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--cache", metavar="DIR", help="of pcb_deeppcb.py")
    parser.add_argument("--boards", type=int, default=5, help="timed, of each kind (default: 5)")
    parser.add_argument("--recall-boards", type=int, default=60, help="for the recall of the gate (default: 60)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the models' settings")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--board", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return one(given)
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as spare:
        cache = Path(given.cache or spare)
        if given.quick:
            quick_runs(cache)
        if not (cache / "small.run").exists():
            parser.error(f"{cache}/small.run is missing: run pcb_deeppcb.py --cache {cache} first, or give --quick")
        for name, why in made(cache, given.set).items():
            print(f"{name} was not made: {why}", file=sys.stderr)
        run(given, cache)


def run(given: argparse.Namespace, cache: Path) -> None:
    side = 1024 if given.quick else 4096
    config = PcbConfig.from_yaml(Run(cache / "tiled" / "small").read_text("config.yaml"))
    data = PcbData(config)
    scans = healed(data, "test")
    random = np.random.default_rng(0)
    few = [mosaic(scans, side, int(random.integers(0, 6)), random) for _ in range(given.boards)]
    many = [mosaic(scans, side, 50, random) for _ in range(max(1, given.boards // 2))]
    there = [row for row in ROWS if "/" not in row.network or (cache / "compressed" / row.network).is_dir()]
    rows = {row.name: detector(row, cache, given.threads) for row in there}
    for detect, _ in rows.values():  # warm
        detect(Request(few[0].picture[:TILE, :TILE], few[0].golden[:TILE, :TILE]))
    times, crowded = timed(rows, few), timed(rows, many)
    scored = judged_on_scans({row.name: rows[row.name] for row in there if not row.gated and not row.sahi}, data)
    memory = {row.name: memory_of(row, cache, few[0], given.threads) for row in there}
    names = [SHIPPED, f"{SHIPPED}, gated"]
    wide = timed(
        {name: rows[name] for name in names},
        [mosaic(scans, side, int(random.integers(0, 6)), random) for _ in range(given.recall_boards)],
    )
    report(given, cache, side, times, crowded, scored, memory, wide, seen_by_gate(scans, GATE))


def report(
    given: argparse.Namespace,
    cache: Path,
    side: int,
    times: Mapping[str, tuple[list[float], list[Counted]]],
    crowded: Mapping[str, tuple[list[float], list[Counted]]],
    scored: Mapping[str, Judged],
    memory: Mapping[str, float],
    wide: Mapping[str, tuple[list[float], list[Counted]]],
    gate: tuple[int, int],
) -> None:
    """Table, goals, and what a line of `FRAMES` boards a second needs."""
    here = machine()
    middle = {name: float(np.median(seconds)) for name, (seconds, _) in times.items()}
    rows = [row for row in ROWS if row.name in times]
    sizes = {row.name: size_of(place_of(cache, row.network).path) for row in rows}
    by_sahi, base = middle[ROWS[0].name], scored[FLOAT].values("map50")
    records: list[Record] = []
    for row in rows:
        judged = scored.get(row.name.removesuffix(", gated"), scored[FLOAT])
        figure = judged.values("map50")
        lost = np.sort((base - figure)[1:])
        records.append(
            {
                "way": row.name,
                "boards/s": 1 / middle[row.name],
                "x SAHI": by_sahi / middle[row.name],
                "boards/s, 50 defects": 1 / float(np.median(crowded[row.name][0])),
                "MB": sizes[row.name] / 1e6,
                "x smaller": sizes[FLOAT] / sizes[row.name],
                "mAP@.5": figure[0],
                "lost": f"{100 * (base[0] - figure[0]):.2f} ({100 * lost[25]:.2f} to {100 * lost[-26]:.2f})",
                "false alarms a scan": judged.evaluation.figures["false_alarms"].value,
                "peak GB": memory[row.name],
                "recall, 50 defects": _recall(crowded[row.name][1]),
                "false alarms": float(np.mean([one.false_alarms for one in times[row.name][1]])),
            }
        )
    table(
        f"{side} x {side}, {len(times[FLOAT][0])} mosaics with 0 to 5 defects, {len(crowded[FLOAT][0])} with 50",
        records,
        f"{here['cpu']}, {given.threads} threads or streams; tiles of {TILE}, overlap {OVERLAP}; mAP in points lost to the float "
        f"small network on {len(scored[FLOAT].evaluation.names)} test scans, paired",
    )
    ungated, gated = (_recall(wide[name][1]) for name in (SHIPPED, f"{SHIPPED}, gated"))
    defects = sum(one.drawn for one in wide[SHIPPED][1])
    print(f"  gate: recall {gated:.4f} of {defects} defects on {given.recall_boards} mosaics, ungated {ungated:.4f}")
    print(
        f"  gate alone: {gate[0]} of {gate[1]} defects of the test scans differ by more than its noise ({gate[0] / gate[1]:.4f})"
    )
    by_name = {record["way"]: record for record in records}
    shipped = f"{SHIPPED}, gated"
    goals = [
        goal(f"without the gate at least 7 x SAHI: {by_name[SHIPPED]['x SAHI']:.1f}", by_name[SHIPPED]["x SAHI"] >= 7),
        goal(f"gated at least 20 x SAHI: {by_name[shipped]['x SAHI']:.1f}", by_name[shipped]["x SAHI"] >= 20),
        goal(f"gated recall at least .99 of the ungated: {gated / max(ungated, 1e-9):.4f}", gated >= 0.99 * ungated),
        goal(f"at least 15 x smaller: {by_name[SHIPPED]['x smaller']:.1f}", by_name[SHIPPED]["x smaller"] >= 15),
        goal(
            f"at most 1.5 points of mAP lost: {by_name[SHIPPED]['lost']}",
            float(base[0] - scored[SHIPPED].values("map50")[0]) <= 0.015,
        ),
    ]
    plan(given.threads, middle)
    keep(
        given.json,
        machine=here,
        rows=records,
        gate={"recall": gated, "ungated": ungated, "defects": defects, "scans": gate},
        seconds={name: seconds for name, (seconds, _) in times.items()},
        goals=goals,
    )


def plan(threads: int, middle: Mapping[str, float]) -> None:
    """Cores for so many boards a second, as boards are independent of each other: one process a core or two."""
    print(f"\nplan for {FRAMES} boards a second")
    for name in (SHIPPED, f"{SHIPPED}, gated"):
        cores = FRAMES * middle[name] * threads
        print(f"  {name}: {middle[name]:.2f} s a board on {threads} cores: {cores:.0f} such cores, boards side by side")


def _recall(rows: Sequence[Counted]) -> float:
    return sum(one.found for one in rows) / max(1, sum(one.drawn for one in rows))


if __name__ == "__main__":
    main()
