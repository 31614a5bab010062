"""Starts the same function in several processes that can talk to each other."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def launch(function: Callable[..., Any], world_size: int, *args: Any) -> None:
    """Runs `function(*args)` on every rank and waits; the first failure ends all ranks and is raised here.

    Args:
        function: importable by name (it crosses a process boundary).
        world_size: processes on this machine: gloo on CPUs, nccl where each process has a GPU of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "rendezvous")
        start_processes(_entry, (function, world_size, store, args), nprocs=world_size, start_method="spawn")  # type: ignore[no-untyped-call]


def _entry(rank: int, function: Callable[..., Any], world_size: int, store: str, args: tuple[Any, ...]) -> None:
    gpus = torch.cuda.device_count()
    if gpus >= world_size:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    backend = "nccl" if gpus >= world_size else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=world_size)
    try:
        function(*args)
        dist.barrier()  # nobody leaves while another still talks to it
    finally:
        dist.destroy_process_group()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # threads of gloo and autograd now and then abort a process that is taken down piece by piece
