"""FAB: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack" (ICML 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_local.attacks.attack import (
    ATTACKS,
    Model,
    Rows,
    State,
    ValueAndGrad,
    initial_state,
    keep_best,
    require_counts,
    value_and_grad,
)
from robustbench_local.attacks.backward_errors import input_gradient
from robustbench_local.attacks.function_form import attack_function
from robustbench_local.attacks.norms import NORMS, Box, Norm, expand_rows, nonzero, to_float64
from robustbench_local.attacks.threat_model import ThreatModel

SMALLEST = 1e-12
"""Below this a pixel's share of the largest gradient is rounding."""


def _least_linf(gain: Tensor, weights: Tensor, room: Tensor) -> Tensor:
    return _rise(gain, weights, (weights > 0).to(weights.dtype), room)


def _least_l2(gain: Tensor, weights: Tensor, room: Tensor) -> Tensor:
    return _rise(gain, weights, weights, room)


def _least_l1(gain: Tensor, weights: Tensor, room: Tensor) -> Tensor:
    """The heaviest pixels first, each as far as it can go."""
    weights, order = weights.sort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    gains = weights * room
    missing = (gain[:, None] - (gains.cumsum(1) - gains)).clamp_min(0)
    moves = torch.where(weights > 0, torch.minimum(missing / nonzero(weights, weights.dtype), room), 0)
    return torch.zeros_like(moves).scatter(1, order, moves)


def _rise(gain: Tensor, weights: Tensor, speeds: Tensor, room: Tensor) -> Tensor:
    """min(level · speeds, room) with the lowest level that gives the gain, which is piecewise linear in the level."""
    stops, order = torch.where(speeds > 0, room / speeds.clamp_min(SMALLEST), 0).sort(dim=1)
    gains = (weights * room).gather(1, order)
    stopped = gains.cumsum(1) - gains  # by the pixels that have reached their room before this one
    rates = (weights * speeds).gather(1, order).flip(1).cumsum(1).flip(1)  # of this pixel and those after it
    short = stopped + stops * rates < gain[:, None]
    at = short.sum(1, keepdim=True).clamp_max(weights.shape[1] - 1)
    missing = (gain[:, None] - stopped.gather(1, at)).clamp_min(0)
    level = torch.minimum(missing / nonzero(rates.gather(1, at), rates.dtype), stops.gather(1, at))
    return torch.minimum(level * speeds, room)


LEAST: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"linf": _least_linf, "l2": _least_l2, "l1": _least_l1}
"""(gain, weights, room) -> moves: those of least norm, each between 0 and its pixel's room, with Σ weights · moves =
gain. gain: [rows]; the others: [rows, pixels], none negative, the weights at most 1. Where no moves give the gain,
every pixel that has a weight moves as far as it can."""

DUAL: dict[str, Norm] = {"linf": NORMS["l1"], "l2": NORMS["l2"], "l1": NORMS["linf"]}
"""A linear function's value divided by this length of its gradient is the distance to where it is 0."""


