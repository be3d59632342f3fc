"""Quantized PGD: Bonnet, Furon and Bas, "What if adversarial samples were digital images?" (IH&MMSec 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from robustbench_local.attacks.attack import ATTACKS, Model, State, ValueAndGrad
from robustbench_local.attacks.function_form import attack_function
from robustbench_local.attacks.norms import expand_rows
from robustbench_local.attacks.pgd import PGD
from robustbench_local.attacks.threat_model import ThreatModel


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class Quantized(PGD):
    """PGD whose model sees every point moved to whole gray levels, as `ThreatModel.to_gray_levels` defines it.

    The gradient there is that of the point itself: the backward pass is straight-through (Bengio et al.,
    arXiv:1308.3432), so steps smaller than a gray level add up. The settings are PGD's; an inset costs pixels at the
    edge of the box up to a gray level.
    """

    name: ClassVar[str] = "quantized"
    steps: int = 100
    loss: str = "margin"
    schedule: str = "cosine"
    momentum: float = 0.25

    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State:
        images = state["images"]
        points = threat_model.move_inside(state["points"], images, self.inset)
        seen = threat_model.to_gray_levels(points, images)
        after = super().step(model, threat_model, state)
        better = expand_rows(after["best_margin"] < state["best_margin"], seen)
        # The caller evaluates the last point as it is, and no step follows.
        last = expand_rows(after["step"] >= self.steps, seen)
        return {
            **after,
            "best_points": torch.where(better, seen, state["best_points"]),
            "points": torch.where(last, threat_model.to_gray_levels(after["points"], images), after["points"]),
        }

    def _evaluate(self, model: Model, threat_model: ThreatModel, state: State) -> ValueAndGrad:
        seen = threat_model.to_gray_levels(state["points"], state["images"])
        return super()._evaluate(model, threat_model, {**state, "points": seen})


quantized = attack_function(Quantized)
