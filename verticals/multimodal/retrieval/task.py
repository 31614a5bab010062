"""What is trained: own pairs alike, others not, over the batches of all processes together; a head that matches beside it.

Legend: N picture, S sound, T sample, M caption, L token, P place, K class, C channel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from core.config import Config
from core.contract import Step
from verticals.multimodal.retrieval.encoders import TextFeatures, VisionFeatures
from verticals.multimodal.retrieval.losses import ContrastiveLoss, DynamicLoss, Kind
from verticals.multimodal.retrieval.model import Embedded, RetrievalNet


class LossConfig(Config):
    """What training minimises."""

    kind: Kind = "softmax"
    """`softmax` over the batch, or a `sigmoid` for each pair."""
    temperature: float = Field(0.07, gt=0)
    """Of similarities, at the start; it is learned."""


class PixelBatch(NamedTuple):
    """Pictures and captions, for encoders that learn."""

    pictures: Tensor
    """[N, 3, S, S] uint8"""
    tokens: Tensor
    """[M, L] int64"""
    mask: Tensor
    """[M, L] bool"""
    numbers: Tensor
    """[N + S] int64, which picture of the data set each is; sounds follow, with numbers of their own."""
    owner: Tensor
    """[M] int64, the same of each caption's: those of pictures first."""
    sounds: Tensor
    """[S, T] float32; S is 0 where there are none."""


class FeatureBatch(NamedTuple):
    """What frozen encoders made of them."""

    pooled: Tensor
    """[N, C]"""
    places: Tensor
    """[N, P, C]"""
    classes: Tensor
    """[N, K]"""
    read: Tensor
    """[M, C] captions' vectors."""
    words: Tensor
    """[M, L, C] of captions; M x 0 x C where no head looks at them."""
    mask: Tensor
    """[M, L] bool"""
    numbers: Tensor
    """[N + S] int64"""
    owner: Tensor
    """[M] int64"""
    sounds: Tensor
    """[S, T] float32; S is 0 where there are none."""


Batch = PixelBatch | FeatureBatch


class RetrievalTask(nn.Module):
    """The network and its loss."""

    def __init__(self, model: RetrievalNet, config: LossConfig) -> None:
        super().__init__()
        self.model = model
        self.contrastive = ContrastiveLoss(config.kind, temperature=config.temperature)
        has_match = model.heads.match is not None
        self.matching = ContrastiveLoss(config.kind, temperature=config.temperature) if has_match else None
        self.balance = DynamicLoss(2) if has_match else None

    def forward(self, batch: Batch) -> Step:
        if isinstance(batch, PixelBatch):
            seen, read = self.model.vision(batch.pictures), self.model.text(batch.tokens, batch.mask)
        else:
            seen = VisionFeatures(batch.pooled, batch.places, batch.classes)
            read = TextFeatures(batch.read, batch.words)
        made: Embedded = self.model(seen, read.pooled, batch.sounds)
        items = made.pictures if isinstance(made.sounds, tuple) else torch.cat([made.pictures, made.sounds])
        items, texts, numbers, owner = (gathered(part) for part in (items, made.texts, batch.numbers, batch.owner))
        own = numbers[:, None] == owner[None]
        with torch.autocast(items.device.type, enabled=False):
            similarity = torch.einsum("nhd,mhd->hnm", items.float(), texts.float())
            loss = torch.stack([self.contrastive(head, own) for head in similarity]).mean()
        logs = {"scale": self.contrastive.scale.detach()}
        match = self.model.heads.match
        if match is None or self.matching is None or self.balance is None or isinstance(made.places, tuple):
            return Step(loss, logs)
        num_pictures = len(made.pictures)
        num_captions = len(batch.owner) * num_pictures // len(batch.numbers)  # of pictures: all have as many
        padded = self._padded(read.words[:num_captions].detach(), batch.mask[:num_captions])
        places, words, mask, numbers, owner = (
            gathered(part) for part in (made.places, *padded, batch.numbers[:num_pictures], batch.owner[:num_captions])
        )
        second = self.matching(match(places, words, mask), numbers[:, None] == owner[None])
        balanced = self.balance(torch.stack([loss, second]))
        return Step(balanced, {**logs, "contrastive": loss.detach(), "matching": second.detach()})

    def _padded(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As many words a text as there may be, where processes put theirs together."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return words, mask
        missing = self.model.text.most_tokens - mask.shape[1]
        return F.pad(words, (0, 0, 0, missing)), F.pad(mask, (0, missing))

    def train(self, mode: bool = True) -> RetrievalTask:
        """Encoders that do not learn stay in evaluation mode: their dropout and their norms' means are the weights' own."""
        super().train(mode)
        for encoder in (self.model.vision, self.model.text):
            if not any(parameter.requires_grad for parameter in encoder.parameters()):
                encoder.eval()
        return self


def gathered(rows: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks; gradients reach a process's own.

    Each process has the whole loss, and gradients are averaged over them: so a gradient is as many times larger as there are.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if world_size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size)]
    dist.all_gather(parts, rows.detach().contiguous())
    if rows.requires_grad:
        parts[dist.get_rank()] = world_size * rows - (world_size - 1) * rows.detach()
    return torch.cat(parts)
