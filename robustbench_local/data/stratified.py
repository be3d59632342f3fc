"""A seeded subset with the class proportions of the whole set, the same on every machine and version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from robustbench_local.errors import UserError

if TYPE_CHECKING:
    import torch

# Separates the random numbers for classes from those for samples under one seed.
_CLASS_STREAM = 0x636C6173736573


def stratified_subset(labels: torch.Tensor, samples: int, seed: int) -> torch.Tensor:
    """Sorted positions, int64 [samples], of a subset whose classes keep their share of `labels` (int64 [N]).

    Each class gets its exact share rounded down; the rest goes to the largest remainders. Within a class the samples
    with the smallest hash of (seed, position) are chosen. No random generator is involved, so the choice depends on
    neither library versions nor the platform. Raises UserError unless 1 <= samples <= N.
    """
    import torch

    total = len(labels)
    if samples < 1:
        raise UserError(
            f"a subset of {samples} samples is not possible: give a whole number of at least 1 with --samples",
            slug="samples-below-one",
        )
    if samples > total:
        raise UserError(
            f"a subset of {samples:,} samples is not possible, because the dataset has {total:,}: give a smaller "
            "--samples, or leave it out to use all",
            slug="samples-exceed-dataset",
        )
    targets = labels.cpu().numpy()
    classes, counts = np.unique(targets, return_counts=True)
    quotas = _largest_remainder(classes, counts, samples, seed)
    priorities = _hashes(seed, np.arange(total, dtype=np.uint64))
    parts = []
    for label, quota in zip(classes, quotas, strict=True):
        members = np.flatnonzero(targets == label)
        parts.append(members[np.argsort(priorities[members], kind="stable")[:quota]])
    return torch.from_numpy(np.sort(np.concatenate(parts)).astype(np.int64))


def _largest_remainder(classes: np.ndarray, counts: np.ndarray, samples: int, seed: int) -> list[int]:
    """How many samples each class gets. Integers throughout, so that rounding cannot differ between machines."""
    total = int(counts.sum())
    quotas = [samples * int(count) // total for count in counts]
    remainders = [samples * int(count) % total for count in counts]
    # Balanced classes tie; the seed breaks the tie, or small subsets would always favor the first classes.
    ties = _hashes(int(seed) ^ _CLASS_STREAM, classes.astype(np.uint64))
    order = sorted(range(len(counts)), key=lambda i: (-remainders[i], int(ties[i])))
    for i in order[: samples - sum(quotas)]:
        quotas[i] += 1
    return quotas


def _hashes(seed: int, numbers: np.ndarray) -> np.ndarray:
    """One uniformly distributed uint64 per number. Different numbers have different hashes under one seed."""
    import torch

    from robustbench_local.attacks.randomness import hash_indices

    return hash_indices(int(seed), torch.from_numpy(numbers.astype(np.int64))).numpy().view(np.uint64)
