"""Precision and memory layout of training: bfloat16 or float32 passes, float32 weights always."""

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

CHANNELS_LAST_FROM = 32
"""Input channels from which a CPU's convolutions are faster in the channels-last layout."""


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether forward and backward passes run in bfloat16.

    `auto` means on GPUs that support it; on a CPU it has to be requested, because float32 is repeatable to the bit.
    """
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def laid_out(network: nn.Module, device: torch.device) -> nn.Module:
    """The network, in place, in the memory layout that is fastest for it; its outputs stay the same."""
    many_channels = any(
        isinstance(part, nn.Conv2d) and part.in_channels >= CHANNELS_LAST_FROM for part in network.modules()
    )
    if device.type == "cuda" or many_channels:
        network.to(memory_format=torch.channels_last)
    return network


class FrozenCopy:
    """The trained network for inner attacks: in eval mode, with frozen parameters, in bfloat16 if requested.

    The bfloat16 copy is updated once after every change of the weights, which `invalidate` reports. Only inner attacks
    use it; the loss comes from the network itself.
    """

    def __init__(self, network: nn.Module, *, bf16: bool, compiled: bool = False):
        self._network, self._current = network, False
        self._copy: nn.Module | None = None
        if bf16:
            self._copy = copy.deepcopy(network).eval().requires_grad_(False)
            if isinstance(self._copy, NormalizedModel):  # its normalization stays in float32
                self._copy.module = Cast(self._copy.module, torch.bfloat16)
            else:
                self._copy = Cast(self._copy, torch.bfloat16)
        self._model: Model = torch.compile(self._copy or network) if compiled else (self._copy or network)

    def invalidate(self) -> None:
        """The weights have changed."""
        self._current = False

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Model]:
        if self._copy is None:
            with frozen_eval(self._network):
                yield self._model
            return
        if not self._current:
            source, target = ([*each.parameters(), *each.buffers()] for each in (self._network, self._copy))
            with torch.no_grad():
                torch._foreach_copy_(target, source)
            self._current = True
        yield self._in_float32

    def _in_float32(self, images: Tensor) -> Tensor:
        return self._model(images).float()
