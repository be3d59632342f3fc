"""A run's own copy of a classifier, so that a run changes nothing that others can see."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator

import torch
from torch import nn

from robustbench_local.models import Classifier
from robustbench_local.models.metered import Metered, backward_failures


@contextlib.contextmanager
def metered_on(classifier: Classifier, device: torch.device) -> Iterator[Metered]:
    """A copy of the classifier on a device, its passes counted; the caller's stays what and where it is.

    Attacks and checks hook into layers, so every run has layers of its own, and several threads may evaluate the same
    classifier at once. Parameters that are on the device already are shared, not copied. A module that cannot be copied
    is the exception: it is used itself, moved to the device and back. An error of its backward pass inside the block
    becomes a `ModelFailure`.
    """
    device = torch.empty(0, device=device).device  # "cuda" gets its index
    parameters = {id(parameter): _on(parameter, device) for parameter in classifier.parameters()}
    try:
        own = copy.deepcopy(classifier, parameters).to(device)
    except Exception:  # a module may refuse to be copied in any way
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


def _on(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    if parameter.device == device:
        return parameter
    return nn.Parameter(parameter.detach().to(device), requires_grad=False)
