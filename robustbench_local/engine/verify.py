"""Whether an attack succeeded: the unmodified float32 model decides, and the point must be in the ball and the box."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_local.attacks.norms import NORMS, expand_rows, to_float64
from robustbench_local.engine.batch import ActiveRows, RunContext

ROUNDING = 1e-6
"""How far outside the ball a point may be, in pixel units: the rounding error of float32 sums."""


@dataclass(frozen=True)
class Verification:
    """What the untouched float32 model says about one point of every row, all on the host, [rows].

    success: misclassified, inside ball and box. refuted: the attack claimed a success and was wrong. margin: of this
    point. smallest_margin: the smallest that can be trusted, infinite where none can. outside: the point left the ball
    or the box, or is not finite. nan_logits: the model answered with NaN. distance: by norm, from the image.
    """

    success: Tensor
    refuted: Tensor
    outside: Tensor
    margin: Tensor
    smallest_margin: Tensor
    prediction: Tensor
    nan_logits: Tensor
    distance: dict[str, Tensor]

    def take(self, rows: Tensor) -> Verification:
        """Some of the rows. rows: bool [rows]."""
        tensors = {
            field.name: getattr(self, field.name)[rows]
            for field in dataclasses.fields(self)
            if field.name != "distance"
        }
        return Verification(**tensors, distance={name: value[rows] for name, value in self.distance.items()})


@torch.no_grad()
def verify(context: RunContext, batch: ActiveRows) -> Verification:
    """Check one point of every row: the best one where the attack claims a success, else the one it ended at.

    Every row costs one forward pass, which is counted.
    """
    state, threat_model = batch.state, context.threat_model
    images, claimed = state["images"], state["best_margin"] < 0
    points = torch.where(expand_rows(claimed, images), state["best_points"], state["points"])
    finite = points.isfinite().flatten(1).all(1)
    points = torch.where(expand_rows(finite, images), points, images)
    logits = context.logits(points)
    batch.host["forward"] += 1
    margins = threat_model.margin(logits, state["labels"])
    distance = {name: norm.distance(to_float64(points) - to_float64(images)) for name, norm in NORMS.items()}
    low, high = threat_model.box
    inside = finite & (distance[threat_model.norm] <= threat_model.eps + ROUNDING)
    inside &= ((points >= low) & (points <= high)).flatten(1).all(1)
    success = (margins < 0) & inside
    # A claimed point's margin is what the untouched model says, nothing else.
    smallest = torch.where(claimed, margins, torch.minimum(margins, state["best_margin"].to(margins.dtype)))
    smallest = torch.where(inside, smallest, torch.inf)
    return Verification(
        success=success.cpu(),
        refuted=(claimed & ~success).cpu(),
        outside=(~inside).cpu(),
        margin=margins.cpu(),
        smallest_margin=smallest.cpu(),
        prediction=logits.argmax(1).cpu(),
        nan_logits=(logits.isnan().any(1) & finite).cpu(),
        distance={name: length.cpu() for name, length in distance.items()},
    )
