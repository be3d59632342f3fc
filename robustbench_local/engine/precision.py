"""The arithmetic of the search: search_models of the classifier that give the same answers faster.

Nothing a twin says is believed: the untouched float32 classifier verifies every point. So a twin has only to be near.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustbench_local.errors import UserError
from robustbench_local.models.classifier import Classifier
from robustbench_local.models.metered import Metered

Precision = Literal["auto", "fp32", "tf32", "bf16"]
MAX_LOGIT_ERROR = 1e-3
"""By what share of the largest logit a float32 twin may be off."""
MIN_AGREEMENT = 0.9
"""What share of the images a low-precision twin must predict alike."""


@contextlib.contextmanager
def tensor_float_32(allowed: bool) -> Iterator[None]:
    """Inside, GPUs may round the factors of their matrix products to TF32, or may not."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@dataclass(frozen=True)
class SearchModel:
    """A classifier to search with. margin_tolerance: how much of a margin, in logits, may be its rounding."""

    model: Classifier
    margin_tolerance: float
    name: str
    tf32: bool = False

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Inside, matrix products use the twin's own arithmetic."""
        with tensor_float_32(self.tf32):
            yield


@dataclass(frozen=True)
class SearchModels:
    """coarse: the low-precision twin that searches first, if any. fine: the float32 one that finishes."""

    coarse: SearchModel | None
    fine: SearchModel

    @property
    def name(self) -> str:
        return self.coarse.name if self.coarse else "fp32"


class Cast(nn.Module):
    """A module in another type and memory layout; images and logits stay as they are."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.module = module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> object:
        dtype = next(self.module.parameters()).dtype
        return self.module(images.to(dtype=dtype, memory_format=torch.channels_last))


def check_precision(text: str, device: torch.device) -> Precision:
    """The precision as asked for.

    Raises UserError for an unknown one, and for one that the device does not have.
    """
    if text not in get_args(Precision):
        raise UserError(f"--precision is {text!r}, but must be one of {', '.join(get_args(Precision))}")
    if text == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32 is an arithmetic of NVIDIA GPUs: choose auto, fp32 or bf16")
    return text  # type: ignore[return-value]


def build_search_models(metered: Metered, images: Tensor, precision: Precision) -> SearchModels:
    """Twins for the search, each compared with the classifier on a few images.

    images: float [rows, ...] in the box, on the classifier's device. A twin that differs too much, or cannot be made,
    is left out. "auto" is bf16 on GPUs that have it and float32 elsewhere.
    """
    classifier = metered.model
    untouched = SearchModel(classifier, 0.0, "fp32")
    if images.dim() != 4 or not any(isinstance(part, nn.Conv2d) for part in classifier.modules()):
        return SearchModels(None, untouched)
    folded = _folded(classifier.module)
    fine = _twin(metered, folded, torch.float32, images, "fp32") or untouched
    if precision == "auto":
        supported = images.device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if supported else "fp32"
    coarse = None
    if precision == "bf16":
        coarse = _twin(metered, folded, torch.bfloat16, images, "bf16")
    elif precision == "tf32":
        coarse = SearchModel(fine.model, _logit_error(metered, fine.model, images, tf32=True)[0], "tf32", tf32=True)
    return SearchModels(coarse, fine)


def _folded(module: nn.Module) -> nn.Module | None:
    """A copy with every batch norm that follows a convolution folded into it; without folding where it cannot be
    traced, None where it cannot be copied.
    """
    from torch.fx.experimental.optimization import fuse

    with contextlib.suppress(Exception):
        return fuse(module)
    with contextlib.suppress(Exception):
        return copy.deepcopy(module)
    return None


def _twin(
    metered: Metered, folded: nn.Module | None, dtype: torch.dtype, images: Tensor, name: str
) -> SearchModel | None:
    if folded is None:
        return None
    classifier = metered.model
    scaling = classifier.normalization or {}
    try:
        twin = Classifier(
            Cast(copy.deepcopy(folded), dtype),
            name=classifier.name,
            copy=False,
            info=classifier.info,
            mean=scaling.get("mean"),
            std=scaling.get("std"),
        ).to(images.device)
        margin_tolerance, largest, alike = _logit_error(metered, twin, images)
        aligned = _same_gradient(metered, twin, images, 0.99 if dtype == torch.float32 else 0.5)
    except Exception:  # whatever the module does in that arithmetic, the search can do without it
        return None
    near = margin_tolerance <= MAX_LOGIT_ERROR * largest if dtype == torch.float32 else alike >= MIN_AGREEMENT
    return SearchModel(twin, margin_tolerance, name) if near and aligned else None


@torch.no_grad()
def _logit_error(metered: Metered, twin: Classifier, images: Tensor, tf32: bool = False) -> tuple[float, float, float]:
    """How far the twin's logits are off, the largest logit, and the share of images predicted alike.

    The last third goes through alone, so that what a trace has taken for constant shows.
    """
    expected, asked = metered(images), Metered(twin, metered.passes)
    part = len(images) // 3
    with SearchModel(twin, 0.0, "", tf32).arithmetic():
        found = torch.cat([asked(images[part:]), asked(images[:part])]) if part else asked(images)
    expected = torch.cat([expected[part:], expected[:part]])
    off = (found - expected).abs().amax(1)
    alike = (found.argmax(1) == expected.argmax(1)).float().mean()
    if not off.isfinite().all():
        return float("inf"), float(expected.abs().max()), 0.0
    return 2 * float(off.quantile(0.9)), float(expected.abs().max()), float(alike)


def _same_gradient(metered: Metered, twin: Classifier, images: Tensor, cosine: float) -> bool:
    """Whether the gradient of the highest logit points the same way: a trace may lose a custom gradient."""
    images, gradients = images[:8], []
    for model in (metered, Metered(twin, metered.passes)):
        points = images.clone().requires_grad_(True)
        with torch.enable_grad():
            highest = model(points).amax(1).sum()
        if not highest.requires_grad:
            return False
        gradients.append(torch.autograd.grad(highest, points)[0].flatten(1))
    alike = torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=1)
    same = torch.stack([(gradient == 0).all(1) for gradient in gradients]).all(0)
    return bool(((alike >= cosine) | same).float().mean() >= 0.75)
