"""FAB: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack" (ICML 2020)."""

from __future__ import annotations

from collections.abc import Callable
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
    initial_state,
    keep_best,
    require_counts,
    require_inset,
    value_and_grad,
)
from robustbench_local.attacks.backward_errors import input_gradient
from robustbench_local.attacks.function_form import attack_function
from robustbench_local.attacks.norms import NORMS, Box, Norm, expand_rows, nonzero, to_float64
from robustbench_local.attacks.threat_model import ThreatModel

SMALLEST = 1e-12
"""Gradients smaller than this fraction of the largest one are treated as rounding errors."""


def _least_linf(gain: Tensor, weights: Tensor, room: Tensor) -> Tensor:
    return _rise(gain, weights, (weights > 0).to(weights.dtype), room)


def _least_l2(gain: Tensor, weights: Tensor, room: Tensor) -> Tensor:
    return _rise(gain, weights, weights, room)


def _least_l1(gain: Tensor, weights: Tensor, room: Tensor) -> Tensor:
    """Pixels in descending order of their weights, each moved as far as its room allows."""
    weights, order = weights.sort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    gains = weights * room
    missing = (gain[:, None] - (gains.cumsum(1) - gains)).clamp_min(0)
    moves = torch.where(weights > 0, torch.minimum(missing / nonzero(weights, weights.dtype), room), 0)
    return torch.zeros_like(moves).scatter(1, order, moves)


def _rise(gain: Tensor, weights: Tensor, speeds: Tensor, room: Tensor) -> Tensor:
    """min(level · speeds, room) for the lowest level that gives the gain, which is piecewise linear in the level."""
    stops, order = torch.where(speeds > 0, room / speeds.clamp_min(SMALLEST), 0).sort(dim=1)
    gains = (weights * room).gather(1, order)
    stopped = gains.cumsum(1) - gains  # the gain of the pixels that reach their room before this one
    rates = (weights * speeds).gather(1, order).flip(1).cumsum(1).flip(1)  # of this pixel and those after it
    short = stopped + stops * rates < gain[:, None]
    at = short.sum(1, keepdim=True).clamp_max(weights.shape[1] - 1)
    missing = (gain[:, None] - stopped.gather(1, at)).clamp_min(0)
    level = torch.minimum(missing / nonzero(rates.gather(1, at), rates.dtype), stops.gather(1, at))
    return torch.minimum(level * speeds, room)


LEAST: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"linf": _least_linf, "l2": _least_l2, "l1": _least_l1}
"""(gain, weights, room) -> moves of least norm, each between 0 and its pixel's room, with Σ weights · moves = gain.
gain: [rows]; the others: [rows, pixels], not negative, weights at most 1. Where no moves give the gain, every pixel
with a positive weight moves as far as its room allows."""

DUAL: dict[str, Norm] = {"linf": NORMS["l1"], "l2": NORMS["l2"], "l1": NORMS["linf"]}
"""The dual norm: the distance to a hyperplane is the value there divided by the dual norm of the gradient."""


