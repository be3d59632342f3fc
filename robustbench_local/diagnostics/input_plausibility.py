"""After the clean pass: whether the model gets labels and pixels in the form that it was trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_local.data.class_directories import ClassDirectories
from robustbench_local.data.dataset import Dataset
from robustbench_local.data.picture_files import LeftOut
from robustbench_local.diagnostics.input_form import pixels_fit
from robustbench_local.diagnostics.label_order import other_labels
from robustbench_local.diagnostics.pixel_readings import ClassifiedImages, other_pixels, without_normalization
from robustbench_local.models.metered import Metered
from robustbench_local.results.checks import CLASS_DIRECTORIES, CLEAN_ACCURACY, PICTURES
from robustbench_local.results.schema import Diagnostic
from robustbench_local.statistics.intervals import exact_bounds

LOW = 0.9
"""The accuracy up to which other readings of the pixels are tried."""


def check_inputs(
    model: Metered, dataset: Dataset, predictions: Tensor, classes: int, device: torch.device
) -> list[Diagnostic]:
    """Check labels, pixels and pictures against what the model predicts.

    predictions: int64 [n], of the first n samples. The dataset may hold more.
    """
    labels = dataset.labels[: len(predictions)]
    images = ClassifiedImages.sample(dataset, predictions)
    right = predictions == labels
    if float(right.float().mean()) <= LOW:
        pixels = other_pixels(model, images, len(labels), device)
    else:
        pixels = without_normalization(model, dataset, predictions, device)
    findings = [
        _accuracy_is_plausible(other_labels(predictions, labels, classes), pixels, right, classes),
        pixels_fit(model, dataset, predictions, images, device),
    ]
    if dataset.directories is not None:
        findings.append(_directories_fit(dataset.directories, predictions, labels, classes))
    if dataset.left_out is not None:
        findings.append(_all_pictures_read(dataset.left_out))
    return findings


def _accuracy_is_plausible(
    labels: tuple[float, str], pixels: tuple[float, str], right: Tensor, classes: int
) -> Diagnostic:
    """Check that the accuracy beats guessing, and that other labels or another reading of the pixels are no better.

    labels and pixels: what they make correct and the advice. right: bool [n], which images are correct now.
    """
    n, correct = len(right), int(right.sum())
    advice = max(pixels, labels, key=lambda suggestion: suggestion[0])[1]
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


def _directories_fit(directories: ClassDirectories, predictions: Tensor, labels: Tensor, classes: int) -> Diagnostic:
    """Check that there is a class directory for every output of the model.

    A few missing ones are more likely lost than left out on purpose. Labels that only count the directories are
    doubtful where any is missing, unless the model agrees with every one of them.
    """
    count, advice, doubtful = len(directories.names), directories.text, False
    missing = sorted(set(range(classes)) - set(directories.labels))
    if directories.numbering == "order" and missing:
        doubtful = any(bool((predictions[labels == label] == label).float().mean() < 0.5) for label in labels.unique())
        advice = (
            f"there are {count} class directories, but the model has {classes} outputs: labels count the directories "
            f"({directories.names[0]} is 0, {directories.names[-1]} is {count - 1}), so one that is missing changes "
            "those after it; name them by the numbers of the model's classes"
        )
    elif 0 < len(missing) <= max(1, classes // 10):
        doubtful = True
        listed = ", ".join(map(str, missing[:8])) + " …" * (len(missing) > 8)
        lacking = f"of the model's {classes} classes, {listed} ha{'s' if len(missing) == 1 else 've'} no directory"
        advice = f"{advice}; {lacking}" if advice else lacking
    return Diagnostic(
        slug=CLASS_DIRECTORIES,
        status="warn" if doubtful else "pass",
        value=float(count),
        threshold=float(classes),
        n=len(labels),
        advice=advice,
    )


def _all_pictures_read(left_out: LeftOut) -> Diagnostic:
    """Pictures beside the class directories have no label, so they are mentioned and are no warning."""
    return Diagnostic(
        slug=PICTURES,
        status="warn" if left_out.labeled else "pass",
        value=float(sum(left_out.kinds.values())),
        threshold=0.0,
        n=left_out.read,
        advice=left_out.text + (": convert them to a format that is read, such as PNG" if left_out.labeled else ""),
    )
