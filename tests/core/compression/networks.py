"""Small networks for the tests of compression."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Branches(nn.Module):
    """Two convolutions of one input, concatenated and read by a third: Inception in small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(20)
        self.join = nn.Conv2d(20, 10, 3, padding=1)
        self.head = nn.Linear(10, 4)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images).relu()
        both = torch.cat([self.left(stem), self.right(stem)], dim=1)
        answer: Tensor = self.head(self.join(self.norm(both).relu()).relu().mean((2, 3)))
        return answer


class Gated(nn.Module):
    """A recurrence written by hand: four gates in chunks of one layer, with a carried state of fixed width."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.recurrent = nn.Linear(6, 32), nn.Linear(8, 32, bias=False)
        self.first, self.second = nn.Linear(8, 20), nn.Linear(20, 2)

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        for part in inputs.unbind(1):
            take, keep, give, new = (self.gates(part) + self.recurrent(hidden)).chunk(4, dim=1)
            hidden = give.sigmoid() * torch.tanh(keep.sigmoid() * hidden + take.sigmoid() * new.tanh())
        return self.second(self.first(hidden).relu()), hidden
