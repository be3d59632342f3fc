"""After the clean pass: whether the model gets labels and pixels in the form that it was trained on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from robustbench_local.data.dataset import Dataset
from robustbench_local.diagnostics.preflight import PROBE_IMAGES, probe_images
from robustbench_local.models.metered import Metered
from robustbench_local.models.normalization import parse_normalization
from robustbench_local.results.checks import CLEAN_ACCURACY
from robustbench_local.results.schema import Diagnostic
from robustbench_local.statistics.intervals import exact_bounds

MOST_TRIED = 128
"""Images on which other readings of the pixels are tried."""
GAIN = 0.05
"""The share of images by which another reading must be better, beyond chance, to be suggested."""
View = Callable[[Tensor], Tensor]


def accuracy_is_plausible(
    model: Metered, dataset: Dataset, predictions: Tensor, classes: int, device: torch.device
) -> Diagnostic:
    """Check that the accuracy beats guessing, and that other labels or another reading of the pixels are no better.

    predictions: int64 [n], of the first n samples. The dataset may hold more.
    """
    labels = dataset.labels[: len(predictions)]
    n, correct = len(predictions), int((predictions == labels).sum())
    advice = ""
    if correct / n <= 0.9:
        suggestions = [_other_labels(predictions, labels, classes), _other_pixels(model, dataset, predictions, device)]
        advice = max(suggestions)[1]
    if not advice and correct < n and exact_bounds(correct, n)[0] <= 1 / classes:
        advice = "no better than guessing: check the order of labels and channels, the normalization and the weights"
    return Diagnostic(
        slug=CLEAN_ACCURACY,
        status="warn" if advice else "pass",
        value=correct / n,
        threshold=1 / classes,
        n=n,
        advice=advice,
    )


def _clearly_more(best: int, current: int, n: int) -> bool:
    return best - current > GAIN * n and exact_bounds(best, n, 0.001)[0] > current / n


def _other_labels(predictions: Tensor, labels: Tensor, classes: int) -> tuple[float, str]:
    """Suggest the one-to-one renumbering of the labels that makes clearly more predictions correct.

    Returns the share of images that it makes correct, and the advice; (0, "") where there is none. The renumbering is
    the best of very many, so it has to explain most of the predictions.
    """
    counts = torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    best, current, n = int(counts[rows, columns].sum()), int(counts.diagonal().sum()), len(labels)
    if best < 0.5 * n or best < 2 * current or not _clearly_more(best, current, n):
        return 0.0, ""
    changes = [
        f"{old}→{new}"
        for old, new in zip(rows.tolist(), columns.tolist(), strict=True)
        if old != new and counts[old].sum()
    ]
    return best / n, (
        f"with the classes in another order the model is correct on {best} of {n} images instead of {current} "
        f"(label→model's class: {', '.join(changes[:12])}{' …' if len(changes) > 12 else ''}): renumber the labels, or "
        "name the classes"
    )


@torch.no_grad()
def _other_pixels(model: Metered, dataset: Dataset, predictions: Tensor, device: torch.device) -> tuple[float, str]:
    """Suggest a normalization, channel order or layout that makes clearly more predictions correct.

    Returns the share of images that it makes correct, and the advice; (0, "") where there is none.
    """
    positions = probe_images(dataset, MOST_TRIED)
    positions = positions[positions < len(predictions)]
    images, labels = dataset.images(positions), dataset.labels[positions]
    current, advice = int((predictions[positions] == labels).sum()), {}
    for words, view in _readings(model, images, device).items():
        batches = [model(view(part.to(device))).argmax(1).cpu() for part in images.split(PROBE_IMAGES)]
        advice[int((torch.cat(batches) == labels).sum())] = words
    best, n = max(advice), len(positions)
    if not _clearly_more(best, current, n):
        return 0.0, ""
    return best / n, f"{advice[best]} the model is correct on {best} of {n} images instead of {current}"


def _readings(model: Metered, images: Tensor, device: torch.device) -> dict[str, View]:
    """Other readings of the pixels, each with the beginning of its advice."""
    readings: dict[str, View] = {"the images may be negatives: as 1 - pixel": lambda part: 1 - part}
    if images.shape[2] == images.shape[3]:
        readings["rows and columns of the images may be exchanged: transposed"] = lambda part: part.transpose(2, 3)
    if images.shape[1] == 3:
        readings["the channels may be in reverse order (BGR for RGB): reversed"] = lambda part: part.flip(1)
    if model.model.normalization is not None:
        return readings

    def normalized(mean: Tensor, std: Tensor) -> View:
        return lambda part: (part - mean) / std

    for name in ("imagenet", "cifar10", "0.5:0.5"):
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in parse_normalization(name) or ())
        if len(mean) in (1, images.shape[1]):
            readings[f"the model seems to expect normalized input: with --normalize {name}"] = normalized(mean, std)
    return readings
