"""Which layers of a model stop gradients, and what its forward does that a classifier's should not."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_local.attacks.backward_errors import is_missing_backward
from robustbench_local.diagnostics.replaced_values import Place, ReplacedValues, RunningLayers, StoppingCalls
from robustbench_local.models.metered import Metered, ModelFailure

OWN_FORWARD = "the model's own forward"
CUTS, FLAT = "cuts the gradient off", "has gradient 0"
REENTRANT = "CheckpointFunction.forward"
"""The function that torch and the libraries that follow it call for a reentrant checkpoint."""


@dataclass
class GradientTrace:
    """What one forward pass has shown.

    stops: layers, by name, that pass no gradient on although the logits depend on what they return, each with the
    reason. functions: piecewise constant and detaching functions that were called, each with the layer that called it.
    beside: those of them whose results the logits depend on, in layers that pass gradients on by another way.
    training: layers that run in train mode. differentiates: functions by which the forward differentiates or optimizes.
    reentrant: whether the forward uses reentrant checkpointing, through which torch gives no gradient of the input.
    """

    stops: dict[str, str] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    training: list[str] = field(default_factory=list)
    differentiates: list[str] = field(default_factory=list)
    reentrant: bool = False

    @property
    def description(self) -> str:
        """The layers and functions that stop gradients, in words."""
        calls = [f"{layer} ({function})" for layer, function in self.functions.items() if layer not in self.stops]
        return "; ".join([f"{layer} {reason}" for layer, reason in self.stops.items()] + calls)


def trace_gradients(model: Metered, images: Tensor) -> GradientTrace:
    """Trace one forward pass, and one backward pass for every layer. images: float [rows, ...] in [0, 1].

    Where something stops gradients, a few more passes show whether the logits depend on it.
    """
    trace, pairs, calls = GradientTrace(), dict[str, tuple[Tensor, Tensor]](), dict[Place, None]()

    def entered(name: str, layer: nn.Module) -> None:
        if layer.training:
            trace.training.append(name)

    def left(name: str, layer_input: Tensor, output: Tensor) -> Tensor:
        pairs.setdefault(name, (layer_input, output))
        return output

    def called(place: Place, value: Tensor) -> Tensor:
        trace.functions.setdefault(*place)
        calls[place] = None
        return value

    layers = RunningLayers(model.model.module, left, entered)
    points = images.clone().requires_grad_(True)
    watched = StoppingCalls(lambda: layers.current(OWN_FORWARD), called)
    with (
        layers.hooked(),
        watched,
        _recording_python_calls(trace),
        contextlib.suppress(ModelFailure),
        torch.enable_grad(),
    ):
        model(points)
    reasons = {name: reason for name, pair in pairs.items() if (reason := _reason(*pair))}
    model.passes.backward += len(images) * max((name.count(".") + 1 for name in pairs), default=0)
    if reasons or calls:
        _keep_what_matters(trace, reasons, list(calls), model, images)
    return trace


def _keep_what_matters(
    trace: GradientTrace, reasons: dict[str, str], calls: list[Place], model: Metered, images: Tensor
) -> None:
    """Find the innermost layers and the functions that stop gradients and whose values the logits depend on.

    reasons: why layers pass no gradient on, by name. calls: the functions that were called, each with its layer.
    """
    # Mirrored images are as far away as images can be, so that whatever depends on the image differs.
    replaced = ReplacedValues(model, images, 1 - images, [*((name, "") for name in reasons), *calls], OWN_FORWARD)
    stops = set[str]()
    for name in sorted(reasons, key=lambda name: -name.count(".")):
        if not any(inner.startswith(f"{name}.") for inner in stops) and replaced.matter([(name, "")]):
            stops.add(name)
    trace.stops = {name: reason for name, reason in reasons.items() if name in stops}
    beside = [call for call in calls if not any(f"{call[0]}.".startswith(f"{name}.") for name in stops)]
    if beside and replaced.matter(beside):
        trace.beside = {call[0]: call[1] for call in beside if len(beside) == 1 or replaced.matter([call])}


def _reason(layer_input: Tensor, output: Tensor) -> str:
    """Why a layer passes no gradient from its output to its input; empty where it does."""
    if not output.requires_grad:
        return CUTS
    weights = torch.linspace(1, 2, output.numel(), device=output.device, dtype=output.dtype).view(output.shape)
    with torch.enable_grad():
        total = (output * weights).sum()
    try:
        gradient = torch.autograd.grad(total, layer_input, retain_graph=True, allow_unused=True)[0]
    except Exception as error:
        if not is_missing_backward(error):
            raise
        return f"has no backward ({(str(error) or type(error).__name__).splitlines()[0]})"
    if gradient is None:
        return CUTS
    return FLAT if bool((gradient == 0).all()) and layer_input.numel() > 1 else ""


def _differentiating_functions() -> dict[CodeType, str]:
    """Python functions of torch that differentiate, by their code objects."""
    functions: dict[str, Callable[..., Any]] = {
        "torch.autograd.grad": torch.autograd.grad,
        "torch.autograd.backward": torch.autograd.backward,
        "Tensor.backward": Tensor.backward,
        "torch.func.grad": torch.func.grad,
        "Optimizer.zero_grad": torch.optim.Optimizer.zero_grad,
    }
    return {inspect.unwrap(function).__code__: name for name, function in functions.items()}


@contextlib.contextmanager
def _recording_python_calls(trace: GradientTrace) -> Iterator[None]:
    """Inside, functions that differentiate and reentrant checkpoints are recorded when this thread calls them.

    By a profile function, which belongs to the thread: nothing is patched that others would see. A profiler written in
    C cannot be put back from Python; under one, nothing is recorded.
    """
    codes, previous = _differentiating_functions(), sys.getprofile()

    def record(frame: FrameType, event: str, arg: Any) -> None:  # noqa: ARG001
        if event == "call" and frame.f_code.co_qualname == REENTRANT:
            trace.reentrant = True
        name = codes.get(frame.f_code) if event == "call" else None
        if name is not None and name not in trace.differentiates:
            trace.differentiates.append(name)

    if previous is not None and not callable(previous):
        yield
        return
    sys.setprofile(record)
    try:
        yield
    finally:
        sys.setprofile(previous)
