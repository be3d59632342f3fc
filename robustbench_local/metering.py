"""Counting what a run costs: forward and backward passes in images, seconds, memory."""
from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustbench_local.errors import UserError
from robustbench_local.models.classifier import Classifier


class ModelFailure(UserError):
    """The model itself raised: its own error in a sentence, not our traceback."""

    def __init__(self, name: str, images: Tensor, error: Exception):
        self.reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        mend = "give a smaller --batch-size" if isinstance(error, torch.OutOfMemoryError) else "mend its forward"
        shape = "×".join(map(str, images.shape))
        super().__init__(f"{name} failed on a batch of {shape}: {type(error).__name__}: {self.reason}; {mend}")


class Metered(nn.Module):
    """A model that counts the images that pass through it, forward and backward, whoever calls it."""

    model: Classifier

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model
        self.forward_passes = 0
        self.backward_passes = 0

    def forward(self, images: Tensor) -> Tensor:
        try:
            # A copy, because a model that works in place must not move the points that it is asked about.
            logits = self.model(images.clone())
        except UserError:
            raise
        except Exception as error:
            raise ModelFailure(self.model.name, images, error) from error
        self.forward_passes += len(images)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward_passes += len(gradient)

    def train(self, mode: bool = True) -> Metered:  # noqa: ARG002 – evaluation never trains
        return self


@dataclass
class Meter:
    """What has been spent since the meter was made."""

    model: Metered
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._forward, self._backward = self.model.forward_passes, self.model.backward_passes

    @property
    def forward_passes(self) -> int:
        return self.model.forward_passes - self._forward

    @property
    def backward_passes(self) -> int:
        return self.model.backward_passes - self._backward

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def forget_peak_memory(device: torch.device) -> None:
    """Begin to measure anew, where the device can; a process's own peak cannot be taken back."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's allocations at their highest on a GPU, the process's resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
