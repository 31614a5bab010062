"""Changes of a training patch: turned and scaled in space, mirrored, noisier, smoother, brighter, of lower resolution.

What is done is drawn from the patch's own generator; MONAI's transforms do it, and keep no state. Mirroring stays off the
axes that the plan forbids: a left kidney that is mirrored across R-L is no left kidney. MONAI is imported here only,
and only where a patch is changed: a service that knows these settings does without it.
Source: nnU-Net's augmentations (Isensee et al. 2021), with smaller turns and fewer at a time, for a CPU's budget.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from core.config import Config
from verticals.medical.ct.plan import Plan
from verticals.medical.volume import AIR_HU, rotation


class AugmentConfig(Config):
    """How often a patch is changed, and how far."""

    affine: float = Field(0.3, ge=0, le=1)
    """Share of patches that are turned and scaled."""
    rotation_degrees: float = Field(15.0, ge=0, le=180)
    """Largest turn about each axis."""
    scaling: float = Field(0.15, ge=0, lt=1)
    """Largest relative change of size."""
    mirror: float = Field(0.5, ge=0, le=1)
    """Share of patches that are mirrored, for each axis that the plan allows."""
    noise: float = Field(0.15, ge=0, le=1)
    """Share that gets Gaussian noise."""
    noise_std: float = Field(0.1, ge=0)
    """Largest standard deviation of the noise, in standard deviations of the foreground."""
    smoothing: float = Field(0.1, ge=0, le=1)
    """Share that is smoothed."""
    smoothing_voxels: float = Field(1.0, ge=0)
    """Largest sigma of the smoothing."""
    brightness: float = Field(0.15, ge=0, le=1)
    """Share that is multiplied."""
    brightness_change: float = Field(0.25, ge=0, lt=1)
    """Largest relative change of the multiplication."""
    gamma: float = Field(0.2, ge=0, le=1)
    """Share whose grey values are bent by a power, mean and standard deviation kept."""
    gamma_range: tuple[float, float] = (0.7, 1.5)
    """Powers that are drawn from."""
    low_resolution: float = Field(0.1, ge=0, le=1)
    """Share that is made coarser and back."""
    least_resolution: float = Field(0.5, gt=0, le=1)
    """Lowest resolution, relative to the patch's own."""


class PatchAugment:
    """`augment(image, labels, generator) -> (image, labels)` of the same shape; several threads may call it."""

    def __init__(self, config: AugmentConfig, plan: Plan) -> None:
        self.config = config
        self._spacing = np.array(plan.spacing_mm)
        self._mirror_axes = plan.mirror_axes
        self._air = float(plan.normalized(np.array(AIR_HU)))

    def __call__(
        self, image: NDArray[np.float32], labels: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """
        Args:
            image: [X, Y, Z] as `Plan.normalized` gives it.
            labels: [X, Y, Z].
            rng: decides everything.
        """
        config = self.config
        drawn = rng.random(9)  # always as many, so that one share does not change what the others draw
        picture, mask = torch.from_numpy(image)[None], torch.from_numpy(labels)[None]
        if drawn[0] < config.affine:
            picture, mask = self._moved(picture, mask, rng)
        if axes := [axis for axis in self._mirror_axes if drawn[1 + axis] < config.mirror]:
            from monai.transforms.spatial.array import Flip

            flip = Flip(axes)
            picture, mask = flip(picture), flip(mask)
        for share, chance, change in (
            (config.noise, drawn[4], self._noisy),
            (config.smoothing, drawn[5], self._smooth),
            (config.brightness, drawn[6], self._bright),
            (config.low_resolution, drawn[7], self._coarse),
            (config.gamma, drawn[8], self._bent),
        ):
            if chance < share:
                picture = change(picture, rng)
        return _array(picture, np.float32), _array(mask, np.uint8)

    def _moved(
        self, picture: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both turned in millimetres and scaled about the middle; air and background come in from outside."""
        from monai.transforms.spatial.array import Affine

        turns = rng.uniform(-1, 1, 3) * self.config.rotation_degrees
        matrix = np.eye(4)
        turned = rotation(np.radians(turns)) / (1 + rng.uniform(-1, 1) * self.config.scaling)
        matrix[:3, :3] = turned * self._spacing[None] / self._spacing[:, None]
        move = Affine(affine=torch.from_numpy(matrix), padding_mode="zeros", image_only=True)
        moved: Any = move(picture - self._air, mode="bilinear")
        kept: Any = move(mask.float(), mode="nearest")
        return moved + self._air, kept

    def _noisy(self, picture: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        std = rng.uniform(0, self.config.noise_std)
        noise = rng.standard_normal(tuple(picture.shape), np.float32)
        return picture + torch.from_numpy(noise) * std

    def _smooth(self, picture: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        from monai.transforms.intensity.array import GaussianSmooth

        smoothed: Any = GaussianSmooth(rng.uniform(0, self.config.smoothing_voxels))(picture)
        return torch.as_tensor(smoothed)

    def _bright(self, picture: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        from monai.transforms.intensity.array import ScaleIntensity

        change = rng.uniform(-1, 1) * self.config.brightness_change
        changed: Any = ScaleIntensity(minv=None, maxv=None, factor=change)(picture)
        return torch.as_tensor(changed)

    def _bent(self, picture: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        from monai.transforms.intensity.array import AdjustContrast

        bent: Any = AdjustContrast(rng.uniform(*self.config.gamma_range), retain_stats=True)(picture)
        return torch.as_tensor(bent)

    def _coarse(self, picture: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        from monai.transforms.spatial.array import RandSimulateLowResolution

        zoom = rng.uniform(self.config.least_resolution, 1)
        coarse: Any = RandSimulateLowResolution(prob=1, zoom_range=(zoom, zoom))(picture)
        return torch.as_tensor(coarse)


def _array(tensor: torch.Tensor, dtype: type) -> NDArray[Any]:
    """[X, Y, Z] in memory order, without MONAI's beside data."""
    plain = tensor.as_subclass(torch.Tensor)[0].contiguous().numpy()
    return plain.astype(dtype, copy=False)
