"""After the clean pass: does this model read these images as it was trained to?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from robustbench_local.data.dataset import Dataset
from robustbench_local.diagnostics.preflight import PROBE, probe_images
from robustbench_local.models.metered import Metered
from robustbench_local.models.normalization import parse_normalization
from robustbench_local.results.checks import CLEAN_ACCURACY
from robustbench_local.results.schema import Diagnostic
from robustbench_local.statistics.intervals import exact_bounds

LOOKED_AT = 128
"""How many images other readings are tried on."""
GAIN = 0.05
"""By how much of the images another reading must be better, beyond what chance explains, to be worth a word."""
View = Callable[[Tensor], Tensor]


def accuracy_is_plausible(
    model: Metered, dataset: Dataset, predictions: Tensor, classes: int, device: torch.device
) -> Diagnostic:
    """Better than guessing, and not much better with other labels or another reading of the pixels.

    predictions: int64 [samples] on the images as they are; the data set may hold more samples than those.
    """
    labels = dataset.labels[: len(predictions)]
    n, right = len(predictions), int((predictions == labels).sum())
    advice = ""
    if right / n <= 0.9:
        explanations = [_other_labels(predictions, labels, classes), _other_pixels(model, dataset, predictions, device)]
        advice = max(explanations)[1]
    if not advice and right < n and exact_bounds(right, n)[0] <= 1 / classes:
        advice = "no better than guessing: check the order of labels and channels, the normalisation and the weights"
    return Diagnostic(
        slug=CLEAN_ACCURACY,
        status="warn" if advice else "pass",
        value=right / n,
        threshold=1 / classes,
        n=n,
        advice=advice,
    )


def _clearly_more(best: int, now: int, n: int) -> bool:
    return best - now > GAIN * n and exact_bounds(best, n, 0.001)[0] > now / n


def _other_labels(predictions: Tensor, labels: Tensor, classes: int) -> tuple[float, str]:
    """Advice to renumber the labels, where another one-to-one order of the classes is right on clearly more images, and
    on what share of them; (0, "") where none is.

    An order is chosen among very many, so it has to explain most of what the model says.
    """
    counts = torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    best, now, n = int(counts[rows, columns].sum()), int(counts.diagonal().sum()), len(labels)
    if best < 0.5 * n or best < 2 * now or not _clearly_more(best, now, n):
        return 0.0, ""
    moved = [
        f"{old}→{new}"
        for old, new in zip(rows.tolist(), columns.tolist(), strict=True)
        if old != new and counts[old].sum()
    ]
    return best / n, (
        f"with the classes in another order it is right on {best} of {n} images instead of {now} (label→model's class: "
        f"{', '.join(moved[:12])}{' …' if len(moved) > 12 else ''}): renumber the labels, or name the classes"
    )


@torch.no_grad()
def _other_pixels(model: Metered, dataset: Dataset, predictions: Tensor, device: torch.device) -> tuple[float, str]:
    """Advice on normalisation, channels or layout, where another reading is right on clearly more of some images, and
    on what share; (0, "") where none is.
    """
    positions = probe_images(dataset, LOOKED_AT)
    positions = positions[positions < len(predictions)]
    images, labels = dataset.images(positions), dataset.labels[positions]
    now, found = int((predictions[positions] == labels).sum()), {}
    for told, view in _readings(model, images, device).items():
        batches = [model(view(part.to(device))).argmax(1).cpu() for part in images.split(PROBE)]
        found[int((torch.cat(batches) == labels).sum())] = told
    best, n = max(found), len(positions)
    if not _clearly_more(best, now, n):
        return 0.0, ""
    return best / n, f"{found[best]} it is right on {best} of {n} images instead of {now}"


def _readings(model: Metered, images: Tensor, device: torch.device) -> dict[str, View]:
    """What the pixels may have been meant as, each with how to say it."""
    readings: dict[str, View] = {"the images may be negatives: as 1 - pixel": lambda part: 1 - part}
    if images.shape[2] == images.shape[3]:
        readings["rows and columns of the images may be exchanged: transposed"] = lambda part: part.transpose(2, 3)
    if images.shape[1] == 3:
        readings["the channels may be in reverse order (BGR for RGB): reversed"] = lambda part: part.flip(1)
    if model.model.normalization is not None:
        return readings

    def normalised(mean: Tensor, std: Tensor) -> View:
        return lambda part: (part - mean) / std

    for name in ("imagenet", "cifar10", "0.5:0.5"):
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in parse_normalization(name) or ())
        if len(mean) in (1, images.shape[1]):
            readings[f"the model seems to expect normalised input: with --normalize {name}"] = normalised(mean, std)
    return readings
