"""The arithmetic of training: bfloat16 where it pays, channels last where that is faster, float32 weights always."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robustbench_local.attacks.attack import Model
from robustbench_local.defenses.objective import frozen_eval
from robustbench_local.runtime.precision import Cast
from robustbench_local.training.initialization import NormalizedModel

WIDE = 32
"""Input channels from which a CPU's convolutions are faster with the channels last."""


def uses_bf16(precision: str, device: torch.device) -> bool:
    """auto: on GPUs that have it. A CPU's float32 can be repeated to the bit, so there it has to be asked for."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def laid_out(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with the memory layout that is fastest for it; its numbers stay what they are."""
    wide = any(isinstance(part, nn.Conv2d) and part.in_channels >= WIDE for part in network.modules())
    if device.type == "cuda" or wide:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


class FrozenCopy:
    """The learner as inner attacks see it: standing still, in bfloat16 if asked for.

    The bfloat16 copy is brought up to date once for every state of the weights, which `stale` says has changed. Nothing
    is believed of what it finds: the loss is float32's, or that of autocast.
    """

    def __init__(self, network: nn.Module, *, bf16: bool, compiled: bool = False):
        self._network, self._fresh = network, False
        self._twin: nn.Module | None = None
        if bf16:
            self._twin = copy.deepcopy(network).eval().requires_grad_(False)
            if isinstance(self._twin, NormalizedModel):  # its normalisation stays in float32
                self._twin.module = Cast(self._twin.module, torch.bfloat16)
            else:
                self._twin = Cast(self._twin, torch.bfloat16)
        self._seen: Model = torch.compile(self._twin or network) if compiled else (self._twin or network)

    def invalidate(self) -> None:
        self._fresh = False

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Model]:
        if self._twin is None:
            with frozen_eval(self._network):
                yield self._seen
            return
        if not self._fresh:
            ours, theirs = ([*each.parameters(), *each.buffers()] for each in (self._network, self._twin))
            with torch.no_grad():
                torch._foreach_copy_(theirs, ours)
            self._fresh = True
        yield self._in_float32

    def _in_float32(self, images: Tensor) -> Tensor:
        return self._seen(images).float()
