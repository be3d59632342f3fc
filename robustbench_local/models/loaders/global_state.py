"""Global settings that a user's code may change when it is imported or called."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch


@contextlib.contextmanager
def restored_globals(argv: Sequence[str]) -> Iterator[None]:
    """Run the block with `argv` as `sys.argv`, and restore all global settings afterwards.

    They are: `sys.argv`, the current directory, warning filters, the random states of Python, NumPy and torch (CPU),
    and torch's default dtype and device, threads, gradient mode, matmul precision, deterministic algorithms and cuDNN
    flags.
    """
    arguments, directory = sys.argv, Path.cwd()
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    dtype, device, threads = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    gradients, matmul = torch.is_grad_enabled(), torch.get_float32_matmul_precision()
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    sys.argv = list(argv)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        sys.argv = arguments
        os.chdir(directory)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            # None means the CPU without a mode that every call of torch would pass through.
            torch.set_default_device(None if device.type == "cpu" else device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_grad_enabled(gradients)
        torch.set_float32_matmul_precision(matmul)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
