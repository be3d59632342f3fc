"""Floating-point precision: the switches that torch keeps for the whole process, and modules in another type."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_EXACT, _TF32 = "ieee", "tf32"


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32 with gradients, whatever mode the caller is in: no TF32, autocast or inference mode."""
    with (
        tensor_float_32(device, allowed=False),
        torch.inference_mode(False),
        torch.autocast(device.type, enabled=False),
    ):
        yield


@contextlib.contextmanager
def tensor_float_32(device: torch.device, *, allowed: bool) -> Iterator[None]:
    """Allow or forbid GPUs to round the float32 factors of matrix products and convolutions to TF32. CPUs never may.

    These switches belong to the process, not to a thread. While several threads are inside, rounding is on only if
    all of them allow it; a thread that is inside twice counts with its inner choice. When the last thread leaves, the
    caller's settings are restored. On a CPU that computes exactly already, nothing is changed.
    """
    thread = _SWITCHES.enter(device, allowed)
    try:
        yield
    finally:
        _SWITCHES.leave(thread)


class Cast(nn.Module):
    """A module in another floating-point type and channels-last layout. Images and logits keep theirs."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.module = module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> object:
        dtype = next(self.module.parameters()).dtype
        return self.module(images.to(dtype=dtype, memory_format=torch.channels_last))


@dataclass(frozen=True)
class _Settings:
    """matmul, cudnn: torch's older settings, which other code may read. switches: the newer ones, in torch's order."""

    matmul: str
    cudnn: bool
    switches: tuple[str, ...]


@dataclass
class _Switches:
    """The process's precision switches, and the setting that each thread inside `tensor_float_32` has requested."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    requests: dict[int, list[bool]] = field(default_factory=dict)
    caller: _Settings | None = None

    def enter(self, device: torch.device, allowed: bool) -> int | None:
        """Returns the thread, for `leave`; None where nothing has to change."""
        thread = threading.get_ident()
        with self.lock:
            if not self.requests and device.type == "cpu" and not any(map(_rounds, _cpu_switches())):
                return None
            if not self.requests:
                self.caller = _read_settings()
            self.requests.setdefault(thread, []).append(allowed)
            self._apply()
        return thread

    def leave(self, thread: int | None) -> None:
        if thread is None:
            return
        with self.lock:
            self.requests[thread].pop()
            if not self.requests[thread]:
                del self.requests[thread]
            self._apply()

    def _apply(self) -> None:
        assert self.caller is not None
        if not self.requests:
            _write_settings(self.caller)
            return
        allowed = all(choices[-1] for choices in self.requests.values())
        switches = [_TF32 if allowed else _EXACT] * len(_gpu_switches()) + [_EXACT] * len(_cpu_switches())
        _write_settings(_Settings("high" if allowed else "highest", allowed, tuple(switches)))


_SWITCHES = _Switches()


def _cpu_switches() -> list[Any]:
    backend: Any = torch.backends.mkldnn
    return [backend.matmul, backend.conv, backend.rnn]


def _gpu_switches() -> list[Any]:
    backend: Any = torch.backends.cudnn
    return [torch.backends.cuda.matmul, backend.conv, backend.rnn]


def _rounds(switch: Any) -> bool:
    return switch.fp32_precision not in ("none", _EXACT)


def _read_settings() -> _Settings:
    # Torch refuses to read an older setting after its newer form was set to something else. The older one then still
    # has its default.
    matmul, cudnn = "highest", True
    with contextlib.suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with contextlib.suppress(RuntimeError):
        cudnn = torch.backends.cudnn.allow_tf32
    return _Settings(matmul, cudnn, tuple(switch.fp32_precision for switch in [*_gpu_switches(), *_cpu_switches()]))


def _write_settings(settings: _Settings) -> None:
    torch.set_float32_matmul_precision(settings.matmul)
    torch.backends.cudnn.allow_tf32 = settings.cudnn
    cudnn = _gpu_switches()[1:]
    for switch, value in zip([*_gpu_switches(), *_cpu_switches()], settings.switches, strict=True):
        if switch not in cudnn:  # "none" follows torch.backends.fp32_precision; cuDNN has "tf32" by default instead
            switch.fp32_precision = "none"
        if switch.fp32_precision != value:
            switch.fp32_precision = value
