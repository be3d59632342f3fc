"""A copy of everything about a module that foreign code could change, to compare with and to restore."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

_TABLES = (
    "_modules",
    "_parameters",
    "_buffers",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class ModelSnapshot:
    """Values of parameters and buffers, `requires_grad`, modes, hooks and submodules of a module."""

    def __init__(self, module: nn.Module) -> None:
        self._modules = list(module.modules())
        self._modes = [part.training for part in self._modules]
        self._tables = [
            {name: dict(vars(part)[name]) for name in _TABLES if name in vars(part)} for part in self._modules
        ]
        self._parameters = [(each, each.requires_grad, each.grad) for each in module.parameters()]
        self._tensors: list[tuple[Tensor, Tensor, str]] = [
            (each, each.detach().clone(), "parameters") for each in module.parameters()
        ]
        self._tensors += [(each, each.detach().clone(), "buffers") for each in module.buffers()]

    @torch.no_grad()
    def restore(self) -> list[str]:
        """Undo every change; return what had changed, in words."""
        changed: list[str] = []
        for part, mode, tables in zip(self._modules, self._modes, self._tables, strict=True):
            if part.training is not mode:
                changed.append("training mode")
                part.training = mode
            for name, entries in tables.items():
                current = vars(part)[name]
                if list(current.items()) != list(entries.items()):
                    changed.append("hooks" if "hooks" in name else "submodules" if name == "_modules" else name[1:])
                    current.clear()
                    current.update(entries)
        for parameter, requires_grad, grad in self._parameters:
            if parameter.requires_grad is not requires_grad:
                changed.append("requires_grad")
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                changed.append("gradients of parameters")
                parameter.grad = grad
        for tensor, before, kind in self._tensors:
            if not _equal(tensor, before):
                changed.append(kind)
                with contextlib.suppress(RuntimeError):  # a shape cannot be copied back, but the storage can
                    tensor.data = before
        return list(dict.fromkeys(changed))


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    same = one == other
    return bool((same | (one != one) & (other != other)).all()) if one.is_floating_point() else bool(same.all())
