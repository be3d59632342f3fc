"""Where in a model gradients end, and what a forward does that a classifier's should not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustbench_local.attacks.backward_errors import is_missing_backward
from robustbench_local.attacks.bpda import DETACHED, STEPS
from robustbench_local.models.metered import Metered, ModelFailure

OWN_FORWARD = "the model's own forward"
CUTS, FLAT = "cuts the gradient off", "has gradient 0"


@dataclass
class GradientTrace:
    """What one forward pass has shown.

    stops: layers, by their names, through which no gradient comes, each with the reason. functions: staircases and
    detachings that were called, each with the layer that did. training: layers that are in train mode as they run.
    differentiates: what differentiates or optimises inside the forward.
    """

    stops: dict[str, str] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    training: list[str] = field(default_factory=list)
    differentiates: list[str] = field(default_factory=list)

    @property
    def description(self) -> str:
        """The layers and functions that stop gradients, for people."""
        calls = [f"{layer} ({function})" for layer, function in self.functions.items() if layer not in self.stops]
        return "; ".join([f"{layer} {reason}" for layer, reason in self.stops.items()] + calls)


def trace(model: Metered, images: Tensor) -> GradientTrace:
    """Watch one forward pass, and one backward pass for every layer, on images [rows, ...] in the box."""
    classifier, traced = model.model, GradientTrace()
    names = {module: name for name, module in classifier.module.named_modules() if name}
    running: list[str] = []
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def enter(module: nn.Module, given: Any) -> None:  # noqa: ARG001
        running.append(names[module])
        if module.training:
            traced.training.append(names[module])

    def leave(module: nn.Module, given: Any, output: Any) -> None:
        running.pop()
        if given and isinstance(given[0], Tensor) and isinstance(output, Tensor) and given[0].requires_grad:
            seen.setdefault(names[module], (given[0], output))

    points = images.clone().requires_grad_(True)
    with contextlib.ExitStack() as hooks:
        for module in names:
            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        hooks.enter_context(_calls_noted(traced, lambda: running[-1] if running else OWN_FORWARD))
        hooks.enter_context(_differentiation_noted(traced))
        with contextlib.suppress(ModelFailure), torch.enable_grad():
            model(points)
    for name, (given, output) in seen.items():
        reason = _stopped(given, output)
        if reason and not any(inner.startswith(f"{name}.") and _stopped(*pair) for inner, pair in seen.items()):
            traced.stops[name] = reason
    return traced


def _stopped(given: Tensor, output: Tensor) -> str:
    """Why no gradient comes from a layer's output to its input; nothing where one does."""
    if not output.requires_grad:
        return CUTS
    weights = torch.linspace(1, 2, output.numel(), device=output.device, dtype=output.dtype).view(output.shape)
    with torch.enable_grad():
        total = (output * weights).sum()
    try:
        gradient = torch.autograd.grad(total, given, retain_graph=True, allow_unused=True)[0]
    except Exception as error:
        if not is_missing_backward(error):
            raise
        return f"has no backward ({(str(error) or type(error).__name__).splitlines()[0]})"
    if gradient is None:
        return CUTS
    return FLAT if bool((gradient == 0).all()) and given.numel() > 1 else ""


@contextlib.contextmanager
def _calls_noted(traced: GradientTrace, where: Callable[[], str]) -> Iterator[None]:
    """Inside, staircases and detachings of what depends on the input are noted."""

    class Noting(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            name = getattr(func, "__name__", "")
            name = getattr(func.__self__, "__name__", "") if name == "__get__" else name
            first = args[0] if args else None
            stops = name.rstrip("_") in STEPS | DETACHED or (kwargs or {}).get("rounding_mode")
            if stops and isinstance(first, Tensor) and first.requires_grad:
                traced.functions.setdefault(where(), name)
            return func(*args, **(kwargs or {}))

    with Noting():
        yield


@contextlib.contextmanager
def _differentiation_noted(traced: GradientTrace) -> Iterator[None]:
    """Inside, calls that differentiate are noted, whoever makes them."""
    places: list[tuple[Any, str]] = [
        (torch.autograd, "grad"),
        (torch.autograd, "backward"),
        (Tensor, "backward"),
        (torch.func, "grad"),
        (torch.optim.Optimizer, "zero_grad"),
    ]
    originals = [getattr(owner, name) for owner, name in places]

    def noting(original: Any, told: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if told not in traced.differentiates:  # under a function mode torch calls itself a second time
                traced.differentiates.append(told)
            return original(*args, **kwargs)

        return call

    for (owner, name), original in zip(places, originals, strict=True):
        setattr(owner, name, noting(original, f"{getattr(owner, '__name__', '')}.{name}"))
    try:
        yield
    finally:
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, original)
