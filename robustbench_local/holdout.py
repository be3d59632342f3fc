"""The part of the training split that training never sees: it alone says which epoch's weights are kept."""
from __future__ import annotations

import torch
from torch import Tensor

from robustbench_local.data import stratified_subset
from robustbench_local.errors import UserError


def cut_holdout(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted positions to train on and to hold out, int64, disjoint and together all; classes keep their shares.

    labels: int64 [N] of the training split. Raises UserError where either part would be empty.
    """
    held = round(share * len(labels))
    if not 0 < held < len(labels):
        raise UserError(
            f"{len(labels)} training images cannot be cut into a part to train on and a hold-out of {share:g}: "
            "give more images"
        )
    holdout = stratified_subset(labels, held, seed)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[holdout] = False
    return rest.nonzero().flatten(), holdout