def to_hyperplane(norm: str, points: Tensor, values: Tensor, gradient: Tensor, box: Box) -> Tensor:
    """The shortest perturbation to where values + gradient · perturbation is 0, or, if that is outside the box, to the
    box's corner nearest to it.

    points, gradient: float [rows, ...], the points in the box. values: float [rows]. Returns float like points.
    """
    flat, places = gradient.flatten(1), points.flatten(1)
    scale = nonzero(flat.abs().amax(1), flat.dtype)
    downhill = -flat * torch.where(values < 0, -1, 1)[:, None]
    room = torch.where(downhill > 0, box[1] - places, places - box[0]).clamp_min(0)
    moves = LEAST[norm](values.abs() / scale, flat.abs() / scale[:, None], room)
    return (moves * downhill.sign()).view_as(points)


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class FAB:
    """Walks to the decision boundary wherever that is, then along it to where it comes nearest to the image.

    Each step takes the boundary for flat, moves past it and a little towards the point where it would be nearest to
    the image; from an adversarial point the walk first turns back towards the image. It may leave the ball; what counts
    is an adversarial point inside.

    steps: of each run. restarts: independent runs; a single one starts at the image, each of several at a random point
    half as far from it as the ball's edge. targets: how many wrong classes to steer to, one in each run (the paper's
    FAB-T), with one forward and one backward pass a step; with 0 each step goes to the nearest of all boundaries, with
    two forward passes and a backward pass for every wrong class. alpha_max: the most that a step may go to the image's
    nearest point instead of its own. eta: how far past the boundary a step goes, as a multiple of the way to it. beta:
    how much of the perturbation is left after turning back.
    """

    name: ClassVar[str] = "fab"
    steps: int = 100
    restarts: int = 1
    targets: int = 0
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        require_counts(self)
        if not 0 <= self.alpha_max <= 1:
            raise ValueError(f"alpha_max is {self.alpha_max}, but must be between 0 and 1")
        if not 1 <= self.eta < float("inf"):
            raise ValueError(f"eta is {self.eta}, but must be a number of at least 1")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}, but must be between 0 and 1")

    def start(self, threat_model: ThreatModel, rows: Rows) -> State:
        walk = rows.images
        if self.restarts > 1:
            noise = threat_model.geometry.random_start(walk, threat_model.eps / 2, rows.keys)
            walk = (walk + noise.to(walk.dtype)).clamp(*threat_model.box)
        state = initial_state(rows, rows.images)
        return {**state, "walk": walk, "nearest": walk, "length": torch.full_like(state["best_margin"], float("inf"))}

    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State:
        images, walk = state["images"], state["walk"]
        if self.targets or threat_model.target is not None:
            # One look serves both: it says whether to turn back, and, as the boundary is near, how it lies there too.
            seen = walk
            margin, values, slope = value_and_grad(model, threat_model, "margin", {**state, "points": seen}, aimed=True)
            state = self._note(threat_model, state, seen, margin)
            walk = self._turn_back(images, seen, margin)
        else:
            # Which boundary is nearest is not the same before and after turning back, so this needs a look of its own.
            with torch.no_grad():
                margin = threat_model.margin(model(walk.clone()), state["labels"])
            state = self._note(threat_model, state, walk, margin)
            seen = walk = self._turn_back(images, walk, margin)
            margin, values, slope = nearest_boundary(model, threat_model, seen, state["labels"])
            state = self._note(threat_model, state, seen, margin)
        walk = self._move(threat_model, images, seen, walk, values, slope)
        return {**state, "walk": walk, "points": self._last(threat_model, state, walk), "step": state["step"] + 1}

    def _turn_back(self, images: Tensor, walk: Tensor, margin: Tensor) -> Tensor:
        return torch.where(expand_rows(margin < 0, walk), images.lerp(walk, self.beta), walk)

    def _note(self, threat_model: ThreatModel, state: State, seen: Tensor, margin: Tensor) -> State:
        """The state after a look: only points in the ball count, but the nearest success anywhere is remembered."""
        length = threat_model.geometry.distance(to_float64(seen) - to_float64(state["images"])).to(seen.dtype)
        inside = _inside(threat_model, seen, state["images"])
        counted = keep_best({**state, "points": seen}, torch.where(inside, margin, float("inf")))
        nearer = (margin < 0) & (length < state["length"])
        return {
            **counted,
            "nearest": torch.where(expand_rows(nearer, seen), seen, state["nearest"]),
            "length": torch.where(nearer, length, state["length"]),
        }

    def _move(
        self, threat_model: ThreatModel, images: Tensor, seen: Tensor, walk: Tensor, values: Tensor, slope: Tensor
    ) -> Tensor:
        """The walk's next point. values, slope: the difference at the points seen, and its gradient there."""
        norm, box = threat_model.norm, threat_model.box
        values = values.to(walk.dtype).nan_to_num(0.0)
        at_walk = values + (slope * (walk - seen)).flatten(1).sum(1)
        at_images = values + (slope * (images - seen)).flatten(1).sum(1)
        onward = to_hyperplane(norm, walk, at_walk, slope, box)
        direct = to_hyperplane(norm, images, at_images, slope, box)
        far, near = (threat_model.geometry.distance(way).clamp_min(1e-8) for way in (direct, onward))
        alpha = expand_rows((near / (near + far)).clamp_max(self.alpha_max), walk)
        moved = (1 - alpha) * (walk + self.eta * onward) + alpha * (images + self.eta * direct)
        return torch.where(moved.isfinite(), moved, images).clamp(*box)

    def _last(self, threat_model: ThreatModel, state: State, walk: Tensor) -> Tensor:
        """What to ask the model about if no step follows: the walk if it is in the ball, or else the nearest success
        brought into it, which the boundary may just allow.
        """
        images = state["images"]
        found = state["length"].isfinite() & ~_inside(threat_model, walk, images)
        return threat_model.project(torch.where(expand_rows(found, walk), state["nearest"], walk), images)


def _inside(threat_model: ThreatModel, points: Tensor, images: Tensor) -> Tensor:
    """Which points lie in the ball, bool [rows]."""
    return threat_model.geometry.distance(to_float64(points) - to_float64(images)) <= threat_model.eps


def nearest_boundary(model: Model, threat_model: ThreatModel, points: Tensor, labels: Tensor) -> ValueAndGrad:
    """The margin at the points, and by how much the logit of one other class exceeds the label's, with its gradient.

    It is the class whose boundary is nearest if the model is taken for linear. One forward pass, and a backward pass
    for every class but one. Raises RuntimeError in inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("an attack needs gradients: call it outside torch.inference_mode()")
    points = points.detach().requires_grad_(True)
    with torch.enable_grad():
        told = model(points.clone())  # a leaf of the graph may not be changed in place, which some models do
        logits, own = threat_model.without_reject_class(told, labels)
    values, slope = points.new_zeros(len(points)), torch.zeros_like(points)
    nearest = torch.full_like(values, float("inf"))
    classes = logits.shape[1]
    for other in range(1, classes if logits.requires_grad else 1):
        rivals = (own + other) % classes
        with torch.enable_grad():
            ahead = (logits.gather(1, rivals[:, None]) - logits.gather(1, own[:, None])).squeeze(1)
            gradient = input_gradient(ahead.sum(), points, retain_graph=True)
        if gradient is None:
            break
        gradient = torch.where(gradient.isfinite(), gradient, 0)
        ahead = ahead.detach().to(values.dtype)
        distance = ahead.abs() / nonzero(DUAL[threat_model.norm].distance(gradient), gradient.dtype)
        nearer = distance < nearest
        nearest, values = torch.where(nearer, distance, nearest), torch.where(nearer, ahead, values)
        slope = torch.where(expand_rows(nearer, slope), gradient, slope)
    return ValueAndGrad(threat_model.margin(told.detach(), labels), values, slope)


fab = attack_function(FAB)
