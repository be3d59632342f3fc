"""A model's features: what its last linear layer is given, where a forward lets that be said of every image."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_local.models.metered import Metered

ALIKE = 1e-3
"""Difference of features, relative to the largest, that another batch may explain."""


class FeaturesMissing(Exception):
    """In a call, the last linear layer did not run once on the whole batch."""


class Logits:
    """A model's logits, float [rows, classes]."""

    def __init__(self, model: nn.Module):
        self._model = model

    def __call__(self, points: Tensor) -> Tensor:
        logits: Tensor = self._model(points)
        return logits

    def require_own_rows(self, points: Tensor, values: Tensor) -> None:
        """Do nothing: whatever the logits depend on, they are the model's answer."""


class Features(Logits):
    """The input of a model's last linear layer, float [rows, features]; its logits where it has no such layer.

    A forward may branch, so that the layer runs on all rows in one call and on some or none in the next. A call in
    which it does not run once on the whole batch raises FeaturesMissing; `Logits` can then stand in for all calls.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model)
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self._last = layers[-1] if layers else None

    def __call__(self, points: Tensor) -> Tensor:
        if self._last is None:
            return super().__call__(points)
        if len(points) == 1 and isinstance(self._model, Metered) and self._model.model.refuses_one:
            return self(points.repeat(2, *[1] * (points.dim() - 1)))[:1]
        inputs: list[Tensor] = []
        thread = threading.get_ident()

        def record(module: nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG001
            if threading.get_ident() == thread:  # others may use the same layer at the same time
                inputs.append(args[0])

        handle = self._last.register_forward_pre_hook(record)
        try:
            super().__call__(points)
        finally:
            handle.remove()
        if len(inputs) != 1 or inputs[0].dim() != 2 or len(inputs[0]) != len(points):
            raise FeaturesMissing
        return inputs[0].float()

    @torch.no_grad()
    def require_own_rows(self, points: Tensor, values: Tensor) -> None:
        """Raise FeaturesMissing where a point alone has other features than in its batch: rows may be reordered.

        values: float [rows, features], the features of the points in batches. Some points are asked again, each alone
        and with gradients, as an attack would.
        """
        if self._last is None:
            return
        for row in (0, len(points) // 2, len(points) - 1):
            with torch.enable_grad():
                alone = self(points[row : row + 1].clone().requires_grad_(True)).detach()[0]
            if alone.shape != values[row].shape or (alone - values[row]).abs().max() > ALIKE * values.abs().max():
                raise FeaturesMissing
