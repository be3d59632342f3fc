"""BPDA: Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security" (ICML 2018)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustbench_local.attacks.attack import ATTACKS, Model, State, ValueAndGrad
from robustbench_local.attacks.backward_errors import breaks_autograd_rule, is_device_failure
from robustbench_local.attacks.function_form import attack_function
from robustbench_local.attacks.pgd import PGD
from robustbench_local.attacks.threat_model import ThreatModel

STEPS = frozenset({"round", "floor", "ceil", "trunc", "fix", "sign", "sgn"})
"""Piecewise constant functions: their gradient is 0 wherever it exists."""
CLIPPING = frozenset({"hardtanh", "clamp", "clip", "relu6", "hardsigmoid"})
"""Increasing functions that are constant at both ends; `clamp` and `clip` only where they have both bounds."""
ONE_SIDED = frozenset(
    {"relu", "threshold", "clamp", "clamp_min", "clamp_max", "clip", "minimum", "maximum", "min", "max", "fmin", "fmax"}
    | {"_threshold", "softshrink", "hardshrink", "where", "masked_fill"}
)
"""Functions that return their input in one part of its range and a constant elsewhere. Inside a network they are its
nonlinearity; in front of it, before the first of `PRODUCTS`, they clip the image."""
PRODUCTS = frozenset(
    {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "einsum", "tensordot", "bilinear"}
    | {f"conv{kind}{dim}d" for kind in ("", "_transpose") for dim in (1, 2, 3)}
)
"""Functions that mix the pixels of an image."""
SATURATING = frozenset({"tanh", "sigmoid", "softmax", "erf"})
"""Increasing functions that approach a constant: stretched, they no longer saturate."""
COMPARISONS = frozenset(
    {"gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal", "__gt__", "__ge__", "__lt__", "__le__"}
)
DETACHED = frozenset({"detach", "detach_", "data"})
"""Methods and attributes that return a tensor without its gradient."""
EXPORTS = frozenset({"numpy", "__array__", "tolist", "item"})
"""Methods that hand a tensor's values to Python or numpy."""
INTEGER_CASTS = frozenset({"to", "type", "long", "int", "byte", "short"})
FLOOR_DIVISIONS = frozenset({"floor_divide", "__floordiv__"})

SOFT_LOGIC: dict[str, Callable[..., Any]] = {
    "where": lambda condition, one, other: condition * one + (1 - condition) * other,
    "masked_fill": lambda points, mask, value: points * (1 - mask) + mask * value,
    "masked_fill_": lambda points, mask, value: points * (1 - mask) + mask * value,
    "logical_not": lambda value: 1 - value,
    "bitwise_not": lambda value: 1 - value,
    "__invert__": lambda value: 1 - value,
    "logical_and": lambda one, other: one * other,
    "bitwise_and": lambda one, other: one * other,
    "__and__": lambda one, other: one * other,
    **dict.fromkeys(FLOOR_DIVISIONS, lambda one, other: one / other),
}
"""Differentiable surrogates of functions of masks and integers, with masks as numbers from 0 to 1."""


class StraightThroughFunction(torch.autograd.Function):
    """Forward the exact values, bit for bit; backward to the surrogate."""

    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, exact: Tensor) -> Tensor:  # noqa: ARG004
        return exact.clone()  # the model may write to it in place, which torch refuses for an input that is returned

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return gradient, None


