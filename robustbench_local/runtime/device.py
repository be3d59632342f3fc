"""The device of a run, and how many images fit on it at a time."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_local.errors import UserError

CACHED_BYTES = 24 * 2**20
"""Activations that a CPU's allocator keeps: more cause page faults, fewer images per batch cause more calls."""
LARGEST_ON_CPU, LARGEST_ON_GPU = 512, 2048
OUT_OF_MEMORY_CODE = 2
"""cudaErrorMemoryAllocation, and hipErrorOutOfMemory alike."""
# Backends without an error type of their own: MPS and drivers; the CPU's allocator; and cuBLAS, cuDNN, cuFFT, cuSOLVER,
# cuSPARSE and MIOpen (CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, …). cuBLAS and
# cuDNN say that they are not initialized if they cannot allocate their workspace.
_OUT_OF_MEMORY_TEXT = re.compile(
    r"out[ _]of[ _]memory|MemoryAllocation|DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|_ALLOC(ATION)?_FAILED|StatusAllocFailed|(CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)


def choose_device(name: str | None) -> torch.device:
    """The device of that name; without a name CUDA, else MPS, else CPU.

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
        raise UserError(
            f"--device {name} cannot be used here ({reason}): choose cpu, or leave it out", slug="device-unavailable"
        ) from None
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, or an error that it was raised from, says that a memory allocation failed.

    A UserError has its own sentence, whatever it was raised from.
    """
    return any(map(_failed_to_allocate, _causes(error)))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it was raised from."""
    visited: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in visited and not isinstance(cause, UserError):
        visited.add(id(cause))
        yield cause
        cause = cause.__cause__


def _failed_to_allocate(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    code = getattr(error, "error_code", None) if isinstance(error, torch.AcceleratorError) else None
    if code is not None:
        return bool(code == OUT_OF_MEMORY_CODE)
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY_TEXT.search(str(error)) is not None


@contextlib.contextmanager
def enough_memory(device: torch.device) -> Iterator[None]:
    """Turn an allocation failure into a UserError, where smaller batches would not help or cannot be tried."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{device} has not enough memory: stop other programs that use it, or give a smaller --batch-size (for a "
            "training also a larger --accumulate)",
            slug="out-of-memory",
        ) from None


@dataclass
class BatchSize:
    """How many images are processed at a time. It falls when memory runs out and never rises."""

    value: int

    def halve(self, device: torch.device) -> None:
        """Raises UserError where not even one image fits."""
        if self.value == 1:
            raise UserError(
                f"{device} has not enough memory for a single image of this model: use a larger device",
                slug="out-of-memory",
            )
        self.value = -(-self.value // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def automatic_batch_size(model: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """How many images' saved activations fit a CPU's allocator, or a third of a GPU's free memory.

    image: float [1, ...]. Costs one forward pass, or two more where the model does not take a batch of one.
    """
    try:
        saved = _saved_bytes(model, image)
    except UserError:
        saved = _saved_bytes(model, image.expand(2, *image.shape[1:])) // 2
    available, largest = CACHED_BYTES, LARGEST_ON_CPU
    if image.device.type == "cuda":
        available, largest = torch.cuda.mem_get_info(image.device)[0] // 3, LARGEST_ON_GPU
    fits = available // max(saved, 4 * image.numel())
    return max(8, min(largest, 8 * (fits // 8)))


def _saved_bytes(model: Callable[[Tensor], Tensor], images: Tensor) -> int:
    """Bytes of the activations that the model saves for its backward pass. images: float [rows, ...]."""
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size() * (tensor.shape[:1] == images.shape[:1])
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(images.clone().requires_grad_(True))
    return saved
