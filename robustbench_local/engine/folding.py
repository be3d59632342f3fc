"""Batch norms folded into the convolutions before them, without tracing.

`torch.fx` replaces `nn.Module.__call__` for the whole process while it traces, so models that other threads run at that
moment would become part of the trace. Here a forward pass of a copy, with hooks of its own, shows what feeds what.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from robustbench_local.attacks.bpda import function_name

_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_NORM_AFTER: dict[type[nn.Module], type[_Norm]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}
_READS_VALUES = frozenset({"__bool__", "__float__", "__int__", "__index__", "item", "tolist", "numpy", "__array__"})
_READS_SHAPE = frozenset({"dim", "ndim", "size", "shape", "numel", "dtype", "device", "is_cuda", "layout", "__len__"})


def fold_batch_norm(module: nn.Module, images: Tensor) -> nn.Module | None:
    """Return a copy with every batch norm folded into the convolution before it; None where it cannot be copied.

    images: float [rows, ...], what the module takes. Where the forward pass fails, nothing is folded.
    """
    try:
        copied = copy.deepcopy(module)
    except Exception:  # what is not copied is searched as it is
        return None
    if not any(isinstance(layer, _Norm) for layer in copied.modules()):
        return copied
    pairs: list[tuple[_Conv, _Norm]] = []
    with contextlib.suppress(Exception), torch.no_grad():
        pairs = _conv_norm_pairs(copied, images)
    for conv, norm in pairs:
        _replace(copied, conv, fuse_conv_bn_eval(conv, norm))
        _replace(copied, norm, nn.Identity())
    return copied


def _conv_norm_pairs(module: nn.Module, images: Tensor) -> list[tuple[_Conv, _Norm]]:
    """Convolutions whose output is the input of a batch norm in eval mode, and of nothing else.

    There are none where the forward pass reads values of tensors: for other images it may take another way.
    """
    leaves = [layer for layer in module.modules() if not list(layer.children())]
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []  # every tensor is kept, so that none is mistaken for another

    def record(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            calls.append((layer, args[0], output))

    with contextlib.ExitStack() as stack:
        for layer in leaves:
            stack.callback(layer.register_forward_hook(record).remove)
        uses = stack.enter_context(_Uses())
        module(images)
    if uses.values_read:
        return []
    times = [layer for layer, _, _ in calls]
    pairs: list[tuple[_Conv, _Norm]] = []
    for conv, _, output in calls:
        users = [layer for layer, source, _ in calls if source is output]
        if len(users) != 1 or times.count(conv) != 1 or times.count(users[0]) != 1:
            continue
        norm = users[0]
        if isinstance(conv, _Conv) and isinstance(norm, _Norm) and type(norm) is _NORM_AFTER.get(type(conv)):
            statistics = isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
            tensors = [output, *conv.parameters(), *norm.parameters(), *norm.buffers()]
            alone = all(uses.count(tensor) <= 1 for tensor in tensors) and not _has_hooks(conv) and not _has_hooks(norm)
            pairs += [(conv, norm)] if statistics and alone and not norm.training else []
    return pairs


class _Uses(TorchFunctionMode):
    """Inside, notes which tensors are arguments of torch functions, in this thread alone.

    values_read: whether numbers left for Python or numpy, by which a forward pass may choose its way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values_read = False
        self._arguments: list[Tensor] = []

    def count(self, tensor: Tensor) -> int:
        """How many arguments it was."""
        return sum(argument is tensor for argument in self._arguments)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        self.values_read |= name in _READS_VALUES
        if name not in _READS_SHAPE:
            self._arguments += _tensors([*args, *kwargs.values()])
        return func(*args, **kwargs)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _has_hooks(layer: nn.Module) -> bool:
    """Whether hooks see or change what the layer takes or gives."""
    return any(entries for name, entries in vars(layer).items() if name.endswith("_hooks") and "state_dict" not in name)


def _replace(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a layer in the place of another, wherever that is used."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
