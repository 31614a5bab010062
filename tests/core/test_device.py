"""Devices: what is there is taken, what is not is refused in words; seeding repeats."""

import numpy as np
import pytest
import torch

from core.device import machine, pick_device, seed_everything
from core.errors import ConfigError
from core.memory import peak_bytes


def test_auto_takes_what_is_there() -> None:
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:x"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        pick_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="use auto or cpu"):
        pick_device("cuda")


def test_seeding_repeats_everything() -> None:
    def draw() -> tuple[float, float]:
        seed_everything(7)
        return float(np.random.rand()), float(torch.rand(1))

    assert draw() == draw()


def test_the_machine_is_named() -> None:
    found = machine()
    assert found["cores"] >= 1
    assert found["torch"] == torch.__version__
    assert peak_bytes() > 1 << 20
