"""Whether logits depend on what a layer or a function returns: it is made to return what it returns for other images.

Values of a real pass always fit, whatever they mean. A size or a mask of constants is the same for all images, so
replacing it changes nothing; a rounded image or the index of a codeword changes the logits.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustbench_local.attacks.bpda import DETACHED, STEPS, function_name, writes_in_place
from robustbench_local.models.metered import Metered, ModelFailure

Place = tuple[str, str]
"""A layer's name and a function that it calls; the layer's own output where the function is empty."""
Replace = Callable[[Place, Tensor], Tensor]
NO_GRAD = "no_grad"
"""Stands for whatever runs without gradients on values that have some."""
ALIKE = 1e-4
"""Difference of logits, relative to the largest, that rounding explains."""


class StoppingCalls(TorchFunctionMode):
    """Inside, functions that pass no gradient on, of what has one, return what `replace` makes of their results.

    They are the piecewise constant ones (`STEPS`), the detaching ones, and what runs under `no_grad`. layer: returns
    the name of the layer that runs.
    """

    def __init__(self, layer: Callable[[], str], replace: Replace):
        super().__init__()
        self._layer, self._replace = layer, replace

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, first = function_name(func), args[0] if args else None
        carries = isinstance(first, Tensor) and first.requires_grad
        stops = name.rstrip("_") in STEPS | DETACHED or bool((kwargs or {}).get("rounding_mode"))
        result = func(*args, **(kwargs or {}))
        if not carries or not isinstance(result, Tensor):
            return result
        if not stops and (torch.is_grad_enabled() or result.requires_grad or not result.is_floating_point()):
            return result
        replaced = self._replace((self._layer(), name if stops else NO_GRAD), result)
        if replaced is result or not writes_in_place(name):
            return replaced
        with torch.no_grad():
            return result.copy_(replaced)


class RunningLayers:
    """Forward hooks that know which layer runs, in this thread alone.

    entered: called with the layer's name and the layer. left: called with the name, the layer's first input and its
    output, where the input has a gradient; returns the output to go on with.
    """

    def __init__(
        self,
        module: nn.Module,
        left: Callable[[str, Tensor, Tensor], Tensor],
        entered: Callable[[str, nn.Module], None] = lambda name, layer: None,  # noqa: ARG005
    ):
        self._names = {layer: name for name, layer in module.named_modules() if name}
        self._entered, self._left = entered, left
        self._running, self._thread = list[str](), threading.get_ident()

    def current(self, otherwise: str) -> str:
        """The name of the innermost layer that runs."""
        return self._running[-1] if self._running else otherwise

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        with contextlib.ExitStack() as hooks:
            for layer in self._names:
                hooks.callback(layer.register_forward_pre_hook(self._enter).remove)
                hooks.callback(layer.register_forward_hook(self._leave).remove)
            yield

    def _enter(self, layer: nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG002
        if threading.get_ident() == self._thread:
            self._running.append(self._names[layer])
            self._entered(self._names[layer], layer)

    def _leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if threading.get_ident() != self._thread:
            return output
        self._running.pop()
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor) and args[0].requires_grad:
            return self._left(self._names[layer], args[0], output)
        return output


class ReplacedValues:
    """Passes of some images with values of a pass of others.

    images, others: float [rows, ...] in the box. places: what may be replaced. own: the name of the model's own
    forward. Costs two passes, and one more for every question that the values themselves do not answer.
    """

    def __init__(self, model: Metered, images: Tensor, others: Tensor, places: Collection[Place], own: str):
        self._model, self._images, self._own, self._places = model, images, own, frozenset(places)
        self._others, _ = self._recorded(others)
        values, self._logits = self._recorded(images)
        self._constant = {place for place in self._places if _all_equal(values[place], self._others[place])}

    def matter(self, places: Collection[Place]) -> bool:
        """Whether the logits change where the values at all these places are those for other images."""
        wanted = set(places) - self._constant
        if not wanted:
            return False
        counts: dict[Place, int] = defaultdict(int)

        def replace(place: Place, value: Tensor) -> Tensor:
            number, counts[place] = counts[place], counts[place] + 1
            if place not in wanted or number >= len(self._others[place]):
                return value
            other = self._others[place][number]
            return other if other.shape == value.shape and other.dtype == value.dtype else value

        logits = self._run(self._images, replace)
        if logits is None or self._logits is None or logits.shape != self._logits.shape:
            return True
        return not bool((logits - self._logits).abs().max() <= ALIKE * self._logits.abs().max())

    def _recorded(self, images: Tensor) -> tuple[dict[Place, list[Tensor]], Tensor | None]:
        """The values at every place, one for each call, and the logits."""
        values: dict[Place, list[Tensor]] = defaultdict(list)

        def record(place: Place, value: Tensor) -> Tensor:
            if place in self._places:
                values[place].append(value.detach().clone())
            return value

        return values, self._run(images, record)

    def _run(self, images: Tensor, replace: Replace) -> Tensor | None:
        """The logits, detached; None where the model fails."""
        layers = RunningLayers(self._model.model.module, lambda name, _, output: replace((name, ""), output))
        points = images.clone().requires_grad_(True)
        calls = StoppingCalls(lambda: layers.current(self._own), replace)
        with contextlib.suppress(ModelFailure), layers.hooked(), calls, torch.enable_grad():
            return self._model(points).detach()  # type: ignore[no-any-return]
        return None


def _all_equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))
