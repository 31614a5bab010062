"""What a process holds in memory, and what it may. No torch: settings are read before it is there."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from core.environment import positive

MEMORY_GB = "VERTICALS_MEMORY_GB"
"""What a process may hold, in GB."""


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


def give_back() -> None:
    """Returns to the system what was freed and the allocator keeps for later, where that is possible (glibc): memory in
    pieces that come and go grows by a third over hundreds of calls of a network."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_limit() -> int:
    """Bytes that this process may come to hold: `VERTICALS_MEMORY_GB` where it is set, else the container's limit, or what the
    machine has free now and what the process holds already.

    Raises:
        ConfigError: the variable holds no number above 0.
    """
    if MEMORY_GB in os.environ:
        return int(positive(MEMORY_GB, 1) * 1e9)
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
