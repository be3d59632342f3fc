"""What an attack is: something that advances a batch of independent samples, one step at a time."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from robustbench_local.attacks.norms import per_row
from robustbench_local.attacks.randomness import sample_keys
from robustbench_local.attacks.threat_model import ThreatModel

Model = Callable[[Tensor], Tensor]
State = dict[str, Tensor]
"""Tensors whose leading dimension is rows: `images`, `labels`, `points` (where the search stands), `best_points` and
`best_margin` (the point nearest to success among those the model has seen), `step`, and what the attack adds."""


class Attack(Protocol):
    """Hyper-parameters are the fields of a frozen dataclass; all that changes lives in the state.

    `steps` counts calls of `step`. A row may leave after any of them and another may take its place, so `step` treats
    every row by its own state alone. The point reached by the last step has not been seen by the model: whoever
    drives the attack evaluates it.
    """

    @property
    def name(self) -> str: ...

    @property
    def steps(self) -> int: ...

    @property
    def restarts(self) -> int: ...

    def start(self, threat_model: ThreatModel, images: Tensor, labels: Tensor, keys: Tensor) -> State: ...

    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State: ...


def initial_state(images: Tensor, labels: Tensor, points: Tensor) -> State:
    """The part of the state that every attack has."""
    rows = len(images)
    return {
        "images": images,
        "labels": labels,
        "points": points,
        "best_points": points,
        "best_margin": images.new_full((rows,), float("inf")),
        "step": torch.zeros(rows, dtype=torch.int64, device=images.device),
    }


def observe(state: State, margin: Tensor) -> State:
    """The state after the model has been asked about `points`: the best point of every row is kept."""
    better = margin < state["best_margin"]
    return {
        **state,
        "best_points": torch.where(per_row(better, state["points"]), state["points"], state["best_points"]),
        "best_margin": torch.where(better, margin.to(state["best_margin"].dtype), state["best_margin"]),
    }


class Look(NamedTuple):
    """What one forward and one backward pass tell of `points`: margin and loss [rows], gradient like points."""

    margin: Tensor
    loss: Tensor
    gradient: Tensor


def look(model: Model, threat_model: ThreatModel, loss: str, state: State) -> Look:
    """The margin at `points`, the loss to climb and its gradient.

    A model whose output does not depend on its input by way of differentiable operations has gradient 0, and so has
    a pixel whose gradient is not a finite number. Raises RuntimeError in inference mode, where nothing has gradients.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("an attack needs gradients: call it outside torch.inference_mode()")
    points = state["points"].detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(points.clone())  # a leaf of the graph may not be changed in place, which some models do
        values = threat_model.climb(loss, logits, state["labels"])
        total = values.sum()
    gradient = torch.autograd.grad(total, points, allow_unused=True)[0] if total.requires_grad else None
    margin = threat_model.margin(logits.detach(), state["labels"])
    if gradient is None:
        gradient = torch.zeros_like(points)
    return Look(margin, values.detach(), torch.where(gradient.isfinite(), gradient, 0))


def settings(attack: Attack) -> dict[str, object]:
    """Every hyper-parameter of an attack by name."""
    return {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack)}  # type: ignore[arg-type]


def spec(attack: Attack) -> str:
    """The attack as the command line writes it: its name, then whatever departs from its defaults."""
    return _written(attack, settings(attack))


def keys_of(attack: Attack, seed: int, indices: Tensor, restart: int) -> Tensor:
    """The samples' random keys, int64 [rows]. The number of restarts has no say: more of them begin like fewer."""
    given = {name: value for name, value in settings(attack).items() if name != "restarts"}
    return sample_keys(seed, indices, _written(attack, given), restart)


def _written(attack: Attack, given: dict[str, object]) -> str:
    defaults = settings(type(attack)())
    departures = [f"{name.replace('_', '-')}={value}" for name, value in given.items() if value != defaults[name]]
    return ":".join(filter(None, [attack.name, ",".join(departures)]))


def run(
    attack: Attack, model: Model, threat_model: ThreatModel, images: Tensor, labels: Tensor, *,
    seed: int = 0, indices: Tensor | None = None,
) -> Tensor:
    """Attack one batch and return, for every image, the point nearest to success: a success wherever one was found.

    model: images -> logits, in eval mode. images: float [rows, ...] in the box. labels: int64 [rows]. indices: int64
    [rows], the samples' places in their data set, which with the seed decide their random numbers (default 0, 1, …).
    Returns float [rows, ...], inside ball and box. Restarts go only to images that still stand.
    """
    indices = torch.arange(len(images), device=images.device) if indices is None else indices
    best_points, best_margin = images.clone(), images.new_full((len(images),), float("inf"))
    standing = torch.arange(len(images), device=images.device)
    for restart in range(attack.restarts):
        keys = keys_of(attack, seed, indices[standing], restart)
        state = attack.start(threat_model, images[standing], labels[standing], keys)
        for _ in range(attack.steps):
            state = attack.step(model, threat_model, state)
        with torch.no_grad():
            state = observe(state, threat_model.margin(model(state["points"]), state["labels"]))
        better = state["best_margin"] < best_margin[standing]
        best_points[standing[better]] = state["best_points"][better]
        best_margin[standing[better]] = state["best_margin"][better]
        standing = standing[best_margin[standing] >= 0]
        if not len(standing):
            break
    return best_points
