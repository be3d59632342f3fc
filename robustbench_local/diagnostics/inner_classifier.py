"""A classifier inside a classifier: the network behind a defense that transforms images, gradients or logits.

Whatever a defense adds around a network, adversarial examples of the network itself often fool the whole: Tramèr et
al., "On adaptive attacks to adversarial example defenses" (NeurIPS 2020).
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_local.errors import UserError
from robustbench_local.models.classifier import Classifier
from robustbench_local.models.metered import Metered

AGREEMENT = 0.5
"""The share of images on which an inner classifier must predict what the whole model predicts."""


def inner_classifier(model: Metered, images: Tensor) -> Metered | None:
    """The module inside a model that predicts the same from the images themselves most often; None where there is none.

    images: float [rows, ...] in the box. The result counts its passes as the model's.
    """
    whole = model.model
    with torch.no_grad():
        logits = model(images)
    best: tuple[float, Metered] | None = None
    for module in _called_with_images(model, images, logits):
        scaling = whole.normalization or {}
        name = f"a part of {whole.name}"
        inside = Classifier(module, name=name, mean=scaling.get("mean"), std=scaling.get("std"), copy=False)
        inside.probabilities, counted = whole.probabilities, Metered(inside, model.passes)
        with contextlib.suppress(UserError), torch.no_grad():
            answers = counted(images)
            if answers.shape != logits.shape:
                continue
            agreement = float((answers.argmax(1) == logits.argmax(1)).float().mean())
            if agreement >= AGREEMENT and (best is None or agreement > best[0]):
                best = agreement, counted
    return best[1] if best else None


def _called_with_images(model: Metered, images: Tensor, logits: Tensor) -> list[nn.Module]:
    """The inner modules that take a batch in the shape of the images and return one in the shape of the logits."""
    found: list[nn.Module] = []
    thread = threading.get_ident()

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() != thread or module in found or not args:
            return
        if isinstance(args[0], Tensor) and isinstance(output, Tensor):
            like_images = args[0].shape[1:] == images.shape[1:]
            if like_images and output.dim() == 2 and output.shape[1:] == logits.shape[1:]:
                found.append(module)

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for module in model.model.module.modules():
            if module is not model.model.module:
                hooks.callback(module.register_forward_hook(record).remove)
        model(images)
    return found
