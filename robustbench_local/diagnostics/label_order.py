"""Whether a model's mistakes say that labels were exchanged: a confusion that another numbering explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from robustbench_local.statistics.intervals import mcnemar

ALPHA = 0.01
"""How often an honest model may be suspected, multiplicity paid."""
MOST_NAMED = 12


def other_labels(predictions: Tensor, labels: Tensor, classes: int) -> tuple[float, str]:
    """Suggest the renumbering of the labels that makes significantly more predictions correct.

    predictions, labels: int64 [n]. Returns the share of images that it makes correct, and the advice; (0, "") where
    there is none. Three kinds of renumbering are tested, each with its multiplicity paid:

    - the usual mistakes: counted from 1 or from -1, sorted as text, in reverse;
    - two labels exchanged: of the images of both that are classified as either, more are classified as the other than
      chance allows (Fisher's exact test for every pair). Honest models that confuse two classes prefer the right one;
    - any other that explains most predictions, found on one half of the images and tested on the other half.

    In each, every renumbered label must be classified as its new class more often than as its own; where the new class
    has no images, as when a class is missing from the data, for most of its images.
    """
    truth, guesses = labels.numpy(), predictions.numpy()
    counts = _confusion(truth, guesses, classes)
    rows, n, current = np.arange(classes), len(truth), int(counts.trace())
    found = [_usual_renumbering(counts), _found_renumbering(truth, guesses, counts)]
    correct = [(int(counts[rows, each].sum()), each) for each in found if each is not None]
    if not correct:
        return 0.0, ""
    best, renumbering = max(correct, key=lambda each: each[0])
    changes = [(old, new) for old, new in enumerate(renumbering.tolist()) if old != new and counts[old].any()]
    listed = ", ".join(f"{old}→{new}" for old, new in changes[:MOST_NAMED]) + " …" * (len(changes) > MOST_NAMED)
    missing = [new for _, new in changes if not counts[new].any()]
    hint = f"; no image has the label {missing[0]}: is a class missing from the data?" if missing else ""
    return best / n, (
        f"with the classes in another order the model is correct on {best} of {n} images instead of {current} "
        f"(label→model's class: {listed}): renumber the labels, or name the classes{hint}"
    )


def _confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]: images of a label (rows) by prediction."""
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def _usual_renumbering(counts: np.ndarray) -> np.ndarray | None:
    """The best of the usual mistakes, if it is significantly better than the labels as they are."""
    identity = np.arange(len(counts))
    as_text = np.array(sorted(identity.tolist(), key=str))
    candidates = [np.roll(identity, 1), np.roll(identity, -1), as_text, np.argsort(as_text), identity[::-1].copy()]
    p_values = [
        len(candidates) * _paired_p_value(counts, candidate) if _prefers(counts, candidate) else 1.0
        for candidate in candidates
    ]
    best = int(np.argmin(p_values))
    return candidates[best] if p_values[best] < ALPHA else None


def _prefers(counts: np.ndarray, renumbering: np.ndarray) -> bool:
    """Whether most labels are classified as the new class more often than as their own, and more than one is."""
    rows = np.arange(len(counts))
    moved = (renumbering != rows) & counts.any(1)
    preferring = moved & (counts[rows, renumbering] > counts.diagonal())
    return bool(preferring.sum() > max(1, moved.sum() / 2))


def _paired_p_value(counts: np.ndarray, renumbering: np.ndarray) -> float:
    rows = np.arange(len(counts))
    moved = renumbering != rows
    return mcnemar(int(counts[rows, renumbering][moved].sum()), int(counts.diagonal()[moved].sum()))


def _found_renumbering(labels: np.ndarray, predictions: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    """The cycles of the best renumbering that are significant by themselves, or all of them if the whole is."""
    whole = _best_renumbering(counts)
    explains_most = 2 * counts[np.arange(len(counts)), whole].sum() > len(labels)
    cycles = [cycle for cycle in _cycles(whole) if _is_consistent(counts, cycle)]
    if not explains_most or _held_out_p_value(labels, predictions, len(counts)) >= ALPHA:
        cycles = [cycle for cycle in cycles if _cycle_p_value(counts, cycle) < ALPHA]
    renumbering = np.arange(len(counts))
    for cycle in cycles:
        renumbering[cycle] = whole[cycle]
    return renumbering if cycles else None


def _best_renumbering(counts: np.ndarray) -> np.ndarray:
    """Each label's new class, so that the most images are correct; a label stays where that is no worse."""
    prefer_identity = np.eye(len(counts)) / (2 * len(counts))
    new_classes: np.ndarray = linear_sum_assignment(counts + prefer_identity, maximize=True)[1]
    return new_classes


def _cycles(renumbering: np.ndarray) -> list[list[int]]:
    """The labels that change places with each other, each beginning with any of them."""
    cycles, left = [], {old for old, new in enumerate(renumbering.tolist()) if old != new}
    while left:
        cycle = [left.pop()]
        while (following := int(renumbering[cycle[-1]])) != cycle[0]:
            cycle.append(following)
            left.discard(following)
        cycles.append(cycle)
    return cycles


def _steps(counts: np.ndarray, cycle: Sequence[int]) -> list[tuple[int, int]]:
    """(label, new class) for every label of the cycle that has images."""
    return [(old, new) for old, new in zip(cycle, [*cycle[1:], cycle[0]], strict=True) if counts[old].any()]


def _is_consistent(counts: np.ndarray, cycle: Sequence[int]) -> bool:
    """Whether every label prefers its new class; one that has no images must win most of the label's.

    Where many classes have no images they were left out on purpose, and where most images are classified as one class,
    the model has collapsed: none is missed then.
    """
    few_missing = (~counts.any(1)).sum() <= max(1, len(counts) // 10) and 2 * counts.sum(0).max() <= counts.sum()
    for old, new in _steps(counts, cycle):
        preferred = counts[old, new] > counts[old, old]
        if not counts[new].any():
            preferred = few_missing and 2 * counts[old, new] > counts[old].sum()
        if not preferred:
            return False
    return True


def _cycle_p_value(counts: np.ndarray, cycle: Sequence[int]) -> float:
    """For two exchanged labels, or one label whose new class has no images: the p-value, multiplicity paid; else 1."""
    classes, steps = len(counts), _steps(counts, cycle)
    if len(cycle) == 2 and len(steps) == 2:
        table = counts[np.ix_(cycle, cycle)]
        return float(scipy.stats.fisher_exact(table, alternative="less").pvalue) * classes * (classes - 1) / 2
    if len(steps) == 1:
        (old, new) = steps[0]
        # At most two classes can win half of a label's images.
        candidates = min(2, int((~counts.any(1)).sum())) * classes
        return float(scipy.stats.binom.sf(counts[old, new] - 1, counts[old].sum(), 0.5)) * candidates
    return 1.0


def _held_out_p_value(labels: np.ndarray, predictions: np.ndarray, classes: int) -> float:
    """Of the renumbering found on each half of the images, tested on the other; twice the smaller one."""
    half = np.random.default_rng(0).permutation(len(labels)) % 2 == 1  # labels may alternate
    halves = [_confusion(labels[part], predictions[part], classes) for part in (half, ~half)]
    return 2 * min(_paired_p_value(halves[1 - h], _best_renumbering(halves[h])) for h in (0, 1))
