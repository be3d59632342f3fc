"""The part of the training split that training never sees: it alone says which epoch's weights are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_local.data import stratified_subset
from robustbench_local.errors import UserError


def cut_holdout(labels: Tensor, share: float, seed: int, *, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sorted positions to train on and to hold out, int64, disjoint and together all; classes keep their shares.

    labels: int64 [N] of the training split. groups: int64 [N]; images of one group, such as the frames of one film,
    stay together, and it is groups that are cut. Raises UserError where either part would be empty.
    """
    if groups is not None:
        return _cut_groups(labels, groups, share, seed)
    held = round(share * len(labels))
    if not 0 < held < len(labels):
        raise UserError(
            f"{len(labels)} training images cannot be cut into a part to train on and a hold-out of {share:g}: "
            "give more images, or another --holdout"
        )
    holdout = stratified_subset(labels, held, seed)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[holdout] = False
    return rest.nonzero().flatten(), holdout


def _cut_groups(labels: Tensor, groups: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The cut of the groups, each with the label of its first image, spelt out for their images."""
    _, group = groups.unique(return_inverse=True)
    count = int(group.max()) + 1
    first = torch.full((count,), len(labels)).scatter_reduce(0, group, torch.arange(len(labels)), "amin")
    _, held = cut_holdout(labels[first], share, seed)
    is_held = torch.zeros(count, dtype=torch.bool)
    is_held[held] = True
    return (~is_held[group]).nonzero().flatten(), is_held[group].nonzero().flatten()
