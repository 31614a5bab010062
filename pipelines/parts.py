"""The graphs of a network in float, each to be quantized by itself: one, or those of a network of several parts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from core.contract import Arrays
from core.inference.parts import WHOLE

Method = Literal["dynamic", "static", "weights"]
SENSITIVITY_SAMPLES = 24
"""Samples by which layers are ordered, where int8 costs too much."""


class Part(NamedTuple):
    """A graph of a network in float, to be quantized. Its layers are named `PART/LAYER` where it is one of several."""

    name: str
    folder: Path
    files: tuple[str, ...]
    inputs: set[str]

    def quantize(
        self,
        folder: Path,
        method: Method,
        samples: Sequence[Arrays],
        *,
        keep: Sequence[str],
        float_kinds: Sequence[str],
    ) -> None:
        """Writes its int8 files into a folder; a part without a layer that could be int8 stays as it is."""
        from core.compression import quantization
        from core.compression.graphs import layers, of_kinds

        source, target = self.folder / self.files[0], folder / self.files[0]
        kept = [name.removeprefix(self._prefix) for name in keep if name.startswith(self._prefix)]
        if self.name != WHOLE and not set(layers(source)) - set(kept):
            for file in self.files:
                shutil.copyfile(self.folder / file, folder / file)
        elif method == "static":
            quantization.static(source, target, self._own(samples), keep=kept)
        elif method == "weights":
            quantization.weights(source, target, keep=kept)
        else:
            quantization.dynamic(source, target, keep=[*of_kinds(source, float_kinds), *kept])

    def costs(self, samples: Sequence[Arrays]) -> dict[str, float]:
        """What each layer costs in int8."""
        from core.compression.sensitivity import sensitivity

        own = self._own(samples)
        found = sensitivity(self.folder / self.files[0], own[:: max(1, len(own) // SENSITIVITY_SAMPLES)])
        return {f"{self._prefix}{layer}": cost for layer, cost in found.items()}

    @property
    def _prefix(self) -> str:
        return f"{self.name}/" if self.name != WHOLE else ""

    def _own(self, samples: Sequence[Arrays]) -> list[Arrays]:
        """Those of this part."""
        return [sample for sample in samples if sample.keys() == self.inputs] if self.name != WHOLE else list(samples)
