"""An anchor-free detector of the YOLO family: CSP backbone, feature pyramid both ways, decoupled heads. B tile, A anchor, K class.

No input or output, no loss, no device. Written after the papers: CSPNet (Wang et al. 2020), spatial pyramid pooling (He et al.
2015), path aggregation (Liu et al. 2018), one anchor a place (Tian et al. 2019, FCOS; Ge et al. 2021, YOLOX), sides as
distributions over distances (Li et al. 2020, generalized focal loss). A golden template, where there is one, is further
channels of the input. Plain convolutions, batch norms and pointwise units only, so that it is pruned and quantized as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.contract import TensorSpec
from core.distributed.norm import BatchNorm2d
from core.errors import ConfigError

STRIDES = (8, 16, 32)
"""Pixels from an anchor to the next, by level."""
PRIOR = 0.01
"""Probability of any class at any anchor before training."""


class Raw(NamedTuple):
    """What the network answers."""

    logits: Tensor
    """[B, A, K] each class a yes or no."""
    boxes: Tensor
    """[B, A, 4] x1, y1, x2, y2 in pixels of the tile."""
    sides: Tensor
    """[B, A, 4, D] logits of the distances from the anchor to each side, in strides."""
    places: Tensor
    """[A, 3] x and y of each anchor in pixels, and its level's stride."""


