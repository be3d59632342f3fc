"""A run's own copy of a classifier, so that a run changes nothing that others can see."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robustbench_local.models import Classifier
from robustbench_local.models.metered import Metered


@contextlib.contextmanager
def metered_on(classifier: Classifier, device: torch.device) -> Iterator[Metered]:
    """The classifier on a device, its passes counted; the caller's classifier stays what and where it is.

    Weights that are on the device already are shared. Several threads may evaluate the same classifier at once. A
    module that cannot be copied is the exception: it is moved to the device and back.
    """
    device = torch.empty(0, device=device).device  # "cuda" gets its index
    tensors: list[Tensor] = [*classifier.parameters(), *classifier.buffers()]
    if all(tensor.device == device for tensor in tensors):
        yield Metered(copy.copy(classifier))
        return
    try:
        moved = copy.deepcopy(classifier, {id(tensor): _moved(tensor, device) for tensor in tensors}).to(device)
    except (RuntimeError, TypeError, NotImplementedError):
        home = tensors[0].device
        try:
            yield Metered(copy.copy(classifier.to(device)))
        finally:
            classifier.to(home)
        return
    yield Metered(moved)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    values = tensor.detach().to(device)
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values
