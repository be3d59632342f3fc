"""The interface of an attack, which advances a batch of independent samples one step at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from robustbench_local.attacks.backward_errors import input_gradient
from robustbench_local.attacks.norms import expand_rows
from robustbench_local.attacks.randomness import sample_keys
from robustbench_local.attacks.registry import Registry
from robustbench_local.attacks.threat_model import ThreatModel

Model = Callable[[Tensor], Tensor]
State = dict[str, Tensor]
"""Tensors whose first dimension is rows: `images`, `labels`, `keys` and `targets` as in `Rows`; `points`, the current
iterate; `best_points` and `best_margin`, the evaluated point with the smallest margin; `step`; and the attack's own."""


class Rows(NamedTuple):
    """The input of an attack, one row per sample.

    images: float [rows, ...] in the box. labels: int64 [rows]. keys: int64 [rows], keys of the random numbers. targets:
    int64 [rows], the class to reach, for targeted attacks; others ignore it.
    """

    images: Tensor
    labels: Tensor
    keys: Tensor
    targets: Tensor


class Named(Protocol):
    """A frozen dataclass with a name, whose fields are settings: an attack or a training method."""

    @property
    def name(self) -> str: ...


class Attack(Named, Protocol):
    """Hyper-parameters are the fields of a frozen dataclass; everything that changes is in the state.

    `steps` is the number of calls of `step`. After each of them the engine may replace rows, so `step` uses every row's
    own state only. The model has not evaluated the last step's points: the caller does. `targets` is the number of
    wrong classes to target, one per run, the most likely first; 0 for an untargeted attack.
    """

    @property
    def steps(self) -> int: ...

    @property
    def restarts(self) -> int: ...

    @property
    def targets(self) -> int: ...

    def start(self, threat_model: ThreatModel, rows: Rows) -> State: ...

    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State: ...


ATTACKS: Registry[Attack] = Registry()
"""Every attack of this package, by name."""


def initial_state(rows: Rows, points: Tensor) -> State:
    """The entries of the state that every attack has."""
    return {
        **rows._asdict(),
        "points": points,
        "best_points": points,
        "best_margin": points.new_full((len(points),), float("inf")),
        "step": torch.zeros_like(rows.labels),
    }


def keep_best(state: State, margin: Tensor) -> State:
    """The state after the model has evaluated `points`, whose margin is [rows]: each row keeps its best point."""
    better = margin < state["best_margin"]
    return {
        **state,
        "best_points": torch.where(expand_rows(better, state["points"]), state["points"], state["best_points"]),
        "best_margin": torch.where(better, margin.to(state["best_margin"].dtype), state["best_margin"]),
    }


class ValueAndGrad(NamedTuple):
    """The result of one forward and one backward pass at `points`: margin and loss [rows], gradient like points."""

    margin: Tensor
    loss: Tensor
    gradient: Tensor


def value_and_grad(
    model: Model, threat_model: ThreatModel, loss: str, state: State, *, aimed: bool = False
) -> ValueAndGrad:
    """The margin at `points`, the loss to maximize and its gradient, as `gradient_of` defines it.

    loss: a name in `losses.LOSSES`. aimed: use the rows' `targets`. Raises RuntimeError in inference mode.
    """
    aims = state["targets"] if aimed else None

    def climb(logits: Tensor) -> Tensor:
        return threat_model.attack_loss(loss, logits, state["labels"], aims)

    return value_and_grad_of(model, threat_model, climb, state)


def value_and_grad_of(
    model: Model, threat_model: ThreatModel, climb: Callable[[Tensor], Tensor], state: State
) -> ValueAndGrad:
    """The same for any loss. climb: logits [rows, classes] -> the values to maximize, [rows]."""
    logits: list[Tensor] = []

    def objective(points: Tensor) -> Tensor:
        logits.append(model(points.clone()))  # some models change their input in place, which a leaf must not be
        return climb(logits[0])

    values, gradient = gradient_of(objective, state["points"])
    return ValueAndGrad(threat_model.margin(logits[0].detach(), state["labels"]), values, gradient)


