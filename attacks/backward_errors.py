"""What an exception of a model's forward or backward pass means for an attack."""

from __future__ import annotations

import re

import torch
from torch import Tensor

# torch has no types of its own for these: each is recognized by what torch says, in one place.
_NO_DERIVATIVE = re.compile("derivative for .* is not implemented|no autograd formula was registered")
"""An operation without a derivative, where torch raises a plain RuntimeError."""
_NO_KERNEL = re.compile("not implemented for '|Could not run '|not currently implemented for the ")
"""An operation that has a derivative, but not for this device or data type."""
_AUTOGRAD_RULE = re.compile(
    "requires grad is being used in an in-place operation"
    "|modified by an inplace operation"
    "|modified inplace"
    r"|functions with out=\.\.\. arguments don't support automatic differentiation"
    "|backward through the graph a second time"
    r"|Can't call numpy\(\) on Tensor that requires grad"
    "|cannot resize variables that require grad"
    "|support the deepcopy protocol"
    "|you can only change requires_grad flags of leaf variables"
    "|[Ii]nference tensor"
)
"""Code that breaks a rule for tensors that require gradients: always a plain RuntimeError."""
_LIBRARY = re.compile("CUDA|cuDNN|CUDNN|CUBLAS|CUSOLVER|CUSPARSE|HIP|MPS|NCCL|memory|DefaultCPUAllocator")
"""A device's library, or a memory allocator."""


def is_missing_backward(error: BaseException) -> bool:
    """Whether an operation has no backward: its gradient does not exist, so an attack treats it as 0.

    True for NotImplementedError, which torch raises for a `torch.autograd.Function` without a backward and for most
    operations without a derivative, and for the RuntimeError of the remaining ones. False for everything else: a lack
    of memory, an error of a GPU library, an operation that this device or data type lacks, a backward that fails.
    A gradient of 0 in their place would make the attack blind and the reported robustness too high.
    """
    message = str(error)
    if isinstance(error, NotImplementedError):
        return _NO_KERNEL.search(message) is None
    return type(error) is RuntimeError and _NO_DERIVATIVE.search(message) is not None


def breaks_autograd_rule(error: BaseException) -> bool:
    """Whether code that is correct without gradients fails because its tensors now require them.

    Such code writes into a tensor in place, exports it, or keeps it for the next call. The cause of an error counts
    too, because a wrapper around the model may raise an error of its own. Never true for a lack of memory or an error
    of a GPU library, whose types are others.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, BufferError):  # the DLPack protocol refuses to export a tensor that requires gradients
        return True
    return type(error) is RuntimeError and _AUTOGRAD_RULE.search(str(error)) is not None


def is_device_failure(error: BaseException) -> bool:
    """Whether the device or one of its libraries failed, or memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and _LIBRARY.search(str(error)) is not None


def input_gradient(total: Tensor, points: Tensor, *, retain_graph: bool = False) -> Tensor | None:
    """The gradient of a scalar with respect to points, or None where there is none.

    There is none where no differentiable operations lead from the points to the scalar, or one of them has no backward.
    Raises whatever else the backward pass raises. retain_graph: as in `torch.autograd.grad`.
    """
    if not total.requires_grad:
        return None
    try:
        return torch.autograd.grad(total, points, retain_graph=retain_graph, allow_unused=True)[0]
    except Exception as error:
        if not is_missing_backward(error):
            raise
        return None
