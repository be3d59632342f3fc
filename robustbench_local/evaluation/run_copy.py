"""A run's own copy of a classifier, so that a run changes nothing that others can see."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import types
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from robustbench_local.models import Classifier
from robustbench_local.models.metered import Metered, backward_failures


@contextlib.contextmanager
def metered_on(classifier: Classifier, device: torch.device) -> Iterator[Metered]:
    """A copy of the classifier on a device, its passes counted; the caller's stays what and where it is.

    Attacks and checks hook into layers, so every run has layers of its own, and several threads may evaluate the same
    classifier at once. Parameters that are on the device already are shared, not copied. A module that cannot be copied
    is the exception: it is used itself, moved to the device and back. So is a module with a function that refers to its
    layers, such as a hook that is a lambda: the copy's function would still use the original's layers. An error of its
    backward pass inside the block becomes a `ModelFailure`.
    """
    device = torch.empty(0, device=device).device  # "cuda" gets its index
    parameters = {id(parameter): _on(parameter, device) for parameter in classifier.parameters()}
    own: Classifier | None = None
    if not _functions_refer_to_layers(classifier):
        with contextlib.suppress(Exception):  # a module may refuse to be copied in any way
            own = copy.deepcopy(classifier, parameters).to(device)
    if own is None:
        home = next(
            itertools.chain(classifier.parameters(), classifier.buffers()), torch.empty(0, device=device)
        ).device
        try:
            with backward_failures(classifier.name):
                yield Metered(copy.copy(classifier.to(device)))
        finally:
            classifier.to(home)
        return
    with backward_failures(classifier.name):
        yield Metered(own)


def _functions_refer_to_layers(classifier: Classifier) -> bool:
    """Whether a function among the modules' attributes and hooks has a module of the classifier in its closure.

    `copy.deepcopy` copies bound methods together with their object, but returns functions as they are.
    """
    modules = list(classifier.modules())
    known = {id(module) for module in modules}
    functions = [function for module in modules for function in _functions(vars(module).values())]
    return any(_reaches(value, known) for function in functions for value in _captured(function))


def _functions(values: Iterable[object]) -> Iterator[types.FunctionType]:
    """The plain functions among some values, also in containers and partials, which are copied."""
    for value in values:
        if isinstance(value, types.FunctionType):
            yield value
        elif isinstance(value, dict):
            yield from _functions(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _functions(value)
        elif isinstance(value, functools.partial):
            yield from _functions([value.func, *value.args, *value.keywords.values()])


def _captured(function: types.FunctionType) -> list[object]:
    cells = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a name that has no value yet
            cells.append(cell.cell_contents)
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _reaches(value: object, known: set[int]) -> bool:
    """Whether the value is one of the known modules, a method of one, or a container or function with one in it."""
    if isinstance(value, types.MethodType):
        return id(value.__self__) in known
    if isinstance(value, (list, tuple)):
        return any(_reaches(each, known) for each in value)
    if isinstance(value, dict):
        return any(_reaches(each, known) for each in value.values())
    return id(value) in known


def _on(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    if parameter.device == device:
        return parameter
    return nn.Parameter(parameter.detach().to(device), requires_grad=False)
