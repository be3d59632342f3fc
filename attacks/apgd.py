"""APGD, the paper by Croce and Hein (ICML 2020).

"Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks".
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_local.attacks.attack import (
    ATTACKS,
    Model,
    Rows,
    State,
    initial_state,
    keep_best,
    require_counts,
    require_inset,
    value_and_grad,
)
from robustbench_local.attacks.function_form import attack_function
from robustbench_local.attacks.losses import LOSSES
from robustbench_local.attacks.norms import expand_rows, nonzero
from robustbench_local.attacks.pgd import projected_step
from robustbench_local.attacks.threat_model import ThreatModel

MOMENTUM, ENOUGH = 0.75, 0.75
"""The paper's alpha, and its rho: the fraction of steps since the last checkpoint that must have raised the loss."""


@functools.cache
def checkpoints(steps: int) -> frozenset[int]:
    """The steps after which the step size may be halved: at 22 %, then at intervals that shrink to 6 % of all steps."""
    percent, length = [22], 22
    while percent[-1] + length <= 100:
        length = max(length - 3, 6)
        percent.append(percent[-1] + length)
    return frozenset(-(-place * steps // 100) for place in percent if place <= 100)


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class APGD:
    """PGD with momentum whose step size, initially 2 · eps, is halved when the loss stops rising.

    After halving, the search continues from the point with the highest loss.

    steps: gradients per run. restarts: independent runs with a random start. loss: a name in `losses.LOSSES`; values of
    scaled-ce are hard to compare between steps, so with it the halving works less well. targets: number of wrong
    classes to target, one per run; `loss=dlr,targets=9` is the paper's APGD-T. inset: as for `PGD`.
    """

    name: ClassVar[str] = "apgd"
    steps: int = 100
    restarts: int = 1
    loss: str = "ce"
    targets: int = 0
    inset: float = field(default=0.0, metadata={"since": 2})

    def __post_init__(self) -> None:
        require_counts(self)
        if self.loss not in LOSSES:
            raise ValueError(f"unknown loss {self.loss!r}: choose one of {', '.join(LOSSES)}")
        require_inset(self.inset)

    def start(self, threat_model: ThreatModel, rows: Rows) -> State:
        images, labels, keys, _ = rows
        noise = threat_model.geometry.random_start(images, threat_model.eps, keys)
        # As in the authors' code, every start is on the surface of the ball.
        noise = noise * expand_rows(
            threat_model.eps / nonzero(threat_model.geometry.distance(noise), noise.dtype), noise
        )
        points = threat_model.project(images + noise, images)
        lowest = images.new_full((len(images),), float("-inf"))
        return {
            **initial_state(rows, points),
            "before": points,
            "step_size": torch.full_like(lowest, 2 * threat_model.eps),
            "loss": lowest,
            "top_loss": lowest,
            "top_points": points,
            "top_gradient": torch.zeros_like(images),
            "rises": torch.zeros_like(lowest),
            "since": torch.zeros_like(lowest),
            "halved": torch.ones_like(labels, dtype=torch.bool),
            "top_at_checkpoint": lowest,
        }

    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State:
        state = {**state, "points": threat_model.move_inside(state["points"], state["images"], self.inset)}
        margin, loss, gradient = value_and_grad(model, threat_model, self.loss, state, aimed=self.targets > 0)
        state = keep_best(state, margin)
        loss = loss.to(state["loss"].dtype)
        higher = loss > state["top_loss"]
        wide, counts = expand_rows(higher, gradient), state["step"] > 0
        state = {
            **state,
            "rises": state["rises"] + ((loss > state["loss"]) & counts),
            "since": state["since"] + counts,
            "loss": loss,
            "top_loss": torch.where(higher, loss, state["top_loss"]),
            "top_points": torch.where(wide, state["points"], state["top_points"]),
            "top_gradient": torch.where(wide, gradient, state["top_gradient"]),
        }
        points, gradient, state = self._halve(state, gradient)
        next_points = projected_step(points, gradient, state["step_size"], state["images"], threat_model)
        # The first step has no previous direction.
        keep = expand_rows(torch.where(state["step"] > 0, 1 - MOMENTUM, 0.0).to(points.dtype), points)
        next_points = points + (1 - keep) * (next_points - points) + keep * (points - state["before"])
        return {
            **state,
            "before": points,
            "points": threat_model.project(next_points, state["images"]),
            "step": state["step"] + 1,
        }

    def _halve(self, state: State, gradient: Tensor) -> tuple[Tensor, Tensor, State]:
        """Halve the step size at a checkpoint if the loss rose too rarely, or is no higher than at the last one."""
        due = torch.stack([state["step"] == mark for mark in checkpoints(self.steps)]).any(0)
        seldom = state["rises"] < ENOUGH * state["since"]
        stuck = ~state["halved"] & (state["top_loss"] <= state["top_at_checkpoint"])
        half = due & (seldom | stuck)
        back = expand_rows(half, gradient)
        points = torch.where(back, state["top_points"], state["points"])
        gradient = torch.where(back, state["top_gradient"], gradient)
        return (
            points,
            gradient,
            {
                **state,
                "step_size": torch.where(half, state["step_size"] / 2, state["step_size"]),
                "halved": torch.where(due, half, state["halved"]),
                "top_at_checkpoint": torch.where(due, state["top_loss"], state["top_at_checkpoint"]),
                "rises": torch.where(due, 0, state["rises"]),
                "since": torch.where(due, 0, state["since"]),
            },
        )


apgd = attack_function(APGD)
