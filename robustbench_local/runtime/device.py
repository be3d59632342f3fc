"""Where a run computes, and how many images it takes at a time there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_local.attacks.attack import Model
from robustbench_local.errors import UserError

CACHED_BYTES = 24 * 2**20
"""Activations that a CPU keeps at hand: freed blocks beyond it cost page faults, fewer images cost calls."""
LARGEST_ON_CPU, LARGEST_ON_GPU = 512, 2048
OUT_OF_MEMORY = (
    "out of memory",
    "DefaultCPUAllocator",
    "STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
)
"""What MPS and the driver, the CPU's allocator and the GPU libraries say: torch raises a plain RuntimeError for them. A
library that cannot allocate its workspace reports that it is not initialized."""


def choose_device(name: str | None) -> torch.device:
    """The device of that name; without one CUDA, else MPS, else CPU.

    Raises UserError for a device that this machine does not have.
    """
    if name is None:
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps") or (device.type == "cpu" and device.index):
            raise RuntimeError("it is not cpu, cuda, cuda:N or mps")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}): choose cpu, or leave it out") from None
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine itself, had no room for what was asked of it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)


@contextlib.contextmanager
def enough_memory(device: torch.device) -> Iterator[None]:
    """Turns a lack of memory, where fewer images at a time would not help or cannot be tried, into a sentence."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{device} has not enough memory for this: end what else uses it, or give a smaller --batch-size, which "
            "for a training is what a larger --accumulate comes to"
        ) from None


@dataclass
class BatchSize:
    """How many images are taken at a time; it falls when memory runs out and never rises."""

    value: int

    def halve(self, device: torch.device) -> None:
        """Raises UserError where not even one image fits."""
        if self.value == 1:
            raise UserError(f"{device} has not enough memory for a single image of this model: use a larger device")
        self.value = -(-self.value // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def automatic_batch_size(model: Model, image: Tensor) -> int:
    """How many images' saved activations fit a CPU's allocator, or a third of a GPU's free memory.

    image: float [1, ...]. Costs one forward pass.
    """
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size() * (tensor.shape[:1] == (1,))
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(image.clone().requires_grad_(True))
    room, largest = CACHED_BYTES, LARGEST_ON_CPU
    if image.device.type == "cuda":
        room, largest = torch.cuda.mem_get_info(image.device)[0] // 3, LARGEST_ON_GPU
    fits = room // max(saved, 4 * image.numel())
    return max(8, min(largest, 8 * (fits // 8)))