class ConvUnit(nn.Sequential):
    """Convolution, batch norm, sigmoid-weighted unit."""

    def __init__(self, num_in: int, num_out: int, size: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(num_in, num_out, size, stride, size // 2, bias=False),
            BatchNorm2d(num_out, eps=1e-3, momentum=0.03),
            nn.SiLU(inplace=True),
        )


class Bottleneck(nn.Module):
    """1 x 1 and 3 x 3, added to what came where `shortcut` is true."""

    def __init__(self, width: int, *, shortcut: bool) -> None:
        super().__init__()
        self.reduce, self.conv, self.shortcut = ConvUnit(width, width), ConvUnit(width, width, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.reduce(x))
        return x + y if self.shortcut else y


class CspStage(nn.Module):
    """Half of the channels go through bottlenecks, half go past them."""

    def __init__(self, num_in: int, num_out: int, depth: int, *, shortcut: bool = True) -> None:
        super().__init__()
        half = num_out // 2
        self.main, self.past = ConvUnit(num_in, half), ConvUnit(num_in, half)
        self.blocks = nn.Sequential(*(Bottleneck(half, shortcut=shortcut) for _ in range(depth)))
        self.join = ConvUnit(2 * half, num_out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.join(torch.cat((self.blocks(self.main(x)), self.past(x)), dim=1))
        return y


class PyramidPool(nn.Module):
    """Largest values of 5, 9 and 13 places around each, beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.join = ConvUnit(width, width // 2), ConvUnit(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.reduce(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        y: Tensor = self.join(torch.cat(parts, dim=1))
        return y


class CspBackbone(nn.Module):
    """[B, C, Y, X] -> features at strides 8, 16 and 32."""

    def __init__(self, num_in: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        """
        Args:
            widths: channels at strides 2, 4, 8, 16 and 32.
            depths: bottlenecks at strides 4, 8, 16 and 32.
        """
        super().__init__()
        self.widths = tuple(widths[2:])
        self.stem = ConvUnit(num_in, widths[0], 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(ConvUnit(a, b, 3, 2), CspStage(b, b, depth))
            for a, b, depth in zip(widths, widths[1:], depths, strict=False)
        )
        self.pool = PyramidPool(widths[-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return [*features[1:-1], self.pool(x)]


class TimmBackbone(nn.Module):
    """A network of timm by name, at strides 8, 16 and 32."""

    def __init__(self, num_in: int, name: str, *, pretrained: bool) -> None:
        """
        Raises:
            ConfigError: timm is not installed or has no such network with these strides.
        """
        super().__init__()
        try:
            import timm
        except ImportError:
            raise ConfigError(
                f"model.backbone is {name!r}, which timm has, and timm is not installed: pip install timm"
            ) from None
        try:
            network: Any = timm.create_model(name, pretrained=pretrained, features_only=True, in_chans=num_in)
        except (RuntimeError, ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"model.backbone {name!r}: timm makes no feature pyramid of it ({error})") from None
        strides = network.feature_info.reduction()
        if any(stride not in strides for stride in STRIDES):
            raise ConfigError(f"model.backbone {name!r} has features at strides {strides}; needed are {STRIDES}")
        self.network, self.places = network, [strides.index(stride) for stride in STRIDES]
        channels = network.feature_info.channels()
        self.widths = tuple(channels[place] for place in self.places)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.network(x)
        return [features[place] for place in self.places]


class Pyramid(nn.Module):
    """Coarse features go down to the fine ones, and what comes of it up again."""

    def __init__(self, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.lateral, self.down_middle = ConvUnit(coarse, middle), CspStage(2 * middle, middle, depth, shortcut=False)
        self.lateral_middle, self.down_fine = ConvUnit(middle, fine), CspStage(2 * fine, fine, depth, shortcut=False)
        self.to_middle, self.up_middle = ConvUnit(fine, fine, 3, 2), CspStage(2 * fine, middle, depth, shortcut=False)
        self.to_coarse = ConvUnit(middle, middle, 3, 2)
        self.up_coarse = CspStage(2 * middle, coarse, depth, shortcut=False)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        fine, middle, coarse = features
        coarse = self.lateral(coarse)
        middle = self.lateral_middle(self.down_middle(torch.cat((_doubled(coarse), middle), dim=1)))
        fine = self.down_fine(torch.cat((_doubled(middle), fine), dim=1))
        middle = self.up_middle(torch.cat((self.to_middle(fine), middle), dim=1))
        return [fine, middle, self.up_coarse(torch.cat((self.to_coarse(middle), coarse), dim=1))]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Head(nn.Module):
    """Of one level: what is there, and where its sides are, each by convolutions of its own."""

    def __init__(self, num_in: int, width: int, num_classes: int, num_distances: int) -> None:
        super().__init__()
        self.classes = nn.Sequential(ConvUnit(num_in, width, 3), ConvUnit(width, width, 3))
        self.box = nn.Sequential(ConvUnit(num_in, width, 3), ConvUnit(width, width, 3))
        self.logits, self.sides = nn.Conv2d(width, num_classes, 1), nn.Conv2d(width, 4 * num_distances, 1)
        nn.init.constant_(self.logits.bias, float(torch.logit(torch.tensor(PRIOR))))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits(self.classes(x)), self.sides(self.box(x))


class PcbDetector(nn.Module):
    """[B, C, Y, X] uint8 picture, then golden template -> `Raw`; the seeds' YOLOv5s. Height and width are multiples of 32."""

    def __init__(
        self,
        num_classes: int,
        *,
        num_channels: int = 1,
        tile: int = 640,
        width: float = 0.5,
        depth: float = 0.33,
        num_distances: int = 16,
        backbone: str = "",
        pretrained: bool = False,
    ) -> None:
        """
        Args:
            num_channels: of the picture, and of the template where there is one.
            tile: pixels of a side of what it is served with.
            width, depth: of YOLOv5's sizes: nano .25 and .33, small .5 and .33.
            num_distances: places from 0 strides on that a side may have; a box reaches one less than that many to each side.
            backbone: name of a timm network in place of the CSP backbone.

        Raises:
            ConfigError: a tile that 32 does not divide, or no such backbone.
        """
        super().__init__()
        if tile % STRIDES[-1] or tile < STRIDES[-1]:
            raise ConfigError(f"a tile of {tile} pixels; allowed are multiples of {STRIDES[-1]}")
        widths = [max(8, round(channels * width / 8) * 8) for channels in (64, 128, 256, 512, 1024)]
        depths = [max(1, round(blocks * depth)) for blocks in (3, 6, 9, 3)]
        self.backbone: TimmBackbone | CspBackbone = (
            TimmBackbone(num_channels, backbone, pretrained=pretrained)
            if backbone
            else CspBackbone(num_channels, widths, depths)
        )
        levels: tuple[int, ...] = self.backbone.widths
        self.pyramid = Pyramid(levels, max(1, round(3 * depth)))
        head = max(16, min(levels[0], 256))
        self.heads = nn.ModuleList(Head(channels, head, num_classes, num_distances) for channels in levels)
        self.num_classes, self.num_channels, self.num_distances, self.tile = (
            num_classes,
            num_channels,
            num_distances,
            tile,
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, picture: Tensor) -> Raw:
        x = picture.float() / 255.0
        logits, boxes, sides, places = [], [], [], []
        for head, stride, features in zip(self.heads, STRIDES, self.pyramid(self.backbone(x)), strict=True):
            of_classes, of_sides = head(features)
            rows, columns = of_classes.shape[-2:]
            where = _places(rows, columns, stride, features.device)
            distances = of_sides.flatten(2).transpose(1, 2).unflatten(2, (4, self.num_distances)).float()
            steps = torch.arange(self.num_distances, dtype=torch.float32, device=features.device)
            reach = (distances.softmax(-1) * steps).sum(-1) * stride
            boxes.append(torch.cat((where[:, :2] - reach[..., :2], where[:, :2] + reach[..., 2:]), dim=-1))
            logits.append(of_classes.flatten(2).transpose(1, 2).float())
            sides.append(distances)
            places.append(where)
        return Raw(torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(sides, 1), torch.cat(places))


def _places(rows: int, columns: int, stride: int, device: torch.device) -> Tensor:
    """[rows * columns, 3] middle of each anchor in pixels, and the stride."""
    y = (torch.arange(rows, dtype=torch.float32, device=device) + 0.5) * stride
    x = (torch.arange(columns, dtype=torch.float32, device=device) + 0.5) * stride
    grid = torch.stack((x.repeat(rows), y.repeat_interleave(columns)), dim=1)
    return torch.cat((grid, torch.full_like(grid[:, :1], stride)), dim=1)


class TileForm(nn.Module):
    """The network as it is served: tiles of one size to logits and boxes."""

    def __init__(self, network: PcbDetector) -> None:
        super().__init__()
        self.network, tile = network, network.tile
        num_anchors = sum((tile // stride) ** 2 for stride in STRIDES)
        self.inputs = (TensorSpec("picture", ("tile", network.num_channels, tile, tile), "uint8"),)
        self.outputs = (
            TensorSpec("logits", ("tile", num_anchors, network.num_classes)),
            TensorSpec("boxes", ("tile", num_anchors, 4)),
        )

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        raw: Raw = self.network(picture)
        return raw.logits, raw.boxes
