"""Whether a model's mistakes say that the pixels were meant otherwise: negatives, other scales, another layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_local.data.dataset import Dataset
from robustbench_local.diagnostics.preflight import PROBE_IMAGES, probe_images
from robustbench_local.models.classifier import Classifier
from robustbench_local.models.metered import Metered
from robustbench_local.models.normalization import Normalization, parse_normalization
from robustbench_local.statistics.intervals import mcnemar

MOST_TRIED = 128
"""Images on which another reading is compared with the one in use."""
MOST_COMPARED = 512
"""Images on which no normalization is compared with the one in use."""
FIRST_LOOK = 16
"""Misclassified images on which every reading is tried first."""
PASSES_PER_IMAGE = 3
"""Forward passes for each image of the set that may be spent on other readings."""
ALPHA = 0.01
"""How often a model whose pixels are right may be suspected, the number of readings paid."""
GAIN = 0.02
"""The share of images that another reading must win. Less can be the model's own preference for more contrast."""
NORMALIZATIONS = ("none", "imagenet", "cifar10", "mnist", "fashion-mnist", "0.5:0.5", "0:1/255")
"""What a model may expect: the last is for pixels from 0 to 255."""
_EXPECTED = {"0:1/255": "pixels from 0 to 255", "0.5:0.5": "normalized input, pixels from -1 to 1"}
View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reading:
    """words: the beginning of its advice. view: from the images in use to those that are meant."""

    words: str
    view: View


@dataclass(frozen=True)
class ClassifiedImages:
    """Some of a dataset's images with their labels and the model's predictions, on the CPU."""

    images: Tensor
    labels: Tensor
    predictions: Tensor

    @classmethod
    def sample(cls, dataset: Dataset, predictions: Tensor, most: int = MOST_TRIED) -> ClassifiedImages:
        """Images from all over the first samples of the dataset. predictions: int64 [n], theirs."""
        positions = probe_images(dataset.subset(torch.arange(len(predictions))), most)
        return cls(dataset.images(positions), dataset.labels[positions], predictions[positions])

    def part(self, rows: Tensor) -> ClassifiedImages:
        return ClassifiedImages(self.images[rows], self.labels[rows], self.predictions[rows])

    @property
    def correct(self) -> Tensor:
        return self.predictions == self.labels


@torch.no_grad()
def correct_as(model: Metered, images: ClassifiedImages, view: View, device: torch.device) -> Tensor:
    """Which images the model gets right in another reading, bool [n]."""
    batches = [model(view(part.to(device))).argmax(1).cpu() for part in images.images.split(PROBE_IMAGES)]
    return torch.cat([*batches, images.labels[:0]]) == images.labels