class StraightThrough(TorchFunctionMode):
    """Inside, torch functions return their exact values, but gradients pass where they usually stop.

    Piecewise constant functions (`STEPS`) and casts to integers pass the gradient on unchanged. Comparisons pass on
    that of a sigmoid whose width is the mean absolute difference of the compared numbers. Detaching, `no_grad`,
    `inference_mode` and a round trip through numpy do not stop the gradient.

    saturating: also pass through functions that are flat at their ends: unchanged for `CLIPPING` and, in front of the
    network, for `ONE_SIDED`; for `SATURATING` as the same function stretched by `stretch` times the mean absolute
    input. The mode affects its own thread only.
    """

    def __init__(self, *, saturating: bool = False, stretch: float = 1.0) -> None:
        super().__init__()
        self._stretch = stretch
        self._flat = STEPS | CLIPPING if saturating else STEPS
        self._clips_image = saturating
        """Whether `ONE_SIDED` functions pass gradients: until the pixels are mixed."""
        self._stretched = SATURATING if saturating else frozenset()
        self._surrogates: dict[int, tuple[Tensor, Tensor]] = {}
        """By id, tensors that cannot carry a gradient (masks, integers), each with the surrogate that does."""
        self._exported: list[Tensor] = []
        """What the model last handed to numpy, as one tensor or image by image."""
        self._reimported = False
        """Whether some of it has come back, so that the next export starts a new list."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        name, kwargs = function_name(func), kwargs or {}
        if not torch.is_inference_mode_enabled():
            return self._call(func, name, args, kwargs)
        if args and writes_in_place(name) and _is_inference(args[0]):  # torch allows this write in inference mode only
            return func(*args, **kwargs)
        with torch.inference_mode(False):
            return self._call(func, name, [_normal(value) for value in args], kwargs)

    def _call(self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        first: Any = args[0] if args else None
        if (name in DETACHED or name == "requires_grad_") and _carries_gradient(first):
            return first
        if name in EXPORTS and isinstance(first, Tensor):
            self._export(first)
            return func(first.detach(), *args[1:], **kwargs)
        if self._exported:
            args = [self._reimport(value) for value in args]
            if writes_in_place(name):  # into the model's own tensor, not into a copy
                args[0] = first if name == "__setitem__" or args[0] is first else first.copy_(args[0])
        self._clips_image &= name not in PRODUCTS
        if _carries_gradient(first) and _changes_first(name, args, kwargs) and self._clips(name, args, kwargs):
            exact = first.detach().clone()
            func(exact, *args[1:], **kwargs)
            return first.copy_(StraightThroughFunction.apply(first.clone(), exact))
        exact = func(*args, **kwargs)
        if isinstance(exact, tuple) and self._has_surrogate(first) and all(isinstance(part, Tensor) for part in exact):
            parts = func(self._surrogate(first), *args[1:], **kwargs)
            return tuple(map(self._attach, exact, parts))
        if not isinstance(exact, Tensor):
            return exact
        return self._attach(exact, self._surrogate_result(func, name, args, kwargs, exact))

    def _clips(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether the function of that name, which may work in place, is one that gradients pass unchanged."""
        if name == "__setitem__":
            index = args[1]
            return self._clips_image and isinstance(index, Tensor) and index.dtype == torch.bool
        name = name.removesuffix("_")
        bounds = [*args[1:3], kwargs.get("min"), kwargs.get("max")]
        if name in ONE_SIDED and not (name in CLIPPING and sum(bound is not None for bound in bounds) == 2):
            return self._clips_image
        return name in self._flat

    def _attach(self, exact: Tensor, surrogate: Tensor | None) -> Tensor:
        """The exact values with the surrogate's gradient: at once if they can carry one, otherwise once they can."""
        if surrogate is None or surrogate.shape != exact.shape:
            return exact
        if exact.is_floating_point():
            return _straight_through(surrogate, exact.detach())
        self._surrogates[id(exact)] = exact, surrogate
        return exact

    def _export(self, value: Tensor) -> None:
        source = value if _carries_gradient(value) else self._surrogate(value) if self._has_surrogate(value) else None
        if source is not None:
            self._exported = [source] if self._reimported else [*self._exported, source]
            self._reimported = False

    def _reimport(self, value: Any) -> Any:
        """An argument that may come from numpy, with the gradient of what was exported.

        Any tensor without a gradient that has the size of the exported one counts; so does a list of such tensors if
        the model exported as many.
        """
        exported = self._exported
        several = len(exported) > 1 and all(part.shape == exported[0].shape for part in exported)
        if several and isinstance(value, (list, tuple)) and len(value) == len(exported):
            return [self._tie(each, source) for each, source in zip(value, exported, strict=True)]
        return self._tie(value, torch.stack(exported) if several else exported[-1])

    def _tie(self, value: Any, source: Tensor) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
            return value
        if value.requires_grad or self._has_surrogate(value):
            return value
        if source.numel() != value.numel() or source.shape[:1] != value.shape[:1]:
            return value
        self._reimported, source = True, source.reshape(value.shape)
        if value.is_floating_point():
            return _straight_through(source.to(value.dtype), value)
        # Pixels may come back as gray levels, which the model divides again.
        scale = value.float().abs().mean() / source.detach().abs().mean().clamp_min(1e-12)
        self._surrogates[id(value)] = value, source * scale
        return value

    def _surrogate_result(
        self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any], exact: Tensor
    ) -> Tensor | None:
        """A tensor like `exact` with the gradient that `exact` lacks; None where nothing is to be replaced."""
        if self._clips(name, args, kwargs):
            sources = [each for each in (*args, *kwargs.values()) if _carries_gradient(each)]
            if sources and (name not in ONE_SIDED or len(sources) == 1):
                source: Tensor = sources[0]
                return source / 6 if name == "hardsigmoid" else source
        first = args[0] if args else None
        if isinstance(first, Tensor) and _carries_gradient(first):
            if name in self._stretched:
                width = (self._stretch * first.detach().abs().mean()).clamp_min(1)
                stretched: Tensor = func(first / width, *args[1:], **kwargs)
                return width * stretched
            if name in INTEGER_CASTS and not exact.is_floating_point():
                return first
        if name in COMPARISONS:
            return _soft_comparison(name, *args[:2]) if any(map(_carries_gradient, args[:2])) else None
        floor_division = name in FLOOR_DIVISIONS or kwargs.get("rounding_mode")
        if not (floor_division and _carries_gradient(first)) and not any(map(self._has_surrogate, args)):
            return None
        return self._surrogate_call(func, name, args, kwargs)

    def _surrogate_call(self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
        """The function of its arguments' surrogates; None where it is defined for integers only."""
        if name == "where" and _carries_gradient(args[0]):  # as a method, with the condition in the second place
            args = [args[1], args[0], *args[2:]]
        soft_args = [self._surrogate(value) for value in args]
        if "rounding_mode" in kwargs:
            name, kwargs = "floor_divide", {}
        try:
            result = SOFT_LOGIC[name](*soft_args) if name in SOFT_LOGIC else func(*soft_args, **kwargs)
        except (RuntimeError, TypeError, IndexError) as error:
            if is_device_failure(error):
                raise
            return None
        return result if isinstance(result, Tensor) and result.is_floating_point() else None

    def _has_surrogate(self, value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(map(self._has_surrogate, value))
        return isinstance(value, Tensor) and id(value) in self._surrogates

    def _surrogate(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._surrogate(each) for each in value]
        return self._surrogates[id(value)][1] if isinstance(value, Tensor) and id(value) in self._surrogates else value


def function_name(func: Any) -> str:
    """The name of a torch function; of a property's getter the property's name."""
    name = str(getattr(func, "__name__", ""))
    return str(getattr(func.__self__, "__name__", "")) if name == "__get__" else name


def _changes_first(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether this call changes its first argument; some functions have a switch for it."""
    return writes_in_place(name) or kwargs.get("inplace") is True or any(value is True for value in args[1:])


def writes_in_place(name: str) -> bool:
    """Whether the function of that name changes its first argument."""
    if name.endswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    return name.endswith("_")


def _straight_through(surrogate: Tensor, exact: Tensor) -> Tensor:
    result = StraightThroughFunction.apply(surrogate, exact)
    assert isinstance(result, Tensor)
    return result


def _carries_gradient(value: Any) -> bool:
    """Whether it is a tensor through which a gradient can pass."""
    return isinstance(value, Tensor) and value.requires_grad and value.is_floating_point()


def _is_inference(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_inference()


def _normal(value: Any) -> Any:
    """A copy of an inference tensor that autograd can save; anything else unchanged."""
    if isinstance(value, (list, tuple)) and any(map(_is_inference, value)):
        return [_normal(each) for each in value]
    return value.clone() if _is_inference(value) else value


def _soft_comparison(name: str, one: Any, other: Any) -> Tensor:
    difference: Tensor = other - one if name.strip("_") in ("lt", "le", "less", "less_equal") else one - other
    width = difference.detach().abs().mean().clamp_min(1e-12)
    return (difference / width).sigmoid()


@contextlib.contextmanager
def identity_backward(model: Model, layers: Sequence[str]) -> Iterator[None]:
    """Inside, the named layers of a module pass gradients on as the identity would, where their shapes allow it.

    layers: names as in `named_modules`; names that the model does not have are ignored.
    """
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}

    def substitute(module: nn.Module, inputs: Any, output: Any) -> Any:  # noqa: ARG001
        first = inputs[0] if inputs else None
        if isinstance(output, Tensor) and isinstance(first, Tensor) and output.shape == first.shape:
            return _straight_through(first, output.detach()) if _carries_gradient(first) else output
        return output

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

    model: images -> logits. layers: names of layers to treat as the identity in the backward pass. saturating, stretch:
    as for `StraightThrough`.
    """
    buffers = list(model.buffers()) if isinstance(model, nn.Module) else []

    def forward(points: Tensor) -> Tensor:
        try:
            with identity_backward(model, layers), StraightThrough(saturating=saturating, stretch=stretch):
                return model(points)
        finally:
            for buffer in buffers:  # a running mean that the model updated under `no_grad` has a gradient now
                if buffer.requires_grad:
                    buffer.detach_()

    return forward


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class BPDA(PGD):
    """PGD along approximate gradients: those of a surrogate wherever an operation has none or a useless one.

    layers: names of layers, joined by "+", to treat as the identity in the backward pass, in addition to everything
    that `StraightThrough` replaces by itself. saturating: also pass through functions that are flat at their ends, such
    as tanh or softmax, stretched by `stretch` times the mean absolute input. A model that breaks when its tensors
    require gradients is attacked without surrogates. The other settings are PGD's.
    """

    name: ClassVar[str] = "bpda"
    steps: int = 100
    loss: str = "scaled-ce"
    schedule: str = "cosine"
    momentum: float = 0.25
    layers: str = ""
    saturating: bool = False
    stretch: float = 1.0

    def _evaluate(self, model: Model, threat_model: ThreatModel, state: State) -> ValueAndGrad:
        layers = tuple(filter(None, self.layers.split("+")))
        substituted = straight_through(model, layers, saturating=self.saturating, stretch=self.stretch)
        try:
            return super()._evaluate(substituted, threat_model, state)
        except Exception as error:
            if not breaks_autograd_rule(error):
                raise
        return super()._evaluate(model, threat_model, state)


bpda = attack_function(BPDA)
