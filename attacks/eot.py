"""EOT: Athalye, Engstrom, Ilyas and Kwok, "Synthesizing robust adversarial examples" (ICML 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from robustbench_local.attacks.attack import ATTACKS, Model, State, ValueAndGrad
from robustbench_local.attacks.function_form import attack_function
from robustbench_local.attacks.pgd import PGD
from robustbench_local.attacks.randomness import fold_in
from robustbench_local.attacks.threat_model import ThreatModel


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class EOT(PGD):
    """PGD along the mean gradient of several draws, for random models and for models with shattered gradients.

    draws: gradients averaged in each step. radius: distance of the draws from the point, as a fraction of eps. Use 0
    for a random model, whose draws differ by themselves, and more for a model whose gradient changes from point to
    point without a trend. The margin of a point is the mean over the draws; with a radius, the margin at the point
    itself. The other settings are PGD's.
    """

    name: ClassVar[str] = "eot"
    steps: int = 50
    loss: str = "scaled-ce"
    schedule: str = "cosine"
    momentum: float = 0.25
    draws: int = 20
    radius: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}, but must be at least 1")
        if not 0 <= self.radius <= 1:
            raise ValueError(f"radius is {self.radius}, but must be between 0 and 1, as a fraction of eps")

    def _evaluate(self, model: Model, threat_model: ThreatModel, state: State) -> ValueAndGrad:
        evaluate = super()._evaluate
        draws = [evaluate(model, threat_model, self._draw(threat_model, state, draw)) for draw in range(self.draws)]
        margin, loss, gradient = (torch.stack(parts).mean(0) for parts in zip(*draws, strict=True))
        return ValueAndGrad(draws[0].margin if self.radius else margin, loss, gradient)

    def _draw(self, threat_model: ThreatModel, state: State, draw: int) -> State:
        """The state with the points of one draw: draw 0 is at the points themselves, the others are around them."""
        if not self.radius or not draw:
            return state
        keys = fold_in(fold_in(state["keys"], state["step"]), torch.full_like(state["step"], draw))
        box = threat_model.inner_box(self.inset)
        noise = threat_model.geometry.random_start(state["images"], self.radius * threat_model.eps, keys)
        return {**state, "points": (state["points"] + noise.to(state["points"].dtype)).clamp(*box)}


eot = attack_function(EOT)