def other_pixels(model: Metered, images: ClassifiedImages, samples: int, device: torch.device) -> tuple[float, str]:
    """Suggest a reading of the pixels that makes significantly more predictions correct.

    All readings are tried on a few misclassified images; those that win the most are tried on all (futility stopping
    makes no error of the first kind larger). The test is paired, and the number of readings is paid.
    samples: images of the whole set, which bound the passes. Returns the share of images that the reading makes
    correct, and the advice; (0, "") where there is none.
    """
    readings, n = _readings(model.model, images.images), len(images.labels)
    budget = PASSES_PER_IMAGE * samples
    wrong, few = (~images.correct).nonzero().squeeze(1), max(4, min(FIRST_LOOK, budget // (2 * len(readings))))
    first = wrong[:: max(1, len(wrong) // few)][:few]
    rest = torch.ones(n, dtype=torch.bool)
    rest[first] = False
    looked = [(reading, correct_as(model, images.part(first), reading.view, device)) for reading in readings]
    looked.sort(key=lambda look: -int(look[1].sum()))
    budget -= len(readings) * len(first)
    best, advice = 0.0, ""
    for number, (reading, right_first) in enumerate(looked):
        if not right_first.any() or (number and budget < int(rest.sum())):
            break
        budget -= int(rest.sum())
        right = images.correct.clone()
        right[first] = right_first
        right[rest] = correct_as(model, images.part(rest), reading.view, device)
        share = float(right.float().mean())
        if share > best and is_better(right, images.correct, len(readings)):
            best, advice = share, _advice(reading.words, right, images.correct)
    return best, advice


def without_normalization(
    model: Metered, dataset: Dataset, predictions: Tensor, device: torch.device
) -> tuple[float, str]:
    """Suggest no normalization, where that wins half of a few misclassified images and significantly many of all.

    For accuracies at which no other reading is tried: a model that normalizes its input itself loses little by a second
    normalization. predictions: int64 [n], of the first n samples. Returns what `other_pixels` does.
    """
    wrong = (predictions != dataset.labels[: len(predictions)]).nonzero().squeeze(1)
    few = wrong[:: max(1, len(wrong) // FIRST_LOOK)][:FIRST_LOOK]
    if not len(few):
        return 0.0, ""
    first = ClassifiedImages(dataset.images(few), dataset.labels[few], predictions[few])
    reading = renormalized(model.model, first.images, "none")
    if reading is None or 2 * int(correct_as(model, first, reading.view, device).sum()) < len(few):
        return 0.0, ""
    images = ClassifiedImages.sample(dataset, predictions, MOST_COMPARED)
    right = correct_as(model, images, reading.view, device)
    better = is_better(right, images.correct)
    return (float(right.float().mean()), _advice(reading.words, right, images.correct)) if better else (0.0, "")


def is_better(right: Tensor, correct: Tensor, readings: int = 1) -> bool:
    """Whether a reading, the best of several, is right on most images and on significantly more. bool [n] each."""
    won, lost = int((right & ~correct).sum()), int((correct & ~right).sum())
    return (
        2 * int(right.sum()) > len(right) and won - lost >= GAIN * len(right) and readings * mcnemar(won, lost) < ALPHA
    )


def _advice(words: str, right: Tensor, correct: Tensor) -> str:
    return f"{words} the model is correct on {int(right.sum())} of {len(right)} images instead of {int(correct.sum())}"


def _readings(classifier: Classifier, images: Tensor) -> list[Reading]:
    readings = [Reading("the images may be negatives: as 1 - pixel", lambda part: 1 - part)]
    if images.shape[2] == images.shape[3]:
        words = "rows and columns of the images may be exchanged: transposed"
        readings.append(Reading(words, lambda part: part.transpose(2, 3)))
    if images.shape[1] == 3:
        words = "the channels may be in reverse order (BGR for RGB): reversed"
        readings.append(Reading(words, lambda part: part.flip(1)))
    brightest = float(images.max())
    if 0 < brightest < 0.5:
        words = f"the brightest pixel is {brightest:.3g}, so the images may have been scaled down: divided by it"
        readings.append(Reading(words, lambda part: part / brightest))
    return readings + [reading for name in NORMALIZATIONS if (reading := renormalized(classifier, images, name))]


def normalized_part(classifier: Classifier) -> Classifier | None:
    """The classifier, or the one inside it, that normalizes images; None where none does."""
    parts = (part for part in classifier.modules() if isinstance(part, Classifier))
    return next((part for part in parts if part.normalization is not None), None)


def renormalized(classifier: Classifier, images: Tensor, name: str) -> Reading | None:
    """The reading with another normalization; None where it is the one in use or has other channels."""
    target, owner = parse_normalization(name), normalized_part(classifier)
    if owner is None and target is None:
        return None
    current: Normalization = ((0.0,), (1.0,))
    if owner is not None and owner.normalization is not None:
        current = tuple(owner.normalization["mean"]), tuple(owner.normalization["std"])
    (mean, std), (old_mean, old_std) = (
        tuple(torch.tensor(values).view(-1, 1, 1) for values in each) for each in (target or ((0.0,), (1.0,)), current)
    )
    if len(mean) not in (1, images.shape[1]) or ((len(mean), len(old_mean)) == (1, 3) and images.shape[1] == 1):
        return None
    # The classifier normalizes what it is given, so it is given what becomes the other normalization.
    factor, shift = old_std / std, old_mean - old_std * mean / std
    if torch.allclose(factor, torch.ones(())) and torch.allclose(shift, torch.zeros(()), atol=1e-4):
        return None
    if target is None:
        words = "the model seems to normalize its input itself: without --normalize"
    else:
        words = f"the model seems to expect {_EXPECTED.get(name, 'normalized input')}: with --normalize {name}"
    return Reading(words, lambda part: part * factor.to(part) + shift.to(part))
