"""Random noise, the baseline of Carlini et al., "On evaluating adversarial robustness" (arXiv:1902.06705)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_local.attacks.attack import ATTACKS, Model, Rows, State, initial_state, keep_best, require_counts
from robustbench_local.attacks.function_form import attack_function
from robustbench_local.attacks.norms import expand_rows
from robustbench_local.attacks.randomness import fold_in
from robustbench_local.attacks.threat_model import ThreatModel


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class Noise:
    """Independent random points of the ball, one per step: alternately uniform, and on the surface.

    No attack should be weaker. steps: points per run, each for one forward pass. restarts: number of runs.
    """

    name: ClassVar[str] = "noise"
    targets: ClassVar[int] = 0
    steps: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        require_counts(self)

    def start(self, threat_model: ThreatModel, rows: Rows) -> State:
        state = initial_state(rows, rows.images)
        return {**state, "points": self._random_points(threat_model, state)}

    @torch.no_grad()
    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State:
        state = keep_best(state, threat_model.margin(model(state["points"]), state["labels"]))
        state = {**state, "step": state["step"] + 1}
        return {**state, "points": self._random_points(threat_model, state)}

    def _random_points(self, threat_model: ThreatModel, state: State) -> Tensor:
        images, keys = state["images"], fold_in(state["keys"], state["step"])
        noise = threat_model.geometry.random_start(images, threat_model.eps, keys).to(images.dtype)
        length = torch.full_like(state["best_margin"], threat_model.eps)
        on_surface = threat_model.geometry.steepest(noise, images, length, threat_model.box)
        noise = torch.where(expand_rows(state["step"] % 2 == 1, noise), on_surface, noise)
        return threat_model.project(images + noise, images)


noise = attack_function(Noise)
