"""The hardware found, what it can do, and seeding."""

from __future__ import annotations

import os
import platform
import random
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from core.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the first CUDA device, else the CPU.

    Raises:
        ConfigError: the device that was asked for is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is unknown; allowed: auto, cpu, cuda, cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for, but no CUDA device is visible; use auto or cpu")
    return device


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch; batches take their own generators, so this governs dropout and initial weights."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def peak_bytes() -> int:
    """The largest resident size this process has had, in bytes."""
    import resource

    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts what the process was before it became this program
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024

    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def resident_bytes() -> int:
    """What this process holds in memory now; its peak where the system tells nothing else."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_bytes()


def memory_limit() -> int:
    """Bytes that this process may come to hold: the container's limit, else what the machine has free now and what the
    process holds already."""
    found = []
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            found.append(int(Path(name).read_text()))
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        found.append(free + resident_bytes())
    return min(found, default=2**62)


class PeakWatch:
    """Within the block, `bytes` is the most that the process held, looked at every millisecond."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._done.wait(0.001):
            self.bytes = max(self.bytes, resident_bytes())

    def __enter__(self) -> Self:
        self.bytes = resident_bytes()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def machine() -> dict[str, Any]:
    """What a figure was measured on: processor, cores, memory, accelerator, versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }
