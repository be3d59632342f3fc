"""Before the first check: which of several tensors that a model returns are its logits."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from robustbench_local.data.dataset import Dataset
from robustbench_local.errors import UserError
from robustbench_local.models.classifier import Classifier
from robustbench_local.models.metered import Metered
from robustbench_local.models.outputs import LOGITS
from robustbench_local.results.checks import OUTPUT
from robustbench_local.results.schema import Diagnostic
from robustbench_local.statistics.intervals import exact_bounds, mcnemar

MOST_CANDIDATES = 8
"""Tensors that are compared; models that return more name their logits."""
ALPHA = 0.01


@torch.no_grad()
def choose_output(model: Metered, images: Tensor, labels: Tensor, dataset: Dataset) -> Diagnostic | None:
    """Set the classifier's `output` where the model returns several tensors, by what explains the labels.

    A tensor with one column per class of the dataset comes first, then the one that is right on the most images; the
    conventional one wins a tie. images: float [rows, ...], labels: int64 [rows], a few of the dataset's. Returns None
    where there is no choice. Raises UserError where no tensor can be the logits of these labels.
    """
    with contextlib.suppress(UserError):  # the preflight says what is wrong
        model(images[:2])
    owner = next((part for part in model.modules() if isinstance(part, Classifier) and part.candidates), None)
    if owner is None or owner.candidates == (LOGITS,):
        return None
    outputs = {key: _logits(model, owner, key, images) for key in owner.candidates[:MOST_CANDIDATES]}
    owner.output = _choice(outputs, labels, dataset, model.model)
    if owner.candidates == (owner.convention,):
        return None
    return _finding(owner.output, owner.convention, outputs, labels)


def _logits(model: Metered, owner: Classifier, key: str, images: Tensor) -> Tensor:
    owner.output = key
    logits: Tensor = model(images)
    return logits


def _choice(outputs: dict[str, Tensor], labels: Tensor, dataset: Dataset, classifier: Classifier) -> str:
    names = classifier.class_names or dataset.class_names
    needed = int(dataset.labels.max()) + 1
    classes = max(needed, len(names or ()))
    right = {
        key: logits.argmax(1) == labels
        for key, logits in outputs.items()
        if len(logits) == len(labels) and logits.shape[1] >= needed
    }
    if not right:
        raise _nothing_fits(outputs, dataset, f"has fewer than {needed} columns")
    best = max(right, key=lambda key: (int(right[key].sum()), not _are_probabilities(outputs[key])))
    exact = [key for key in right if outputs[key].shape[1] == classes]
    if exact:
        best_exact = max(exact, key=lambda key: (int(right[key].sum()), not _are_probabilities(outputs[key])))
        lost, gained = right[best] & ~right[best_exact], right[best_exact] & ~right[best]
        return best if mcnemar(int(lost.sum()), int(gained.sum())) < ALPHA else best_exact
    guessed = 1 / outputs[best].shape[1]
    if exact_bounds(int(right[best].sum()), len(labels), ALPHA)[0] <= guessed and len(outputs) > 1:
        raise _nothing_fits(outputs, dataset, "explains the labels")
    return best


def _are_probabilities(logits: Tensor) -> bool:
    return bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all())


def _nothing_fits(outputs: dict[str, Tensor], dataset: Dataset, problem: str) -> UserError:
    what = f"each {problem}" if problem.startswith("has") else f"none {problem}"
    return UserError(
        f"the model returns {_listed(outputs)}, and {what} of {dataset.name}: let forward return the logits alone",
        slug="no-output-fits-labels",
    )


def _listed(outputs: dict[str, Tensor]) -> str:
    return ", ".join(f"{key!r} (N×{logits.shape[1]})" for key, logits in outputs.items())


def _finding(chosen: str, conventional: str, outputs: dict[str, Tensor], labels: Tensor) -> Diagnostic:
    """A choice against the convention, between tensors that can all be logits, is a warning: few labels decided it."""
    right = {key: int((logits.argmax(1) == labels).sum()) for key, logits in outputs.items()}
    n = len(labels)
    others = "".join(f", {key!r} on {count}" for key, count in right.items() if key != chosen)
    return Diagnostic(
        slug=OUTPUT,
        status="pass" if chosen == conventional or len(outputs) == 1 else "warn",
        value=chosen,
        n=n,
        advice=f"of what the model returns, {_listed(outputs)} can be logits: {chosen!r} is taken, which is right on "
        f"{right[chosen]} of {n} images{others}; let forward return the logits alone",
    )
