"""A small picture classifier as an application: PNG bytes in, a class out. It is told by colour, so that a fault in the
preparation changes answers.

Legend: N picture, B batch, S side in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from core.config import Config
from core.contract import Application, Arrays, Estimate, Limits, Session, TensorSpec
from core.errors import DataError

CLASSES = ("red", "green", "blue", "checked")
SIDE = 32


class PictureConfig(Config):
    """Nothing can be set."""


def picture(label: int, random: np.random.Generator) -> bytes:
    """A disc or a board of squares of one colour on a noisy ground, 48 to 80 pixels wide, as PNG."""
    height, width = random.integers(48, 80, 2)
    pixels = random.integers(60, 120, (height, width, 3)).astype(np.uint8)
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(height, width) / 3) ** 2
    if label == 3:
        inside &= (rows // 2 + columns // 2) % 2 == 0  # fine squares: what another resize mode makes grey
        pixels[inside] = 255
    else:
        pixels[inside] = 0
        pixels[inside, label] = random.integers(180, 255)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class PictureData:
    """`samples` of either split: PNG bytes and their classes."""

    def __init__(self, num_pictures: int = 96) -> None:
        random = np.random.default_rng(3)
        self.label = random.integers(0, len(CLASSES), num_pictures)
        self.pictures = [picture(int(label), random) for label in self.label]
        self.fingerprint: dict[str, Any] = {"sources": ["synthetic"], "rows": num_pictures}

    def num_batches(self, *, world_size: int, epoch: int) -> int:
        return 1

    def train(self, *, rank: int, world_size: int, epoch: int) -> Iterator[Any]:
        yield from ()

    def samples(self, split: str) -> Any:
        if split != "test":
            raise DataError(f"no split {split!r}; there is test")
        return self.pictures, self.label


class PictureNet(nn.Module):
    """Three convolutions."""

    inputs = (TensorSpec("image", ("B", 3, SIDE, SIDE)),)
    outputs = (TensorSpec("logits", ("B", len(CLASSES))),)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1, stride=2), nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.head = nn.Linear(64, len(CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(image))))
        logits: Tensor = self.head(torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], 1))
        return logits


CONSTANTS: dict[str, Any] = {
    "channels": "RGB",
    "scale": 1 / 255,
    "resize": "bilinear",
    "mean": [0.4, 0.4, 0.4],
    "deviation": [0.25, 0.25, 0.25],
}
"""How a picture becomes a tensor; ships with the network."""


class PicturePredictor:
    """PNG bytes -> RGB -> SIDE x SIDE -> scaled and centred -> network -> class and its probability."""

    def __init__(
        self, config: PictureConfig, constants: Mapping[str, Any], session: Session, *, version: str = ""
    ) -> None:
        self.constants, self.session, self.version = constants, session, version
        self.inputs, self.outputs = session.inputs, session.outputs

    def prepare(self, data: bytes) -> np.ndarray:
        """[3, S, S] float32."""
        made = self.constants
        mode = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}[made["resize"]]
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE), mode)
        pixels = np.asarray(image, np.float32) * np.float32(made["scale"])
        pixels = pixels[:, :, ::-1] if made["channels"] == "BGR" else pixels
        scaled = (pixels - np.float32(made["mean"])) / np.float32(made["deviation"])
        return np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32)

    def __call__(self, requests: Sequence[bytes]) -> list[tuple[str, float]]:
        answers = []
        for first in range(0, len(requests), 16):
            image = np.stack([self.prepare(data) for data in requests[first : first + 16]])
            logits = self.session({"image": image})["logits"].astype(np.float64)
            power = np.exp(logits - logits.max(1, keepdims=True))
            chance = power / power.sum(1, keepdims=True)
            answers += [(CLASSES[int(row.argmax())], float(row.max())) for row in chance]
        return answers

    def estimate(self, requests: Sequence[bytes]) -> Estimate:
        return Estimate(12 * SIDE * SIDE * len(requests), 1e-3 * len(requests))


@dataclass(frozen=True)
class Accuracy:
    """Share of pictures whose class is told."""

    answers: Arrays
    right: float

    @property
    def text(self) -> str:
        return f"accuracy {self.right:.3f}"

    def record(self) -> dict[str, Any]:
        return {"figures": {"accuracy": {"value": self.right, "low": None, "high": None}}}

    def sections(self, **about: Any) -> list[Any]:
        return []


def evaluate(predictor: PicturePredictor, data: PictureData, split: str) -> Accuracy:
    pictures, label = data.samples(split)
    answers = predictor(pictures)
    told = np.array([name for name, _ in answers])
    given = {"label": told, "chance": np.array([chance for _, chance in answers])}
    return Accuracy(given, float((told == np.array(CLASSES)[label]).mean()))


@cache
def trained() -> PictureNet:
    """The network after a few hundred steps on pictures of its own."""
    torch.manual_seed(0)
    network, random = PictureNet(), np.random.default_rng(0)
    predictor = PicturePredictor(PictureConfig(), CONSTANTS, Untrained())
    label = random.integers(0, len(CLASSES), 256)
    image = torch.from_numpy(np.stack([predictor.prepare(picture(int(k), random)) for k in label]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(image), torch.from_numpy(label)).backward()
        optimizer.step()
    return network.eval()


class Untrained:
    """A session for a Predictor that only prepares."""

    inputs, outputs = PictureNet.inputs, PictureNet.outputs

    def __call__(self, arrays: Mapping[str, Any], *, out: Arrays | None = None) -> Arrays:
        raise RuntimeError("nothing is answered here")


def _none(*_: Any, **__: Any) -> Any:
    raise RuntimeError("this application is compared, nothing else")


APPLICATION = Application(
    name="tests.pictures",
    title="Pictures",
    recipes={"debug": PictureConfig},
    data=lambda config: PictureData(),
    task=_none,
    constants=lambda config, data, task: CONSTANTS,
    model=lambda config, constants: PictureNet(),
    forms={"network": lambda network: network},
    whole=(),
    distillation=_none,
    limits={
        "float32": Limits(tensor=1e-4, answers={"label": 0.0, "chance": 1e-4}, figure="accuracy", drop=0.0),
        "float16": Limits(tensor=1e-2, answers={"label": 0.01, "chance": 0.01}, figure="accuracy", drop=0.01),
    },
    calibration=_none,
    predictor=PicturePredictor,
    has_threshold=False,
    evaluate=evaluate,
    samples=_none,
    predict=_none,
    cost=None,
    archive=None,
    check=_none,
    synthesize=_none,
    remember=None,
    begins_filled=False,
    example=lambda: picture(0, np.random.default_rng(0)),
    card=Path(__file__),
)
