"""BPDA: Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security" (ICML 2018)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustbench_local.attacks.attack import Model, State, ValueAndGrad
from robustbench_local.attacks.pgd import PGD
from robustbench_local.attacks.threat_model import ThreatModel

STEPS = frozenset({"round", "floor", "ceil", "trunc", "fix", "sign", "sgn"})
"""Functions of a tensor whose gradient is 0 wherever they have one: staircases."""
CLIPPING = frozenset({"hardtanh", "clamp", "clip", "relu6", "hardsigmoid"})
"""Rising functions that are constant at their ends."""
SATURATING = frozenset({"tanh", "sigmoid", "softmax"})
"""Rising functions that only come near to a constant, and can be stretched until numbers no longer lie there."""
COMPARISONS = frozenset(
    {"gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal", "__gt__", "__ge__", "__lt__", "__le__"}
)
DETACHED = frozenset({"detach", "detach_", "data"})


class StraightThroughFunction(torch.autograd.Function):
    """Forward the exact values, bit for bit; backward to the stand-in."""

    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, exact: Tensor) -> Tensor:  # noqa: ARG004
        return exact.clone()  # a model may work in place, which torch refuses on an input handed through

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # noqa: ARG004
        return gradient, None


class StraightThrough(TorchFunctionMode):
    """Inside, every torch function gives the values it always gives, but gradients pass where they usually end.

    Staircases (`STEPS`) and casts to integers pass them on unchanged, comparisons as a sigmoid as wide as the compared
    numbers lie apart on average, and detaching, switching gradients off and going through numpy does nothing to them.
    saturating: functions that are flat at their ends pass them on too: unchanged (`CUT`), or as the same function
    stretched by so many times the mean size of the numbers (`SOFT`).
    """

    def __init__(self, *, saturating: bool = False, stretch: float = 1.0):
        super().__init__()
        self._stretch = stretch
        self._flat = STEPS | CLIPPING if saturating else STEPS
        self._stretched = SATURATING if saturating else frozenset()
        self._soft: dict[int, tuple[Tensor, Tensor]] = {}
        """By id, the tensors that cannot carry a gradient, each with the one that does so in its place."""
        self._left: list[Tensor] = []
        """What has last been handed to numpy, as a whole or image by image."""
        self._back = False
        """Whether some of it has come back, so that the next to go begins anew."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = _name(func), kwargs or {}
        if func is torch._C._set_grad_enabled:
            return None
        first: Any = args[0] if args else None
        if name in DETACHED and _carries(first):
            return first
        if name == "requires_grad_" and _carries(first):
            return first
        if name in ("numpy", "__array__", "tolist", "item") and isinstance(first, Tensor):
            self._leaves(first)
            return func(first.detach(), *args[1:], **kwargs)
        if self._left:
            args = [self._returned(value) for value in args]
        if name.endswith("_") and name[:-1] in self._flat and _carries(first):  # what it changes is what passes on
            return first.copy_(
                StraightThroughFunction.apply(first.clone(), func(first.detach().clone(), *args[1:], **kwargs))
            )
        exact = func(*args, **kwargs)
        if isinstance(exact, tuple) and self._tracked(first) and all(isinstance(part, Tensor) for part in exact):
            parts = func(self._softened(first), *args[1:], **kwargs)
            return tuple(map(self._kept, exact, parts))
        if not isinstance(exact, Tensor):
            return exact
        return self._kept(exact, self._stand_in(func, name, args, kwargs, exact))

    def _kept(self, exact: Tensor, soft: Tensor | None) -> Tensor:
        """The exact values with the stand-in's gradient: at once where they can carry it, else when they can."""
        if soft is None or soft.shape != exact.shape:
            return exact
        if exact.is_floating_point():
            return StraightThroughFunction.apply(soft, exact.detach())
        self._soft[id(exact)] = exact, soft
        return exact

    def _leaves(self, value: Tensor) -> None:
        source = value if _carries(value) else self._soft[id(value)][1] if self._tracked(value) else None
        if source is not None:
            self._left = [source] if self._back else [*self._left, source]
            self._back = False

    def _returned(self, value: Any) -> Any:
        """What comes back from numpy, which is any tensor without a gradient of the size of what went there, tied to
        that; or a list of tensors, where what went there went one by one.
        """
        several = len(self._left) > 1 and all(part.shape == self._left[0].shape for part in self._left)
        if several and isinstance(value, (list, tuple)) and len(value) == len(self._left):
            return [self._tied(each, left) for each, left in zip(value, self._left, strict=True)]
        return self._tied(value, torch.stack(self._left) if several else self._left[-1])

    def _tied(self, value: Any, left: Tensor) -> Any:
        if not isinstance(value, Tensor) or value.requires_grad or self._tracked(value):
            return value
        if left.numel() != value.numel() or left.shape[:1] != value.shape[:1]:
            return value
        self._back, left = True, left.reshape(value.shape)
        if value.is_floating_point():
            return StraightThroughFunction.apply(left.to(value.dtype), value)
        # Pixels may come back as grey levels, which are to be divided again.
        scale = value.float().abs().mean() / left.detach().abs().mean().clamp_min(1e-12)
        self._soft[id(value)] = value, left * scale
        return value

    def _stand_in(
        self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any], exact: Tensor
    ) -> Tensor | None:
        """A tensor like `exact` that carries the gradient which `exact` should have, where that has none."""
        first: Any = args[0] if args else None
        if name in self._flat and _carries(first):
            return first
        if name in self._stretched and _carries(first):
            width = (self._stretch * first.detach().abs().mean()).clamp_min(1)
            return width * func(first / width, *args[1:], **kwargs)
        if name in COMPARISONS:
            return _soft_comparison(name, *args[:2]) if any(map(_carries, args[:2])) else None
        if _carries(first) and not exact.is_floating_point() and name in ("to", "type", "long", "int", "byte", "short"):
            return first
        staircase = (name in ("floor_divide", "__floordiv__") or kwargs.get("rounding_mode")) and _carries(first)
        if not staircase and not any(map(self._tracked, args)):
            return None
        softened = [self._softened(value) for value in args]
        if name == "where" and len(args) == 3:
            chosen, one, other = softened
            return chosen * one + (1 - chosen) * other
        if name in ("masked_fill", "masked_fill_"):
            points, mask, value = softened
            return points * (1 - mask) + mask * value
        if name in ("logical_not", "bitwise_not", "__invert__"):
            return 1 - softened[0]
        if name in ("logical_and", "bitwise_and", "__and__"):
            return softened[0] * softened[1]
        if name in ("floor_divide", "__floordiv__") or "rounding_mode" in kwargs:
            return softened[0] / softened[1]
        try:
            soft = func(*softened, **kwargs)
        except (RuntimeError, TypeError, IndexError):  # it makes sense for integers only
            return None
        return soft if isinstance(soft, Tensor) and soft.is_floating_point() else None

    def _tracked(self, value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(map(self._tracked, value))
        return isinstance(value, Tensor) and id(value) in self._soft

    def _softened(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._softened(each) for each in value]
        return self._soft[id(value)][1] if isinstance(value, Tensor) and id(value) in self._soft else value


def _name(func: Any) -> str:
    """The function's name; of a property the property's."""
    name = getattr(func, "__name__", "")
    return getattr(func.__self__, "__name__", "") if name == "__get__" else name


def _carries(value: Any) -> bool:
    """Whether it is a tensor through which a gradient can pass."""
    return isinstance(value, Tensor) and value.requires_grad and value.is_floating_point()


def _soft_comparison(name: str, one: Any, other: Any) -> Tensor:
    ahead = other - one if name.strip("_") in ("lt", "le", "less", "less_equal") else one - other
    width = ahead.detach().abs().mean().clamp_min(1e-12)
    return (ahead / width).sigmoid()


@contextlib.contextmanager
def identity_backward(model: Model, layers: Sequence[str]) -> Iterator[None]:
    """Inside, the named layers of a module hand gradients on as if they did nothing, where their shapes allow it.

    layers: names as in `named_modules`; those that the model does not have are left out.
    """
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}

    def substitute(module: nn.Module, given: Any, output: Any) -> Any:  # noqa: ARG001
        seen = given[0] if given else None
        alike = isinstance(output, Tensor) and isinstance(seen, Tensor) and output.shape == seen.shape
        return StraightThroughFunction.apply(seen, output.detach()) if alike and _carries(seen) else output

    handles = [
        module.register_forward_hook(substitute)
        for name, module in modules.items()
        if any(name == each or name.endswith(f".{each}") for each in layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def straight_through(
    model: Model, layers: Sequence[str] = (), *, saturating: bool = False, stretch: float = 1.0
) -> Model:
    """The same function with gradients that pass through what usually stops them.

    model: images -> logits. layers: named layers that are taken for the identity on the way back. saturating, stretch:
    as for `StraightThrough`.
    """
    buffers = list(model.buffers()) if isinstance(model, nn.Module) else []

    def forward(points: Tensor) -> Tensor:
        try:
            passing = StraightThrough(saturating=saturating, stretch=stretch)
            with identity_backward(model, layers), passing, _gradients_stay_on():
                return model(points)
        finally:
            for buffer in buffers:  # a running mean that was updated "without gradients" has one now
                if buffer.requires_grad:
                    buffer.detach_()

    return forward


@contextlib.contextmanager
def _gradients_stay_on() -> Iterator[None]:
    """Inside, `torch.inference_mode` does nothing; that of `torch.no_grad` the function mode sees to."""
    before = torch.inference_mode
    torch.inference_mode = contextlib.nullcontext  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.inference_mode = before  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class BPDA(PGD):
    """PGD along approximate gradients: those of a stand-in wherever a layer has none or a useless one.

    layers: names of layers, joined by "+", that are taken for the identity on the way back, beside all that
    `StraightThrough` sees by itself. saturating: also pass through what is flat at its ends, such as tanh or softmax,
    stretched by so many times the mean size of what it is given.
    The other settings are PGD's.
    """

    name: ClassVar[str] = "bpda"
    steps: int = 100
    loss: str = "scaled-ce"
    schedule: str = "cosine"
    momentum: float = 0.25
    layers: str = ""
    saturating: bool = False
    stretch: float = 1.0

    def _look(self, model: Model, threat_model: ThreatModel, state: State) -> ValueAndGrad:
        layers = tuple(filter(None, self.layers.split("+")))
        passing = straight_through(model, layers, saturating=self.saturating, stretch=self.stretch)
        try:
            return super()._look(passing, threat_model, state)
        except Exception:  # a stand-in can break what the model can do by itself; whatever else it is comes again
            return super()._look(model, threat_model, state)
