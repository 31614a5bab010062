"""A 3-D U-Net of double convolutions with skip connections; depth and width come from the plan. B batch, K class.

No input or output, no loss, no device. Source: Ronneberger et al. 2015, Çiçek et al. 2016; instance norm, leaky units and
deep supervision as in nnU-Net (Isensee et al. 2021). Poolings may differ by axis, for thick slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.contract import TensorSpec
from core.errors import ConfigError

Triple = tuple[int, int, int]


class InstanceNorm(nn.InstanceNorm3d):
    """torch's instance norm without its copies in bfloat16: each sample is a batch of one, whose batch norm takes what lies
    channels last. A training step on a CPU with AVX512-BF16 takes a quarter less time.

    In float32 it stays torch's own: that batch norm adds up singly, and is off by 1e-3 in a window of a million voxels.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != torch.bfloat16 or input.device.type != "cpu":
            return super().forward(input)
        samples = [
            F.batch_norm(sample, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for sample in torch.split(input, 1)
        ]
        return samples[0] if len(samples) == 1 else torch.cat(samples)


class DoubleConv(nn.Sequential):
    """Two convolutions of 3 x 3 x 3 voxels, each with instance norm and a leaky unit."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(*_conv(num_in, num_out), *_conv(num_out, num_out))


def _conv(num_in: int, num_out: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv3d(num_in, num_out, 3, padding=1, bias=False),
        InstanceNorm(num_out, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )


class Up(nn.Module):
    """To the finer level: transposed convolution, the skip connection beside it, double convolution."""

    def __init__(self, num_in: int, num_out: int, stride: Triple) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(num_in, num_out, stride, stride, bias=False)
        self.conv = DoubleConv(2 * num_out, num_out)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self.conv(torch.cat((self.up(coarse), skip), dim=1))
        return joined


class UNet3D(nn.Module):
    """[B, 1, X, Y, Z] scaled Hounsfield units -> [B, K, X, Y, Z] logits; the seeds' Optimized3DUNet.

    In training with deep supervision it gives a list: full size first, then one a coarser level, the coarsest two apart.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        patch_size: Triple,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        strides: Sequence[Triple] = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        windows: Sequence[tuple[float, float]] = (),
        deep_supervision: bool = False,
    ) -> None:
        """
        Args:
            num_classes: with the background.
            patch_size: voxels of a window, as `inputs` promises them.
            widths: channels of each level, fine to coarse.
            strides: pooling before each level; the first is (1, 1, 1).
            windows: lowest and highest scaled Hounsfield unit of further channels, in which the image is seen: between air
                and bone soft tissues differ by little.

        Raises:
            ConfigError: another number of strides than of widths, or a patch that the strides do not divide.
        """
        super().__init__()
        whole = tuple(prod(stride[axis] for stride in strides) for axis in range(3))
        if len(widths) != len(strides) or len(widths) < 2 or tuple(strides[0]) != (1, 1, 1):
            raise ConfigError(
                f"{len(widths)} widths and {len(strides)} strides; each level, two at least, has one of both, and the first stride is (1, 1, 1)"
            )
        if any(size % part for size, part in zip(patch_size, whole, strict=True)):
            raise ConfigError(f"patch size {tuple(patch_size)} has to be a multiple of {whole}, the poolings' product")
        self.inputs = (TensorSpec("image", ("window", 1, *patch_size)),)
        self.outputs = (TensorSpec("logits", ("window", num_classes, *patch_size)),)
        self.windows, self.deep_supervision = tuple(windows), deep_supervision
        self.down = nn.ModuleList(
            DoubleConv(a, b) for a, b in zip((1 + len(self.windows), *widths), widths, strict=False)
        )
        self.pool = nn.ModuleList(nn.MaxPool3d(stride) for stride in strides[1:])
        self.up = nn.ModuleList(
            Up(coarse, fine, stride) for fine, coarse, stride in zip(widths, widths[1:], strides[1:], strict=False)
        )
        self.head = nn.Conv3d(widths[0], num_classes, 1)
        coarser = widths[1:-2] if deep_supervision else ()
        self.coarse_heads = nn.ModuleList(nn.Conv3d(width, num_classes, 1) for width in coarser)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last_3d)  # as fast, and a head of 100 classes needs a third less memory

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        skips = []
        seen = [4 * (image.clamp(low, high) - low) / (high - low) - 2 for low, high in self.windows]
        x = torch.cat((image, *seen), dim=1) if seen else image
        for level, down in enumerate(self.down):
            x = down(x if level == 0 else self.pool[level - 1](x))
            if level < len(self.up):
                skips.append(x)
        answers: list[Tensor] = []
        for level in reversed(range(len(self.up))):
            x = self.up[level](x, skips.pop())  # gone once it is used: the head's answer may be large
            if self.training and 0 < level <= len(self.coarse_heads):
                answers.insert(0, self.coarse_heads[level - 1](x))
        logits: Tensor = self.head(x)
        return [logits, *answers] if answers else logits
