"""What a run costs: time and memory."""

from __future__ import annotations

import resource
import sys
import time

import torch


def seconds_since(start: float) -> float:
    """Seconds since `start`, a value of `time.perf_counter`. At least 1 ns, even if the clock was set back."""
    return max(time.perf_counter() - start, 1e-9)


def forget_peak_memory(device: torch.device) -> None:
    """Reset the GPU's peak memory. The peak of a process on the CPU cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: allocations on a GPU, else the resident set of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
