"""Sounds: read as waveforms, shown to a network of pictures as log-mel spectrograms.

Legend: B sound, T sample, F band of frequencies, X moment, C channel.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from core.config import Config
from core.errors import ArtifactError, ConfigError, DataError
from verticals.multimodal.retrieval import weights as sources
from verticals.multimodal.retrieval.weights import HUB, NONE

Wave = NDArray[np.float32]
"""[T] one channel from -1 to 1, at `RATE`."""
LOUDEST = 1_000
"""Of a sample; the power of much more is beyond a number's range."""
RATE = 16_000
"""Samples a second that every sound is brought to."""
MOST_SECONDS = 600
RATES = range(1_000, 400_001)
"""Samples a second that a file may have."""
WINDOW, HOP = 400, 160
"""Samples of one column of a spectrogram, and from one to the next: 25 and 10 ms."""
FLOOR = 1e-6
"""Power is no less before its logarithm: silence."""


class AudioConfig(Config):
    """The encoder of sounds."""

    name: str = ""
    """A network of timm; empty leaves sounds out."""
    weights: str = NONE
    """`hub`, `none`, or a local file: of pictures, which a network of sounds may begin with."""
    seconds: float = Field(2.0, gt=0.1, le=30)
    """That are heard at a time; longer sounds are heard part by part."""
    num_bands: int = Field(64, ge=8, le=256)
    """Of frequencies, up to half of `RATE`."""

    @property
    def num_samples(self) -> int:
        """Of one part."""
        return round(self.seconds * RATE)


def read_sound(source: Path | bytes, *, name: str = "the sound") -> Wave:
    """A WAV file of any rate, depth and number of channels, mixed to one.

    Raises:
        DataError: it is no WAV file, is empty, too long, or holds numbers that are none.
    """
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    data = source if isinstance(source, bytes) else source.read_bytes()
    if not data:
        raise DataError(f"{name} is empty, of 0 bytes; send it again")
    try:
        rate, samples = wavfile.read(io.BytesIO(data))
    except Exception as error:  # the reader has no kind of its own
        raise DataError(f"{name} cannot be read ({str(error)[:100]}); give a WAV file") from None
    if rate not in RATES:
        raise DataError(f"{name} has {rate} samples a second; allowed are {RATES[0]:,} to {RATES[-1]:,}")
    if not len(samples) or len(samples) > MOST_SECONDS * rate:
        raise DataError(f"{name} lasts {len(samples) / rate:.1f} s; allowed are up to {MOST_SECONDS}, and not none")
    if samples.dtype.kind == "u":
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    wave = samples.astype(np.float32) if samples.ndim == 1 else samples.mean(1, dtype=np.float32)
    if not np.isfinite(wave).all():
        raise DataError(f"{name} holds samples that are no numbers; write it again")
    if wave.size and (loudest := float(np.abs(wave).max())) > LOUDEST:
        raise DataError(f"{name} has samples up to {loudest:.3g}; allowed are {LOUDEST:,} times full scale, which is 1")
    if rate != RATE:
        ratio = Fraction(RATE, rate)
        wave = resample_poly(wave, ratio.numerator, ratio.denominator)
    return np.asarray(wave, np.float32)


def parts_of_sound(wave: Wave, num_samples: int) -> NDArray[np.float32]:
    """[parts, num_samples] one after the other, silence at the end; a last one of less than half is left out where there are others."""
    count = max(1, round(len(wave) / num_samples))
    parts = np.zeros((count, num_samples), np.float32)
    heard = wave[: parts.size]
    parts.reshape(-1)[: len(heard)] = heard
    return parts


class LogMel(nn.Module):
    """Waveforms to the logarithm of their power by mel bands. Convolutions with cosines and sines: every runtime has them."""

    def __init__(self, num_bands: int) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        bins = WINDOW // 2 + 1
        angles = 2 * np.pi * np.outer(np.arange(bins), np.arange(WINDOW)) / WINDOW
        hann = np.hanning(WINDOW + 1)[:-1]
        waves = np.concatenate([np.cos(angles), np.sin(angles)]) * hann
        bands = mel_filter_bank(bins, num_bands, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
        self.waves = nn.Buffer(torch.from_numpy(waves).float()[:, None], persistent=False)
        self.bands = nn.Buffer(torch.from_numpy(bands).float(), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """[B, T] -> [B, F, X]"""
        cosines, sines = F.conv1d(samples[:, None], self.waves, stride=HOP).chunk(2, 1)
        power = self.bands.T @ (cosines.square() + sines.square())
        logarithm: Tensor = power.clamp(min=FLOOR).log()
        return logarithm


class AudioEncoder(nn.Module):
    """Sounds to features, by a network of pictures that sees their spectrogram."""

    def __init__(self, pretrained: str, *, weights: str = NONE, num_bands: int = 64) -> None:
        """
        Args:
            pretrained: name of a network of timm.
            weights: `hub`, `none`, or a local file, of pictures: what looks at three colours then looks at their sum.

        Raises:
            ConfigError: no such network, or weights that cannot be had.
            ArtifactError: weights that are damaged, or of another network.
        """
        super().__init__()
        self.spectrogram, self.norm = LogMel(num_bands), nn.BatchNorm2d(1)
        self.network = _network(pretrained, weights)
        with torch.no_grad():
            self.num_pooled = int(self.eval()(torch.zeros(1, RATE)).shape[1])

    def forward(self, samples: Tensor) -> Tensor:
        """[B, T] -> [B, C]"""
        made: Tensor = self.network(self.norm(self.spectrogram(samples)[:, None]))
        return made


def _network(name: str, weights: str) -> nn.Module:
    import timm

    from verticals.multimodal.retrieval.encoders import fetching

    if not timm.is_model(name):
        raise ConfigError(f"model.audio.name {name!r}: timm has no such network; timm.list_models() names its own")
    settings: dict[str, Any] = {"in_chans": 1, "num_classes": 0}
    made: nn.Module
    if weights == NONE:
        made = timm.create_model(name, **settings)
    elif weights == HUB:
        with fetching(name):
            made = timm.create_model(name, pretrained=True, **settings)
    else:
        path = sources.resolve(weights)
        file = path / "model.safetensors" if path.is_dir() else path
        try:
            made = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **settings)
        except Exception as error:  # safetensors', torch's and timm's
            raise ArtifactError(f"weights {weights} are no weights of {name} ({str(error)[:200]})") from None
    return made