def to_hyperplane(norm: str, points: Tensor, values: Tensor, gradient: Tensor, box: Box) -> Tensor:
    """The shortest perturbation inside the box that solves values + gradient · perturbation = 0.

    Where the box holds no solution, the perturbation that comes closest to it. points, gradient: float [rows, ...], the
    points in the box. values: float [rows]. Returns float like points.
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
    """A walk to the decision boundary and along it, to the adversarial example nearest to the image.

    Each step linearizes the boundary, moves past it, and moves towards the boundary point nearest to the image. From an
    adversarial point the walk first goes back towards the image. It may leave the ball; only points inside count.

    steps: steps per run. restarts: independent runs; a single one starts at the image, each of several at a random
    point of the ball with half the radius. targets: number of wrong classes to target, one per run (the paper's FAB-T),
    for one forward and one backward pass per step; with 0 each step goes to the nearest of all boundaries, for two
    forward passes and one backward pass per wrong class. alpha_max: largest weight of the step from the image against
    the step from the current point. eta: overshoot, as a multiple of the distance to the boundary. beta: fraction of
    the perturbation that is kept when the walk goes back. inset: distance that the walk keeps from the edges of the
    box, as a fraction of its width: a layer that clips its input has no gradient there.
    """

    name: ClassVar[str] = "fab"
    steps: int = 100
    restarts: int = 1
    targets: int = 0
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    inset: float = field(default=0.0, metadata={"since": 2})

    def __post_init__(self) -> None:
        require_counts(self)
        if not 0 <= self.alpha_max <= 1:
            raise ValueError(f"alpha_max is {self.alpha_max}, but must be between 0 and 1")
        if not 1 <= self.eta < float("inf"):
            raise ValueError(f"eta is {self.eta}, but must be a number of at least 1")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}, but must be between 0 and 1")
        require_inset(self.inset)

    def start(self, threat_model: ThreatModel, rows: Rows) -> State:
        walk = rows.images
        if self.restarts > 1:
            noise = threat_model.geometry.random_start(walk, threat_model.eps / 2, rows.keys)
            walk = walk + noise.to(walk.dtype)
        walk = walk.clamp(*threat_model.inner_box(self.inset))
        state = initial_state(rows, rows.images)
        return {**state, "walk": walk, "nearest": walk, "length": torch.full_like(state["best_margin"], float("inf"))}

    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State:
        images, walk = state["images"], state["walk"]
        if self.targets or threat_model.target is not None:
            # One evaluation is enough: the boundary is near, so its linearization also holds after going back.
            origin = walk
            evaluated = {**state, "points": origin}
            margin, values, slope = value_and_grad(model, threat_model, "margin", evaluated, aimed=True)
            state = self._record(threat_model, state, origin, margin)
            walk = self._go_back(images, origin, margin)
        else:
            # Going back can change which boundary is nearest, so this takes two evaluations.
            with torch.no_grad():
                margin = threat_model.margin(model(walk.clone()), state["labels"])
            state = self._record(threat_model, state, walk, margin)
            origin = walk = self._go_back(images, walk, margin)
            margin, values, slope = nearest_boundary(model, threat_model, origin, state["labels"])
            state = self._record(threat_model, state, origin, margin)
        # The difference of logits, which is 0 on the linearized boundary, at the walk and at the images.
        values = values.to(walk.dtype).nan_to_num(0.0)
        at_walk = values + (slope * (walk - origin)).flatten(1).sum(1)
        at_images = values + (slope * (images - origin)).flatten(1).sum(1)
        walk = self._move(threat_model, images, walk, (at_walk, at_images), slope)
        return {**state, "walk": walk, "points": self._last(threat_model, state, walk), "step": state["step"] + 1}

    def _go_back(self, images: Tensor, walk: Tensor, margin: Tensor) -> Tensor:
        return torch.where(expand_rows(margin < 0, walk), images.lerp(walk, self.beta), walk)

    def _record(self, threat_model: ThreatModel, state: State, points: Tensor, margin: Tensor) -> State:
        """The state after evaluating points: the best point inside the ball, and the nearest success anywhere."""
        length = threat_model.geometry.distance(to_float64(points) - to_float64(state["images"])).to(points.dtype)
        inside = _inside(threat_model, points, state["images"])
        nearer = (margin < 0) & (length < state["length"])
        return {
            **keep_best({**state, "points": points}, torch.where(inside, margin, float("inf"))),
            "nearest": torch.where(expand_rows(nearer, points), points, state["nearest"]),
            "length": torch.where(nearer, length, state["length"]),
        }

    def _move(
        self, threat_model: ThreatModel, images: Tensor, walk: Tensor, values: tuple[Tensor, Tensor], slope: Tensor
    ) -> Tensor:
        """The next point of the walk. values: the linearized difference of logits at the walk and at the images."""
        norm, box = threat_model.norm, threat_model.box
        from_walk = to_hyperplane(norm, walk, values[0], slope, box)
        from_images = to_hyperplane(norm, images, values[1], slope, box)
        far, near = (threat_model.geometry.distance(step).clamp_min(1e-8) for step in (from_images, from_walk))
        α = expand_rows((near / (near + far)).clamp_max(self.alpha_max), walk)
        next_point = (1 - α) * (walk + self.eta * from_walk) + α * (images + self.eta * from_images)
        inner = threat_model.inner_box(self.inset)
        return torch.where(next_point.isfinite(), next_point, images).clamp(*inner)

    def _last(self, threat_model: ThreatModel, state: State, walk: Tensor) -> Tensor:
        """The point to evaluate if no step follows: the walk if in the ball, else the nearest success, projected."""
        images = state["images"]
        outside = state["length"].isfinite() & ~_inside(threat_model, walk, images)
        return threat_model.project(torch.where(expand_rows(outside, walk), state["nearest"], walk), images)


def _inside(threat_model: ThreatModel, points: Tensor, images: Tensor) -> Tensor:
    """Which points are in the ball, bool [rows]."""
    return threat_model.geometry.distance(to_float64(points) - to_float64(images)) <= threat_model.eps


def nearest_boundary(model: Model, threat_model: ThreatModel, points: Tensor, labels: Tensor) -> ValueAndGrad:
    """The margin at the points, and the logit of another class minus the label's, with its gradient.

    That class is the one whose boundary is nearest according to the linearized model. Costs one forward pass, and one
    backward pass per wrong class. Raises RuntimeError in inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("an attack needs gradients: call it outside torch.inference_mode()")
    points = points.detach().requires_grad_(True)
    with torch.enable_grad():
        all_logits = model(points.clone())  # some models change their input in place, which a leaf must not be
        logits, own = threat_model.without_reject_class(all_logits, labels)
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
    return ValueAndGrad(threat_model.margin(all_logits.detach(), labels), values, slope)


fab = attack_function(FAB)
