"""Small networks of every shape that a session meets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.contract import TensorSpec


class Convolution(nn.Module):
    """Two layers over pictures of any size."""

    inputs = (TensorSpec("image", ("B", 3, "H", "W")),)
    outputs = (TensorSpec("map", ("B", 2, "H", "W")), TensorSpec("pooled", ("B", 2)))

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 2, 1)
        self.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
        self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu_(self.norm(self.first(image)))
        found = self.second(hidden)
        return found, found.mean((2, 3))


class Recurrent(nn.Module):
    """One step that carries a state and a count."""

    inputs = (TensorSpec("x", ("B", 5)), TensorSpec("state", ("B", 8)), TensorSpec("count", ("B",), "int64"))
    outputs = (TensorSpec("score", ("B",)), TensorSpec("new_state", ("B", 8)), TensorSpec("new_count", ("B",), "int64"))

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.keep, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor, state: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        new = torch.tanh(self.mix(x) + self.keep(state))
        return torch.sigmoid(self.head(new)).squeeze(1), new, count + 1


class Attention(nn.Module):
    """Over sequences of any length with a mask."""

    inputs = (TensorSpec("steps", ("B", "T", 6)), TensorSpec("mask", ("B", "T"), "bool"))
    outputs = (TensorSpec("answer", ("B", "T", 6)),)

    def __init__(self) -> None:
        super().__init__()
        self.ask, self.key = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        weights = self.ask(steps) @ self.key(steps).transpose(1, 2)
        found: Tensor = weights.masked_fill(~mask[:, None, :], -1e9).softmax(2) @ steps
        return found


class Through(nn.Module):
    """Gives two inputs back exchanged, a weight as it is, and leaves one input unread."""

    inputs = (TensorSpec("a", ("B", 2)), TensorSpec("b", ("B", 2)), TensorSpec("unread", ("B",)))
    outputs = (TensorSpec("new_a", ("B", 2)), TensorSpec("new_b", ("B", 2)), TensorSpec("weight", (3,)))

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, a: Tensor, b: Tensor, unread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return b, a, self.weight


class Scaled(nn.Module):
    """Takes a number without axes."""

    inputs = (TensorSpec("x", ("B", 3)), TensorSpec("factor", ()))
    outputs = (TensorSpec("y", ("B", 3)), TensorSpec("twice", ()))

    def forward(self, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        return x * factor, factor * 2


class Wide(nn.Module):
    """Sums of 512 products: where a narrow number type shows."""

    inputs = (TensorSpec("x", ("B", 512)),)
    outputs = (TensorSpec("y", ("B", 64)),)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(512, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(torch.relu(self.first(x)))
        return found
