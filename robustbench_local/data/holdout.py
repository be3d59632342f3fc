"""The hold-out: the part of the training split that training never sees, and that selects the best epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_local.data import stratified_subset
from robustbench_local.errors import UserError


def cut_holdout(labels: Tensor, share: float, seed: int, *, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sorted positions to train on and to hold out: int64, disjoint, together all; classes keep their shares.

    labels: int64 [N] of the training split. groups: int64 [N]; images of one group, such as the frames of one video,
    stay together, and the share is one of groups. Raises UserError where either part would be empty.
    """
    if groups is not None:
        return _cut_groups(labels, groups, share, seed)
    size = round(share * len(labels))
    if not 0 < size < len(labels):
        raise UserError(
            f"a hold-out of {share:g} of {len(labels)} training images leaves nothing to train on or nothing to hold "
            "out: give more images, or another --holdout",
            slug="holdout-empty",
        )
    holdout = stratified_subset(labels, size, seed)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[holdout] = False
    return rest.nonzero().flatten(), holdout


def _cut_groups(labels: Tensor, groups: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Cut the groups, each with the label of its first image, and return the positions of their images."""
    _, group = groups.unique(return_inverse=True)
    count = int(group.max()) + 1
    first = torch.full((count,), len(labels)).scatter_reduce(0, group, torch.arange(len(labels)), "amin")
    _, holdout = cut_holdout(labels[first], share, seed)
    in_holdout = torch.zeros(count, dtype=torch.bool)
    in_holdout[holdout] = True
    return (~in_holdout[group]).nonzero().flatten(), in_holdout[group].nonzero().flatten()
