"""What this machine has: devices, arithmetic that is fast on them, memory that is free."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def device() -> torch.device:
    """The first GPU where there is one, else the CPU: where training runs."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_device() -> torch.device:
    """Where a large model decodes: CUDA, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def fast_bf16(where: torch.device) -> bool:
    """Whether the hardware multiplies bf16; elsewhere it is far slower than fp32."""
    if where.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def free_memory(where: torch.device) -> int | None:
    """Bytes that a model could still take on a device; None where that cannot be told."""
    if where.type == "cuda":
        return int(torch.cuda.mem_get_info(where)[0])
    if where.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    found = [size for size in (_available(), _group_left()) if size is not None]
    return min(found) if found else None


def wait(where: torch.device) -> None:
    """Until a GPU has done what it was given; a program's clock would not know."""
    if where.type == "cuda":
        torch.cuda.current_stream(where).synchronize()
    elif where.type == "mps":
        torch.mps.synchronize()


def fetched(value: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor from a GPU.

    Returns:
        What waits for the copy, and for nothing that the GPU was given later, and returns it.
    """
    if value.device.type != "cuda":
        return value.cpu
    copied = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    copied.copy_(value, non_blocking=True)
    there = torch.cuda.Event()
    there.record(torch.cuda.current_stream(value.device))

    def wait_for_it() -> Tensor:
        there.synchronize()
        return copied

    return wait_for_it


def give_back() -> None:
    """Hand the memory of what nothing refers to any more back to the system, where it is kept."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _available() -> int | None:
    """What the system could hand out: Linux's own estimate, elsewhere all physical memory."""
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _group_left() -> int | None:
    """What a container's limit leaves (cgroup v2); None without a limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        # Pages of files that were read count as used, and are given back when needed.
        stat = (_CGROUP / "memory.stat").read_text().split()
        cached = int(stat[stat.index("inactive_file") + 1])
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used + cached, 0)
