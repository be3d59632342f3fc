"""PGD: Madry et al., "Towards deep learning models resistant to adversarial attacks" (ICLR 2018)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_local.attacks.attack import Model, State, initial_state, look, observe, run
from robustbench_local.attacks.losses import LOSSES
from robustbench_local.attacks.threat_model import ThreatModel


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Steps of fixed length along the steepest direction, projected back into ball and box.

    steps: gradients per restart. restarts: independent random starts. step_size: in pixel units; by default
    2.5 · eps / steps, which can cross the ball and come back. loss: a name in `losses.LOSSES`. random_start: begin
    at a uniform point of the ball instead of the image.
    """

    name: ClassVar[str] = "pgd"
    steps: int = 50
    restarts: int = 1
    step_size: float | None = None
    loss: str = "ce"
    random_start: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, but must be at least 1")
        if self.restarts < 1:
            raise ValueError(f"restarts is {self.restarts}, but must be at least 1")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"{self.restarts} restarts without a random start would all be the same attack")
        if self.step_size is not None and not self.step_size >= 0:
            raise ValueError(f"step_size is {self.step_size}, but must be at least 0")
        if self.loss not in LOSSES:
            raise ValueError(f"unknown loss {self.loss!r}: choose one of {', '.join(LOSSES)}")

    def start(self, threat_model: ThreatModel, images: Tensor, labels: Tensor, keys: Tensor) -> State:
        points = images
        if self.random_start:
            noise = threat_model.geometry.random_start(images, threat_model.eps, keys)
            points = threat_model.project(images + noise, images)
        return initial_state(images, labels, points)

    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State:
        margin, _, gradient = look(model, threat_model, self.loss, state)
        state = observe(state, margin)
        step_size = 2.5 * threat_model.eps / self.steps if self.step_size is None else self.step_size
        points = state["points"]
        lengths = points.new_full((len(points),), step_size)
        moved = points + threat_model.geometry.steepest(gradient, points, lengths, threat_model.box)
        return {**state, "points": threat_model.project(moved, state["images"]), "step": state["step"] + 1}


def pgd(
    classifier: Model, images: Tensor, labels: Tensor, threat_model: ThreatModel, *,
    steps: int = 50, restarts: int = 1, step_size: float | None = None, loss: str = "ce",
    random_start: bool = True, seed: int = 0, indices: Tensor | None = None,
) -> Tensor:
    """Adversarial images by projected gradient ascent: for each image the point nearest to success of all restarts.

    classifier: float [N, ...] in the box -> logits [N, classes], in eval mode. images: float [N, ...] in the box.
    labels: int64 [N]. step_size: pixel units, default 2.5 · eps / steps. indices: int64 [N], which sample each row is;
    with the seed they decide the random starts. Returns float [N, ...] in ball and box.
    Raises ValueError for steps or restarts below 1 or an unknown loss.
    """
    attack = PGD(steps=steps, restarts=restarts, step_size=step_size, loss=loss, random_start=random_start)
    return run(attack, classifier, threat_model, images, labels, seed=seed, indices=indices)
