"""Faster copies of the classifier for the search: batch norm folded, channels last, low precision.

Nothing they say is trusted: the untouched float32 classifier verifies every success. So they need only be close.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from robustbench_local.attacks.suites import INSET
from robustbench_local.engine.folding import fold_batch_norm
from robustbench_local.errors import UserError
from robustbench_local.models.classifier import Classifier
from robustbench_local.models.metered import Metered
from robustbench_local.runtime.precision import Cast, tensor_float_32

Precision = Literal["auto", "fp32", "tf32", "bf16"]
MAX_LOGIT_ERROR = 1e-3
"""The largest logit error of a float32 copy, as a share of the largest logit."""
MIN_AGREEMENT = 0.9
"""The least share of images on which a low-precision copy must predict the same class."""
MIN_GRADIENT_COSINE = {torch.float32: 0.99, torch.bfloat16: 0.5}
"""The least cosine between the gradients of a copy and of the classifier."""
MAX_LOST_GRADIENTS = 0.01
"""The largest share of pixels that may have a gradient in the classifier alone: bfloat16 rounds a pixel just inside the
box to its edge, where a layer that clips has none."""


@dataclass(frozen=True)
class SearchModel:
    """A classifier to search with. margin_tolerance: how much of a margin, in logits, may be its rounding error."""

    model: Classifier
    margin_tolerance: float
    name: str
    tf32: bool = False

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Inside, matrix products use this model's precision."""
        weight = next(self.model.parameters(), None)
        with tensor_float_32(torch.device("cpu") if weight is None else weight.device, allowed=self.tf32):
            yield


@dataclass(frozen=True)
class SearchModels:
    """low_precision: the model that searches first, if there is one. float32: the one that finishes."""

    low_precision: SearchModel | None
    float32: SearchModel

    @property
    def name(self) -> str:
        """The precision of the search as the result records it."""
        return self.low_precision.name if self.low_precision else "fp32"


def untouched_model(classifier: Classifier) -> SearchModels:
    """Search with the classifier itself."""
    return SearchModels(None, SearchModel(classifier, 0.0, "fp32"))


def check_precision(text: str, device: torch.device) -> Precision:
    """The requested precision.

    Raises UserError for an unknown one, and for one that the device does not have.
    """
    if text not in get_args(Precision):
        raise UserError(
            f"--precision is {text!r}, but must be one of {', '.join(get_args(Precision))}", slug="unknown-precision"
        )
    if text == "tf32" and device.type != "cuda":
        raise UserError(
            "--precision tf32 is an arithmetic of NVIDIA GPUs: choose auto, fp32 or bf16", slug="precision-needs-cuda"
        )
    return cast(Precision, text)


def build_search_models(metered: Metered, images: Tensor, precision: Precision) -> SearchModels:
    """Copies for the search, each compared with the classifier on a few images.

    images: float [rows, ...] in the box, on the classifier's device. A copy that differs too much, or cannot be made,
    is not used: the search then runs on the untouched classifier, and `SearchModels.name`, which the result records,
    says fp32. "auto" is bf16 on GPUs that have it and float32 elsewhere.
    """
    classifier = metered.model
    untouched = untouched_model(classifier)
    if images.dim() != 4 or not any(isinstance(part, nn.Conv2d) for part in classifier.modules()):
        return untouched
    folded = fold_batch_norm(classifier.module, images[:2])
    float32 = _search_model(metered, folded, torch.float32, images) or untouched.float32
    if precision == "auto":
        supported = images.device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if supported else "fp32"
    low_precision = None
    if precision == "bf16":
        low_precision = _search_model(metered, folded, torch.bfloat16, images)
    elif precision == "tf32":
        error, _, _ = _logit_error(metered, float32.model, images, tf32=True)
        low_precision = SearchModel(float32.model, error, "tf32", tf32=True)
    return SearchModels(low_precision, float32)


def _search_model(metered: Metered, folded: nn.Module | None, dtype: torch.dtype, images: Tensor) -> SearchModel | None:
    """A copy in that type; None where it differs too much from the classifier, or does not run."""
    if folded is None:
        return None
    classifier = metered.model
    scaling = classifier.normalization or {}
    try:
        model = Classifier(
            Cast(copy.deepcopy(folded), dtype),
            name=classifier.name,
            copy=False,
            info=classifier.info,
            mean=scaling.get("mean"),
            std=scaling.get("std"),
        ).to(images.device)
        margin_tolerance, largest, agreement = _logit_error(metered, model, images)
        aligned = _same_gradient(metered, model, images, MIN_GRADIENT_COSINE[dtype])
    except Exception:  # whatever the module does in that type, the search runs on the untouched classifier instead
        return None
    if dtype == torch.float32:
        close, name = margin_tolerance <= MAX_LOGIT_ERROR * largest, "fp32"
    else:
        close, name = agreement >= MIN_AGREEMENT, "bf16"
    return SearchModel(model, margin_tolerance, name) if close and aligned else None


@torch.no_grad()
def _logit_error(metered: Metered, model: Classifier, images: Tensor, tf32: bool = False) -> tuple[float, float, float]:
    """The copy's logit error, the largest logit, and the share of images with the same prediction.

    The last two thirds are a batch of their own, so that a batch size frozen by the trace shows.
    """
    expected, counted = metered(images), Metered(model, metered.passes)
    part = len(images) // 3
    with SearchModel(model, 0.0, "", tf32).arithmetic():
        logits = torch.cat([counted(images[part:]), counted(images[:part])]) if part else counted(images)
    expected = torch.cat([expected[part:], expected[:part]])
    error = (logits - expected).abs().amax(1)
    agreement = (logits.argmax(1) == expected.argmax(1)).float().mean()
    if not error.isfinite().all():
        return float("inf"), float(expected.abs().max()), 0.0
    return 2 * float(error.quantile(0.9)), float(expected.abs().max()), float(agreement)


def _same_gradient(metered: Metered, model: Classifier, images: Tensor, min_cosine: float) -> bool:
    """Whether the gradient of the highest logit points the same way: a trace may lose a custom gradient.

    It is taken just inside the box, as in the newest suites.
    """
    images, gradients = images[:8].clamp(float(INSET), 1 - float(INSET)), []
    for each in (metered, Metered(model, metered.passes)):
        points = images.clone().requires_grad_(True)
        with torch.enable_grad():
            highest = each(points).amax(1).sum()
        if not highest.requires_grad:
            return False
        gradients.append(torch.autograd.grad(highest, points)[0].flatten(1))
    if ((gradients[1] == 0) & (gradients[0] != 0)).float().mean() > MAX_LOST_GRADIENTS:
        return False
    cosine = torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=1)
    both_zero = torch.stack([(gradient == 0).all(1) for gradient in gradients]).all(0)
    return bool(((cosine >= min_cosine) | both_zero).float().mean() >= 0.75)
