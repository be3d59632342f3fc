"""Input transformations in front of a classifier, each with its adaptive attack attached.

The transformations are adversarial-robustness-toolbox's own, exactly as they would be deployed. What they do to a
gradient is not: JPEG, quantisation and their like have none or a useless one, and robustness that comes from there is
none. So the gradient is that of a stand-in: BPDA, of Athalye, Carlini and Wagner, "Obfuscated gradients give a false
sense of security" (ICML 2018). The stand-in is the identity, but for the median, which has a gradient of its own.
Since the substitution sits in the model, every attack of every suite is adaptive without knowing of it. Of random
transformations the gradient is averaged over several draws (EOT, ibid.).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_local.attacks.bpda import StraightThroughFunction
from robustbench_local.errors import UserError, nearest
from robustbench_local.models import Classifier
from robustbench_local.specs import build, parse_spec

_BOX = (0.0, 1.0)


class InputDefense(Protocol):
    """A transformation of images. Its settings are the fields of a frozen dataclass.

    `eot` is over how many draws its gradient is averaged: 1 for those that draw nothing.
    """

    name: ClassVar[str]

    @property
    def eot(self) -> int: ...

    def transform(self, images: np.ndarray, draw: int) -> np.ndarray:
        """Float32 [rows, channels, height, width] in [0, 1] to the same, every image by itself.

        Images and draw together decide everything random.
        """
        ...

    def surrogate(self, images: Tensor) -> Tensor:
        """Something differentiable of the same shape, whose gradient is taken for the transformation's."""
        ...


class _StraightThrough:
    """For transformations that stay near to the image: their gradient is the identity's."""

    def surrogate(self, images: Tensor) -> Tensor:
        return images


@dataclass(frozen=True, kw_only=True)
class Jpeg(_StraightThrough):
    """JPEG compression (Dziugaite, Ghahramani and Roy, arXiv:1608.00853): every image saved and read again.

    quality: 1 to 100, as Pillow counts it. Three channels are compressed together, any other number one by one. Pixels
    are cut down to 8 bits before, as the toolbox does it, not rounded.
    """

    name: ClassVar[str] = "jpeg"
    eot: ClassVar[int] = 1
    quality: int = 75

    def __post_init__(self) -> None:
        _require("quality", self.quality, 1, 100)

    def transform(self, images: np.ndarray, draw: int) -> np.ndarray:  # noqa: ARG002
        from art.defences.preprocessor import JpegCompression

        return JpegCompression(_BOX, quality=self.quality, channels_first=True)(images)[0]


@dataclass(frozen=True, kw_only=True)
class BitDepth(_StraightThrough):
    """Fewer bits for every pixel (Xu, Evans and Qi, "Feature squeezing", NDSS 2018).

    bits: 1 to 8; a pixel is rounded to the nearest of 2^bits levels from 0 to 1.
    """

    name: ClassVar[str] = "bit-depth"
    eot: ClassVar[int] = 1
    bits: int = 4

    def __post_init__(self) -> None:
        _require("bits", self.bits, 1, 8)

    def transform(self, images: np.ndarray, draw: int) -> np.ndarray:  # noqa: ARG002
        from art.defences.preprocessor import FeatureSqueezing

        return FeatureSqueezing(_BOX, bit_depth=self.bits)(images)[0]


