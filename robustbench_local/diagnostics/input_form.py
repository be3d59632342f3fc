"""What model and data show of themselves: normalized twice, a range that is nearly black, ignored tags of pictures."""

from __future__ import annotations

from typing import NamedTuple

import scipy
import torch
from torch import Tensor

from robustbench_local.data.dataset import Dataset
from robustbench_local.data.imagefolder import FolderDataset, Reading, Trait
from robustbench_local.diagnostics.input_scaling import own_scaling
from robustbench_local.diagnostics.pixel_readings import (
    ALPHA,
    ClassifiedImages,
    correct_as,
    is_better,
    normalized_part,
    renormalized,
)
from robustbench_local.errors import UserError
from robustbench_local.models.metered import Metered
from robustbench_local.results.checks import PIXELS
from robustbench_local.results.schema import Diagnostic
from robustbench_local.statistics.intervals import mcnemar

DARK = 16.5 / 255
"""Images whose brightest pixel is no more than this hold small whole numbers, which were read as gray levels of 255."""
MOST_HEADERS = 1_000
"""Pictures whose headers are searched for an orientation and for transparency."""
MOST_REREAD = 64
"""Pictures that are decoded again, with what was ignored."""
_IGNORED: dict[Trait, str] = {
    "orientation": "an EXIF orientation, which is not applied",
    "alpha": "a transparency channel, which is dropped",
}
_READINGS: dict[Trait, dict[Reading, str]] = {
    "orientation": {"turned": "turned as it says"},
    "alpha": {"white": "on a white background", "black": "on a black background"},
}


class _Inputs(NamedTuple):
    """A model with a dataset, of whose first samples predictions (int64 [n]) are known."""

    model: Metered
    dataset: Dataset
    predictions: Tensor
    device: torch.device


def pixels_fit(
    model: Metered, dataset: Dataset, predictions: Tensor, images: ClassifiedImages, device: torch.device
) -> Diagnostic:
    """Check the range of the pixels, the normalization inside the model, and tags of pictures that are ignored.

    predictions: int64 [n], of the first n samples. images: some of them.
    """
    inputs = _Inputs(model, dataset, predictions, device)
    advice = [_too_dark(dataset, images.images), _normalized_twice(inputs, images), *_ignored_traits(inputs)]
    sentences = "; ".join(each for each in advice if each)
    return Diagnostic(
        slug=PIXELS,
        status="warn" if sentences else "pass",
        value=f"brightest {float(images.images.max()):.3g}",
        n=len(images.labels),
        advice=sentences,
    )


def _too_dark(dataset: Dataset, images: Tensor) -> str:
    brightest = float(images.max())
    if brightest > DARK:
        return ""
    levels = max(1, round(brightest * 255))
    stored_as_floats = dataset.raw_range[1] <= DARK
    cure = (
        "if they were divided by 255 twice, multiply them by 255"
        if stored_as_floats
        else f"if the stored values go from 0 to {levels}, store them divided by {levels}, as floats in [0, 1]"
    )
    return f"the brightest pixel of {len(images)} images is {brightest:.2g}, nearly black: {cure}"


def _normalized_twice(inputs: _Inputs, images: ClassifiedImages) -> str:
    """A model that scales what the classifier has normalized already, unless it is better with both."""
    classifier = inputs.model.model
    owner, without = normalized_part(classifier), renormalized(classifier, images.images, "none")
    if owner is None or owner.mean is None or owner.std is None or without is None:
        return ""
    image = images.images[:1].to(inputs.device)
    scaling = own_scaling(inputs.model, image, (image - owner.mean) / owner.std)
    if not scaling:
        return ""
    right = correct_as(inputs.model, images, without.view, inputs.device)
    won, lost = (right & ~images.correct).sum(), (images.correct & ~right).sum()
    if mcnemar(int(lost), int(won)) < ALPHA:
        return ""
    return (
        f"the model scales its input itself ({scaling}), after --normalize has: without --normalize it is correct on "
        f"{int(right.sum())} of {len(right)} images instead of {int(images.correct.sum())}"
    )


# Tags of pictures.


def _ignored_traits(inputs: _Inputs) -> list[str]:
    """A sentence for each trait of pictures that explains the model's errors."""
    dataset = inputs.dataset
    if not isinstance(dataset, FolderDataset):
        return []
    n = len(inputs.predictions)
    positions = torch.arange(n)[:: -(-n // MOST_HEADERS)]
    correct = inputs.predictions[positions] == dataset.labels[positions]
    if correct.all():
        return []
    sentences = []
    for trait, tagged in dataset.traits(positions).items():
        if not tagged.any():
            continue
        told = _explained(inputs, dataset, trait, positions[tagged]) or _fewer_correct(tagged, correct)
        if told:
            sentences.append(f"{int(tagged.sum())} of {len(tagged)} pictures have {_IGNORED[trait]}: {told}")
    return sentences


def _explained(inputs: _Inputs, dataset: FolderDataset, trait: Trait, tagged: Tensor) -> str:
    """Whether pictures with the trait are classified better when it is respected. tagged: their positions."""
    tagged = tagged[:: -(-len(tagged) // MOST_REREAD)]
    labels, predictions = dataset.labels[tagged], inputs.predictions[tagged]
    for reading, words in _READINGS[trait].items():
        try:
            images = ClassifiedImages(dataset.images_as(tagged, reading), labels, predictions)
        except UserError:  # turned, it has another size
            continue
        right = correct_as(inputs.model, images, lambda part: part, inputs.device)
        if is_better(right, images.correct, len(_READINGS[trait])):
            return (
                f"{words} the model is correct on {int(right.sum())} of {len(right)} instead of "
                f"{int(images.correct.sum())}, so save them that way"
            )
    return ""


def _fewer_correct(tagged: Tensor, correct: Tensor) -> str:
    """Whether pictures with the trait are classified worse than the others (Fisher's exact test). Bool [n] each."""
    table = [[int((group & right).sum()) for right in (correct, ~correct)] for group in (tagged, ~tagged)]
    if scipy.stats.fisher_exact(table, alternative="less").pvalue >= ALPHA:
        return ""
    (few, wrong), (many, others) = table
    return f"the model is correct on {few} of {few + wrong} of them and on {many} of {many + others} others"