def gradient_of(objective: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
    """Values [rows] of a per-sample objective at points [rows, ...], detached, and their gradient, like points.

    The gradient is 0 where no differentiable operations lead from the points to the values, where one of them has no
    backward, and in a pixel whose gradient is not a finite number. Any other error of the backward pass is raised: a
    gradient of 0 in its place would make the attack blind. Raises RuntimeError in inference mode, where nothing has
    gradients.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("an attack needs gradients: call it outside torch.inference_mode()")
    points = points.detach().requires_grad_(True)
    with torch.enable_grad():
        values = objective(points)
        total = values.sum()
    gradient = input_gradient(total, points)
    if gradient is None:
        gradient = torch.zeros_like(points)
    return values.detach(), gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def run_steps(
    attack: Attack,
    model: Model,
    threat_model: ThreatModel,
    state: State,
    observe: Callable[[State], object] = lambda state: None,  # noqa: ARG005
) -> State:
    """All steps of one run: `attack.steps` of them from the state that `attack.start` returned.

    observe: called with the state after every step. Its `best_margin` is the smallest margin of all iterates so far,
    its `points` the next iterate, which the model has not seen yet.
    """
    for _ in range(attack.steps):
        state = attack.step(model, threat_model, state)
        observe(state)
    return state


def require_counts(attack: Attack) -> None:
    """Raises ValueError for an attack with fewer than 1 step or restart, or a negative number of targets."""
    for name, least in (("steps", 1), ("restarts", 1), ("targets", 0)):
        if getattr(attack, name) < least:
            raise ValueError(f"{name} is {getattr(attack, name)}, but must be at least {least}")


def require_inset(inset: float) -> None:
    """Raises ValueError for an inset that leaves nothing of the box."""
    if not 0 <= inset < 0.5:
        raise ValueError(f"inset is {inset}, but must be at least 0 and below 0.5, as a fraction of the box's width")


def settings(attack: Named | type[Named]) -> dict[str, object]:
    """All hyper-parameters of an attack, by name."""
    return {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack)}  # type: ignore[arg-type]


def spec_text(attack: Named) -> str:
    """The attack or method as the command line writes it: its name, then the settings that differ from the defaults."""
    return _spec(attack, settings(attack))


def random_keys(attack: Attack, seed: int, indices: Tensor, number: int) -> Tensor:
    """The keys of the samples' random numbers in run `number`, int64 [rows]."""
    return sample_keys(seed, indices, random_stream_name(attack), number)


def random_stream_name(attack: Attack) -> str:
    """The attack's spec without restarts, targets and inset.

    Random numbers do not depend on these: an attack with more restarts repeats the runs of one with fewer first, and an
    inset changes nothing but the inset.
    """
    left_out = ("restarts", "targets", "inset")
    return _spec(attack, {name: value for name, value in settings(attack).items() if name not in left_out})


def top_wrong_classes(logits: Tensor, labels: Tensor, threat_model: ThreatModel) -> Tensor:
    """The classes to target, int64 [rows, targets], in descending order of their logits.

    Only the threat model's target if it has one. logits: float [rows, classes] of the clean images. labels: int64
    [rows].
    """
    if threat_model.target is not None:
        return torch.full_like(labels, threat_model.target)[:, None]
    others = logits.scatter(1, labels[:, None], float("-inf"))
    if threat_model.reject is not None:
        others[:, threat_model.reject] = float("-inf")
    return others.argsort(dim=1, descending=True, stable=True)[:, : threat_model.number_of_targets(logits.shape[1])]


def number_of_runs(attack: Attack, classes: int) -> int:
    """The number of runs on a sample that is not fooled before: every restart uses every target once.

    classes: number of classes to choose targets from, at least 1.
    """
    return attack.restarts * max(1, min(attack.targets, classes))


def target_for_run(attack: Attack, number: int, rivals: Tensor) -> Tensor:
    """The target class of run `number`, int64 [rows]. rivals: the result of `top_wrong_classes`."""
    return rivals[:, number % max(1, min(attack.targets, rivals.shape[1]))]


def _spec(attack: Named, values: dict[str, object]) -> str:
    defaults = settings(type(attack)())
    changes = [f"{name.replace('_', '-')}={value}" for name, value in values.items() if value != defaults[name]]
    return ":".join(filter(None, [attack.name, ",".join(changes)]))


def run(
    attack: Attack,
    model: Model,
    threat_model: ThreatModel,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    indices: Tensor | None = None,
) -> Tensor:
    """Attack one batch and return for every image the point with the smallest margin of all runs.

    model: images -> logits, in eval mode. images: float [rows, ...] in the box. labels: int64 [rows]. indices: int64
    [rows], the samples' positions in their dataset, by default 0, 1, ...; with the seed they decide the random numbers.
    Returns float [rows, ...], inside ball and box. Only images that are not yet fooled get another run.
    """
    indices = torch.arange(len(images), device=images.device) if indices is None else indices
    with torch.no_grad():
        rivals = top_wrong_classes(model(images), labels, threat_model) if attack.targets else labels[:, None]
    best_points, best_margin = images.clone(), images.new_full((len(images),), float("inf"))
    robust = torch.arange(len(images), device=images.device)
    for number in range(number_of_runs(attack, rivals.shape[1])):
        keys, targets = (
            random_keys(attack, seed, indices[robust], number),
            target_for_run(attack, number, rivals[robust]),
        )
        state = attack.start(threat_model, Rows(images[robust], labels[robust], keys, targets))
        state = run_steps(attack, model, threat_model, state)
        with torch.no_grad():
            state = keep_best(state, threat_model.margin(model(state["points"]), state["labels"]))
        better = state["best_margin"] < best_margin[robust]
        best_points[robust[better]] = state["best_points"][better]
        best_margin[robust[better]] = state["best_margin"][better]
        robust = robust[best_margin[robust] >= 0]
        if not len(robust):
            break
    return best_points
