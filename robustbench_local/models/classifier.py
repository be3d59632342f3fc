"""`Classifier`: any module as a frozen function from images in [0, 1] to logits, its normalization included."""

from __future__ import annotations

import contextlib
import copy as copying
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.models.outputs import as_logits, conventional_key, logit_candidates


@dataclass(frozen=True, kw_only=True)
class ClassifierInfo:
    """What is known of a classifier beside its function.

    resize: how image files are brought to its input size. probabilities: the module ends in a softmax. weights: the
    key in the checkpoint file that the weights were read from; "" for the top level, None without a file. output: which
    of several tensors that the module returns are the logits, such as `1` or `heads.0`; None for the conventional one.
    notes: decisions made while loading that a reader of the result should know, one sentence each. refuses_one: the
    module raises for a single image, so that it is asked about a pair of the same.
    """

    resize: Resize | None = None
    probabilities: bool = False
    weights: str | None = None
    output: str | None = None
    notes: tuple[str, ...] = ()
    refuses_one: bool = False


class Classifier(nn.Module):
    """Images N×C×H×W, float in [0, 1] → logits N×K, float. Always in eval mode, its parameters frozen.

    `mean` and `std` (one value per channel, or one for all) normalize the image before the module sees it. `info` holds
    what else is known. With `copy=True` the module is deep-copied first, so that the caller's own keeps its modes,
    gradients and `requires_grad`.

    A module with one logit z per image (N×1 or N) is a binary classifier: its classes 0 and 1 get the logits 0 and z.
    `single_output` is True from the first such output on. `probabilities`, which may be set later, says that the module
    ends in a softmax (or a sigmoid, with one output); the classifier then returns the logarithm. `output`, which may be
    set later, chooses among several tensors: `candidates` are the keys of those that can be logits, `convention` is the
    key of the conventional one, both from the first such output on.

    Raises UserError for an impossible normalization, a module that cannot be copied, and, in `forward`, for images
    whose number of channels does not match the normalization and for an output without logits.
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
        info: ClassifierInfo = ClassifierInfo(),
        copy: bool = True,
    ) -> None:
        super().__init__()
        self.module = _copied(module, name) if copy else module
        self.name = name
        self.class_names = None if class_names is None else list(class_names)
        self.input_shape = input_shape
        self.resize = info.resize
        self.weights = info.weights
        self.notes = info.notes
        self.probabilities = info.probabilities
        self.output = info.output
        self.refuses_one = info.refuses_one
        self.candidates: tuple[str, ...] = ()
        self.convention = ""
        self.single_output = False
        self._normalization = _checked_normalization(mean, std, name)
        for key, values in zip(("mean", "std"), self._normalization or (None, None), strict=True):
            buffer = None if values is None else torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(key, buffer)
        self.requires_grad_(False)
        self.train(False)

    @property
    def normalization(self) -> dict[str, list[float]] | None:
        """`{"mean": […], "std": […]}`, or None."""
        if self._normalization is None:
            return None
        return {"mean": list(self._normalization[0]), "std": list(self._normalization[1])}

    @property
    def info(self) -> ClassifierInfo:
        """The current settings: a copy of this classifier is built with them."""
        return ClassifierInfo(
            resize=self.resize,
            probabilities=self.probabilities,
            weights=self.weights,
            output=self.output,
            notes=self.notes,
            refuses_one=self.refuses_one,
        )

    def train(self, mode: bool = True) -> Classifier:  # noqa: ARG002 - the signature is torch's
        """Stay in eval mode, whatever `mode` says: a model under attack gives one answer per image."""
        # An exported program has no modes and raises; its mode was fixed when it was exported.
        with contextlib.suppress(NotImplementedError):
            self.module.eval()
        for part in self.modules():
            part.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        if self.mean is not None and self.std is not None:
            if self.mean.shape[1] not in (1, images.shape[1]):
                raise UserError(
                    f"{self.name}: the images have {images.shape[1]} channels, but the model is normalized for "
                    f"{self.mean.shape[1]}; give images with {self.mean.shape[1]} channels or another --normalize",
                    slug="normalization-channels",
                )
            images = (images - self.mean) / self.std
        returned = self.module(images)
        if self.output is None and not isinstance(returned, Tensor):
            self.candidates, self.convention = logit_candidates(returned, len(images)), conventional_key(returned)
        logits = as_logits(returned, len(images), self.name, self.output)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if logits.shape[1] == 1:
            self.single_output = True
            return _two_classes(logits, probabilities=self.probabilities)
        return _log_of(logits) if self.probabilities else logits


def fingerprint(classifier: nn.Module) -> str:
    """SHA-256 (hex) of all weights and of the normalization: names, dtypes, shapes and bytes, on any device."""
    digest = hashlib.sha256()
    for key, value in sorted(classifier.state_dict().items()):
        if not isinstance(value, Tensor):
            digest.update(f"{key}|{value!r}\n".encode())
            continue
        value = value.detach().cpu().contiguous()
        digest.update(f"{key}|{value.dtype}|{tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _log_of(probabilities: Tensor) -> Tensor:
    # The smallest normal number: its logarithm and the gradient 1/p are still finite in this dtype.
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def _two_classes(output: Tensor, *, probabilities: bool) -> Tensor:
    """Logits N×2 from one output N×1: (0, z) for a logit z, (log(1 - p), log p) for a probability p."""
    if not probabilities:
        return torch.cat([torch.zeros_like(output), output], 1)
    return _log_of(torch.cat([1 - output, output], 1))


def _copied(module: nn.Module, name: str) -> nn.Module:
    """A deep copy without gradients, which belong to the caller and take memory."""
    try:
        copied = copying.deepcopy(module)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"{name}: the module cannot be copied ({_first_line(error)}); pass copy=False to hand over the module "
            "itself: it is then frozen and put in eval mode",
            slug="module-not-copyable",
        ) from error
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


def _checked_normalization(
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
            f"{name}: the normalization has {len(means)} means and {len(stds)} standard deviations; "
            "give one of each per channel, or one for all",
            slug="normalization-lengths",
        )
    if not all(math.isfinite(value) for value in means + stds) or min(stds) <= 0:
        raise UserError(
            f"{name}: the normalization needs finite means and standard deviations above 0, "
            f"not {list(means)} and {list(stds)}",
            slug="normalization-values",
        )
    return means, stds


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
