"""Numeric precision: TF32 and autocast switches, and modules in another type."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def tensor_float_32(allowed: bool) -> Iterator[None]:
    """Inside, GPUs may round the factors of their matrix products to TF32, or may not."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, float32 with gradients, whatever mode the caller is in: no TF32, no autocast, no inference mode."""
    with tensor_float_32(False), torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        yield


class Cast(nn.Module):
    """A module in another type and memory layout; images and logits keep theirs."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> object:
        dtype = next(self.module.parameters()).dtype
        return self.module(images.to(dtype=dtype, memory_format=torch.channels_last))
