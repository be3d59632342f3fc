"""PGD: Madry et al., "Towards deep learning models resistant to adversarial attacks" (ICLR 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_local.attacks.attack import (
    ATTACKS,
    Model,
    Rows,
    State,
    ValueAndGrad,
    gradient_of,
    initial_state,
    keep_best,
    require_counts,
    require_inset,
    value_and_grad,
)
from robustbench_local.attacks.function_form import attack_function
from robustbench_local.attacks.losses import LOSSES
from robustbench_local.attacks.threat_model import ThreatModel


def projected_step(
    points: Tensor, gradient: Tensor, lengths: Tensor, images: Tensor, threat_model: ThreatModel
) -> Tensor:
    """One step of projected gradient ascent: along the norm's steepest direction, then back into ball and box.

    points, gradient: float [rows, ...]. lengths: float [rows], step sizes in pixel units. images: float like points, or
    [1, ...] for a common center; the ball is around them. Returns float like points. Where the gradient is 0, the point
    is only projected.
    """
    step = threat_model.geometry.steepest(gradient, points, lengths, threat_model.box)
    return threat_model.project(points + step, images)


def ascend(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    images: Tensor,
    threat_model: ThreatModel,
    step_sizes: Sequence[float],
) -> Tensor:
    """Projected gradient ascent along any per-sample objective: one `projected_step` for each step size.

    For losses that need more than the model's logits, such as a detector's score. An objective that is a loss of the
    logits is an attack: use `PGD`.

    objective: points float [rows, ...] -> values [rows], each of them a function of its own row alone. It is called
    exactly once a step, with gradients on, so a closure can record what it computes at every iterate. start: float
    [rows, ...] in ball and box. images: float like start, or [1, ...]. step_sizes: in pixel units.
    Returns the last point, float like start, which the objective has not evaluated yet. Raises RuntimeError in
    inference mode.
    """
    points = start
    for size in step_sizes:
        _, gradient = gradient_of(objective, points)
        lengths = torch.full((len(points),), size, device=points.device)
        points = projected_step(points, gradient, lengths, images, threat_model)
    return points


def cosine_step_sizes(first: float, steps: int) -> list[float]:
    """Step sizes that fall from `first` along half a cosine towards 0, as those of PGD's schedule "cosine" do."""
    return [first * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class PGD:
    """Projected gradient ascent: steps along the norm's steepest direction, projected into ball and box.

    steps: gradients per run. restarts: independent runs with a random start. step_size: in pixel units; by default
    2.5 · eps / steps, enough to cross the ball and come back. loss: a name in `losses.LOSSES`. random_start: start at a
    uniform point of the ball instead of the image. schedule: "constant", or "cosine" for step sizes that fall along
    half a cosine to 0, by default from 2 · eps. momentum: fraction of the previous step that is added (0.25 in APGD,
    Croce and Hein, ICML 2020). targets: number of wrong classes to target, one per run; 0 is an untargeted attack.
    inset: the model is evaluated at points moved off the edges of the box, as `ThreatModel.move_inside` defines it.
    """

    name: ClassVar[str] = "pgd"
    steps: int = 50
    restarts: int = 1
    step_size: float | None = None
    loss: str = "ce"
    random_start: bool = True
    schedule: str = "constant"
    momentum: float = 0.0
    targets: int = 0
    inset: float = field(default=0.0, metadata={"since": 2})

    def __post_init__(self) -> None:
        require_counts(self)
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"restarts is {self.restarts}, but without a random start all runs would be the same")
        if self.step_size is not None and not self.step_size >= 0:
            raise ValueError(f"step_size is {self.step_size}, but must be at least 0")
        if self.loss not in LOSSES:
            raise ValueError(f"unknown loss {self.loss!r}: choose one of {', '.join(LOSSES)}")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"unknown schedule {self.schedule!r}: choose constant or cosine")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}, but must be at least 0 and below 1")
        require_inset(self.inset)

    def start(self, threat_model: ThreatModel, rows: Rows) -> State:
        points = rows.images
        if self.random_start:
            noise = threat_model.geometry.random_start(points, threat_model.eps, rows.keys)
            points = threat_model.project(points + noise, rows.images)
        state = initial_state(rows, points)
        return {**state, "before": points} if self.momentum else state

    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State:
        points = threat_model.move_inside(state["points"], state["images"], self.inset)
        state = {**state, "points": points}
        margin, _, gradient = self._evaluate(model, threat_model, state)
        state, lengths = keep_best(state, margin), self._step_sizes(threat_model.eps, state["step"])
        next_points = projected_step(points, gradient, lengths, state["images"], threat_model)
        if self.momentum:
            with_momentum = next_points.lerp(points, self.momentum).add(points - state["before"], alpha=self.momentum)
            next_points = threat_model.project(with_momentum, state["images"])
            state = {**state, "before": points}
        return {**state, "points": next_points, "step": state["step"] + 1}

    def _evaluate(self, model: Model, threat_model: ThreatModel, state: State) -> ValueAndGrad:
        return value_and_grad(model, threat_model, self.loss, state, aimed=self.targets > 0)

    def _step_sizes(self, eps: float, step: Tensor) -> Tensor:
        """The size of every row's next step, float32 [rows]. step: int64 [rows]."""
        if self.schedule == "constant":
            size = 2.5 * eps / self.steps if self.step_size is None else self.step_size
            return torch.full(step.shape, size, device=step.device)
        size = 2 * eps if self.step_size is None else self.step_size
        return size * (1 + torch.cos(math.pi * step.float() / self.steps)) / 2


pgd = attack_function(PGD)
