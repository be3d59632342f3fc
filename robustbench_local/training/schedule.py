"""The learning-rate schedule of a recipe."""

from __future__ import annotations

import math

import torch

from robustbench_local.training.recipe import Recipe


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule over `steps` steps, one step a batch; the recipe's `lr` is its maximum.

    onecycle: rises from lr / 25 over the first 30 % of the steps, then falls to nearly 0 (Smith and Topin, 2018).
    cosine: falls to 0 along half a cosine. piecewise: a tenth after half of the steps, a hundredth after three
    quarters. constant: stays. All but onecycle rise linearly during the recipe's `warmup`, a share of all steps.
    """
    if recipe.schedule == "onecycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=steps, cycle_momentum=False)
    warmup_steps = recipe.warmup * steps

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / (warmup_steps + 1)) * decay(recipe.schedule, step / steps)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def decay(schedule: str, progress: float) -> float:
    """The learning rate as a share of its maximum, without warm-up. progress: the share of all steps done, in [0, 1].

    Raises ValueError for a schedule that has no such form.
    """
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if schedule == "piecewise":
        return float(0.1 ** ((progress >= 0.5) + (progress >= 0.75)))
    if schedule == "constant":
        return 1.0
    raise ValueError(f"there is no decay of the schedule {schedule!r}: use cosine, piecewise or constant")
