"""`Classifier`: any module as a frozen function from images in [0, 1] to logits, its normalisation inside."""

from __future__ import annotations

import contextlib
import copy as copying
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError


class Classifier(nn.Module):
    """Images N×C×H×W, float in [0, 1] → logits N×K, float. Always in eval mode, its parameters frozen.

    `mean` and `std` (one value per channel, or one for all) scale the image before the module sees it. With
    `copy=True` the module is deep-copied first, so the caller's own keeps its modes, gradients and `requires_grad`.
    `probabilities`, which may be set later, says that the module ends in a softmax; the classifier gives its logarithm.

    Raises UserError for an impossible normalisation, a module that cannot be copied, and, in `forward`, for images
    with another number of channels than the normalisation and for an output that holds no logits.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str = "model",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
        input_shape: tuple[int, int, int] | None = None,
        resize: Resize | None = None,
        probabilities: bool = False,
        copy: bool = True,
    ) -> None:
        super().__init__()
        self.module = _copied(module, name) if copy else module
        self.name = name
        self.class_names = None if class_names is None else list(class_names)
        self.input_shape = input_shape
        self.resize = resize
        self.probabilities = probabilities
        self._scaling = _checked_scaling(mean, std, name)
        for key, values in zip(("mean", "std"), self._scaling or (None, None), strict=True):
            buffer = None if values is None else torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(key, buffer)
        self.requires_grad_(False)
        self.train(False)

    @property
    def normalization(self) -> dict[str, list[float]] | None:
        """`{"mean": […], "std": […]}` as it was given, or None."""
        return None if self._scaling is None else {"mean": list(self._scaling[0]), "std": list(self._scaling[1])}

    def train(self, mode: bool = True) -> Classifier:  # noqa: ARG002 - the signature is torch's
        """Stays in eval mode, whatever is asked: a model under attack has one answer per image."""
        # An exported program has no modes and says so; what it computes was settled when it was exported.
        with contextlib.suppress(NotImplementedError):
            self.module.eval()
        for part in self.modules():
            part.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        if self.mean is not None and self.std is not None:
            if self.mean.shape[1] not in (1, images.shape[1]):
                raise UserError(
                    f"{self.name}: the images have {images.shape[1]} channels, but the model is normalised for "
                    f"{self.mean.shape[1]}; give images with {self.mean.shape[1]} channels or another --normalize"
                )
            images = (images - self.mean) / self.std
        logits = _as_logits(self.module(images), self.name)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if self.probabilities:
            # The smallest normal number: its logarithm and the gradient 1/p are still finite in this arithmetic.
            logits = logits.clamp_min(torch.finfo(logits.dtype).tiny).log()
        return logits


def fingerprint(classifier: nn.Module) -> str:
    """SHA-256 (hex) of all weights and of the normalisation: names, types, shapes and bytes, whatever the device."""
    digest = hashlib.sha256()
    for key, value in sorted(classifier.state_dict().items()):
        if not isinstance(value, Tensor):
            digest.update(f"{key}|{value!r}\n".encode())
            continue
        value = value.detach().cpu().contiguous()
        digest.update(f"{key}|{value.dtype}|{tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _copied(module: nn.Module, name: str) -> nn.Module:
    """A deep copy without gradients, which belong to the caller and only take room."""
    try:
        copied = copying.deepcopy(module)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"{name}: the module cannot be copied ({_first_line(error)}); pass copy=False to give it "
            "away: it is then frozen and put in eval mode"
        ) from error
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


def _checked_scaling(
    mean: Sequence[float] | None, std: Sequence[float] | None, name: str
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) of equal length, or None when neither is given."""
    if mean is None and std is None:
        return None
    means = tuple(float(value) for value in (mean if mean is not None else [0.0]))
    stds = tuple(float(value) for value in (std if std is not None else [1.0]))
    length = max(len(means), len(stds))
    means, stds = (values * length if len(values) == 1 else values for values in (means, stds))
    if not means or len(means) != len(stds):
        raise UserError(
            f"{name}: the normalisation has {len(means)} means and {len(stds)} standard deviations; "
            "give one of each per channel, or one for all"
        )
    if not all(math.isfinite(value) for value in means + stds) or min(stds) <= 0:
        raise UserError(
            f"{name}: the normalisation needs finite means and standard deviations above 0, "
            f"not {list(means)} and {list(stds)}"
        )
    return means, stds


def _as_logits(output: Any, name: str) -> Tensor:
    """The N×K logits in whatever the module returned: a tensor, a tuple, a dict, or an object with `.logits`."""
    found = output
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("logits", "out", "output") if key in found), found)
    elif not isinstance(found, Tensor):
        found = getattr(found, "logits", found)
        if isinstance(found, (tuple, list)) and found:
            found = found[0]
    if not isinstance(found, Tensor):
        raise UserError(
            f"{name}: the model returns a {type(output).__name__} in which no logits are found; it must "
            "return an N×K tensor, a tuple that begins with it, or something that names it 'logits'"
        )
    if found.ndim > 2 and found[0, 0].numel() == 1:
        found = found.flatten(1)
    if found.ndim != 2:
        raise UserError(
            f"{name}: the model returns a tensor of shape {tuple(found.shape)}; a classifier must return "
            "logits of shape N×K, one row per image and one column per class"
        )
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