@dataclass(frozen=True, kw_only=True)
class Median:
    """Median smoothing (Xu, Evans and Qi, "Feature squeezing", NDSS 2018).

    window: pixels on a side, 2 to 9; of an even number of values the higher median. Edges are mirrored.

    A median is one of its pixels, so it has a gradient: that pixel's. Of the identity's, attacks are half blind: on
    digits-cnn (window 2, L∞ 0.1, 120 images) fast/1 leaves 33 % standing with it, and 18 % with this one.
    """

    name: ClassVar[str] = "median"
    eot: ClassVar[int] = 1
    window: int = 2

    def __post_init__(self) -> None:
        _require("window", self.window, 2, 9)

    def transform(self, images: np.ndarray, draw: int) -> np.ndarray:  # noqa: ARG002
        from art.defences.preprocessor import SpatialSmoothing

        return SpatialSmoothing(window_size=self.window, channels_first=True, clip_values=_BOX)(images)[0]

    def surrogate(self, images: Tensor) -> Tensor:
        before, after = self.window // 2, (self.window - 1) // 2
        for axis in (2, 3):
            mirrored = np.pad(np.arange(images.shape[axis]), (before, after), mode="symmetric")
            images = images.index_select(axis, torch.from_numpy(mirrored).to(images.device))
        windows = images.unfold(2, self.window, 1).unfold(3, self.window, 1).flatten(4)
        return windows.sort(dim=-1).values[..., self.window**2 // 2]


@dataclass(frozen=True, kw_only=True)
class TotalVariation(_StraightThrough):
    """Total variation minimisation (Guo et al., "Countering adversarial images", ICLR 2018): random pixels, smoothed.

    prob: how likely a pixel is one of those that the smooth image must be near to. norm: 1 or 2, of the differences
    between neighbours. lamb: what they weigh. max_iter: iterations of L-BFGS-B. eot: draws that the gradient is
    averaged over.

    Which pixels are drawn is a hash of the image's own content and of the draw's number, so the same image always gets
    the same answer, whatever batch it is in: the prediction is that of draw 0. The attacker is thereby given more than
    against fresh draws, because a point that fools draw 0 by luck counts as fooled.
    """

    name: ClassVar[str] = "total-variation"
    prob: float = 0.3
    norm: int = 2
    lamb: float = 0.5
    max_iter: int = 10
    eot: int = 4

    def __post_init__(self) -> None:
        _require("prob", self.prob, 0, 1)
        _require("norm", self.norm, 1, 2)  # of higher ones the toolbox's derivative is wrong
        _require("lamb", self.lamb, 0, 100)
        _require("max_iter", self.max_iter, 1, 1000)
        _require("eot", self.eot, 1, 100)

    def transform(self, images: np.ndarray, draw: int) -> np.ndarray:
        from art.defences.preprocessor import TotalVarMin

        minimise = TotalVarMin(prob=self.prob, norm=self.norm, lamb=self.lamb, max_iter=self.max_iter, clip_values=_BOX)
        smooth = np.empty_like(images)
        for row, image in enumerate(images):
            digest = hashlib.sha256(f"{draw} ".encode() + np.ascontiguousarray(image).tobytes()).digest()
            with _numpy_seeded(int.from_bytes(digest[:4], "big")):
                smooth[row] = minimise(image.transpose(1, 2, 0)[None])[0][0].transpose(2, 0, 1)
        return smooth


INPUT_DEFENSES: dict[str, type[InputDefense]] = {  # type: ignore[type-abstract]
    kind.name: kind for kind in (Jpeg, BitDepth, Median, TotalVariation)
}


def input_defense(spec: str) -> InputDefense:
    """The defense that a text such as `jpeg:quality=75` names.

    Raises UserError for an unknown name or setting and for a value that the defense refuses.
    """
    name, settings = parse_spec(spec)
    if name not in INPUT_DEFENSES:
        raise UserError(
            f"there is no input defense {name!r}: choose {', '.join(INPUT_DEFENSES)}.{nearest(name, INPUT_DEFENSES)}"
        )
    return build(INPUT_DEFENSES[name], settings, name)


def spec_text(defense: InputDefense) -> str:
    """The defense as the command line writes it, with all of its settings: another default is another defense."""
    fields = dataclasses.fields(defense)  # type: ignore[arg-type]
    settings = ",".join(f"{field.name.replace('_', '-')}={getattr(defense, field.name)}" for field in fields)
    return f"{defense.name}:{settings}"


def apply_defenses(images: Tensor, defenses: Sequence[InputDefense], draw: int = 0) -> Tensor:
    """The images after all defenses, first to last, with the gradients of their stand-ins.

    images: float [rows, channels, height, width], clipped to [0, 1]. draw: which of their draws random ones make.
    Returns the same shape, type and device. Raises UserError for images of another rank.
    """
    if images.dim() != 4:
        raise UserError(f"input defenses are for images of N×C×H×W, not for {images.dim()} dimensions")
    for defense in defenses:
        # In float32 whatever the search computes in: numpy has no bfloat16.
        pixels = images.detach().to("cpu", torch.float32).clamp(*_BOX).contiguous().numpy()
        exact = torch.from_numpy(np.ascontiguousarray(defense.transform(pixels, draw), dtype=np.float32)).to(images)
        differentiable = torch.is_grad_enabled() and images.requires_grad
        images = StraightThroughFunction.apply(defense.surrogate(images), exact) if differentiable else exact
    return images


class DefendedModule(nn.Module):
    """A classifier that sees every image through defenses.

    Its logits are those of draw 0. Where a gradient is asked for and a defense is random, it is the mean of the logits'
    gradients over the draws 0 to eot - 1, which costs so many passes and counts as one.
    """

    def __init__(self, classifier: Classifier, defenses: Sequence[InputDefense]):
        super().__init__()
        self.classifier = classifier
        self.defenses = tuple(defenses)
        self.eot = max(defense.eot for defense in defenses)
        device = next(classifier.parameters(), torch.empty(0)).device
        # Among the weights, so that the model's fingerprint tells one defense from another.
        settings = torch.tensor(list(self.extra_repr().encode()), dtype=torch.uint8, device=device)
        self.register_buffer("settings", settings)

    def extra_repr(self) -> str:
        return ", then ".join(map(spec_text, self.defenses))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.classifier(apply_defenses(images, self.defenses))
        if self.eot == 1 or not logits.requires_grad:
            return logits
        others = [self.classifier(apply_defenses(images, self.defenses, draw)) for draw in range(1, self.eot)]
        mean = torch.stack([logits, *others]).mean(0)
        return logits.detach() + (mean - mean.detach())


def with_preprocessing(classifier: Classifier, specs: Sequence[str]) -> Classifier:
    """The classifier behind the named defenses; the first sees the image first. Without any, the classifier itself.

    It shares the weights, and attacks on it are adaptive (see above). Raises UserError like `input_defense`.
    """
    defenses = [input_defense(spec) for spec in specs]
    if not defenses:
        return classifier
    module = DefendedModule(classifier, defenses)
    return Classifier(
        module,
        name=f"{classifier.name} behind {module.extra_repr()}",
        class_names=classifier.class_names,
        input_shape=classifier.input_shape,
        resize=classifier.resize,
        copy=False,
    )


def _require(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError for a setting outside low and high."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, but must lie between {low} and {high}")


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """NumPy's global generator seeded inside, untouched outside."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
