"""Which layers of a model stop gradients, and what its forward does that a classifier's should not."""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType, FrameType
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

    stops: layers, by name, that pass no gradient on, each with the reason. functions: piecewise constant and detaching
    functions that were called, each with the layer that called it. training: layers that run in train mode.
    differentiates: functions by which the forward differentiates or optimizes.
    """

    stops: dict[str, str] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    training: list[str] = field(default_factory=list)
    differentiates: list[str] = field(default_factory=list)

    @property
    def description(self) -> str:
        """The layers and functions that stop gradients, in words."""
        calls = [f"{layer} ({function})" for layer, function in self.functions.items() if layer not in self.stops]
        return "; ".join([f"{layer} {reason}" for layer, reason in self.stops.items()] + calls)


class _LayerRecorder:
    """Forward hooks that record every layer's first input and output, for calls of this thread alone."""

    def __init__(self, module: nn.Module, trace: GradientTrace):
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self._names = {layer: name for name, layer in module.named_modules() if name}
        self._trace, self._running, self._thread = trace, list[str](), threading.get_ident()

    @property
    def current_layer(self) -> str:
        return self._running[-1] if self._running else OWN_FORWARD

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        with contextlib.ExitStack() as hooks:
            for layer in self._names:
                hooks.callback(layer.register_forward_pre_hook(self._enter).remove)
                hooks.callback(layer.register_forward_hook(self._leave).remove)
            yield

    def _enter(self, layer: nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG002
        if threading.get_ident() != self._thread:
            return
        self._running.append(self._names[layer])
        if layer.training:
            self._trace.training.append(self._names[layer])

    def _leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        self._running.pop()
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor) and args[0].requires_grad:
            self.pairs.setdefault(self._names[layer], (args[0], output))


def trace_gradients(model: Metered, images: Tensor) -> GradientTrace:
    """Trace one forward pass, and one backward pass for every layer. images: float [rows, ...] in the box."""
    trace = GradientTrace()
    recorder = _LayerRecorder(model.model.module, trace)
    points = images.clone().requires_grad_(True)
    with (
        recorder.recording(),
        _recording_calls(trace, lambda: recorder.current_layer),
        _recording_differentiation(trace),
        contextlib.suppress(ModelFailure),
        torch.enable_grad(),
    ):
        model(points)
    reasons = {name: _reason(*pair) for name, pair in recorder.pairs.items()}
    for name, reason in reasons.items():
        if reason and not any(inner.startswith(f"{name}.") and reasons[inner] for inner in reasons):
            trace.stops[name] = reason
    return trace


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


@contextlib.contextmanager
def _recording_calls(trace: GradientTrace, layer: Callable[[], str]) -> Iterator[None]:
    """Inside, piecewise constant and detaching functions of what depends on the input are recorded."""

    class Recording(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            name = getattr(func, "__name__", "")
            name = getattr(func.__self__, "__name__", "") if name == "__get__" else name
            first = args[0] if args else None
            stops = name.rstrip("_") in STEPS | DETACHED or (kwargs or {}).get("rounding_mode")
            if stops and isinstance(first, Tensor) and first.requires_grad:
                trace.functions.setdefault(layer(), name)
            return func(*args, **(kwargs or {}))

    with Recording():
        yield


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
def _recording_differentiation(trace: GradientTrace) -> Iterator[None]:
    """Inside, functions that differentiate are recorded when this thread calls them.

    By a profile function, which belongs to the thread: nothing is patched that others would see. A profiler written in
    C cannot be put back from Python; under one, nothing is recorded.
    """
    codes, previous = _differentiating_functions(), sys.getprofile()

    def record(frame: FrameType, event: str, arg: Any) -> None:  # noqa: ARG001
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
