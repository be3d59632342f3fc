"""What the checks measure of a model.

Everything is measured on the unmodified float32 classifier, on images float [rows, ...] in the box with labels int64
[rows] that it classifies correctly. Nothing here decides which samples are robust.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustbench_local.attacks import PGD, Attack, ThreatModel
from robustbench_local.attacks.attack import Model, Rows, State, random_keys, run, run_steps, value_and_grad
from robustbench_local.attacks.losses import logit_margin
from robustbench_local.attacks.randomness import sample_keys, uniform
from robustbench_local.attacks.suites import INSET

SCALES = (1e-3, 1.0, 1e3)
SAME_MULTIPLE = 0.1
"""How far gradients may be from one multiple of the true ones at the median image to count as that multiple."""
JUMP, LEAST_JUMP = 4.0, 0.02
"""Along half a gray level the changes of honest networks have differed by a factor of 1.2 at most."""
NOISE_RADIUS = 4 / 255
"""From the second indicator of attack failure: noise of (rand - 0.5) · 8/255."""


@dataclass(frozen=True)
class ProbeSet:
    """A model and the images to measure it on.

    images: float [rows, ...] in the box. labels, indices: int64 [rows]; indices are the images' places in the dataset.
    """

    model: nn.Module
    threat_model: ThreatModel
    images: Tensor
    labels: Tensor
    indices: Tensor
    seed: int

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> ProbeSet:
        """The first images, at most `count`."""
        return self.subset(torch.arange(len(self), device=self.labels.device) < count)

    def subset(self, rows: Tensor) -> ProbeSet:
        """The images of some rows. rows: bool [rows]."""
        return replace(self, images=self.images[rows], labels=self.labels[rows], indices=self.indices[rows])

    def fooled_by(self, attack: Attack, *, factor: float = 1.0, model: Model | None = None) -> Tensor:
        """Which images an attack fools, bool [rows].

        factor: multiplies eps, up to a ball that contains the box. model: attack this model instead.
        """
        box_diagonal = torch.full_like(self.images[:1], self.threat_model.box[1] - self.threat_model.box[0])
        largest = float(self.threat_model.geometry.distance(box_diagonal)) / self.threat_model.eps
        threat_model, attacked = self.threat_model.scaled(min(factor, largest)), model or self.model
        points = run(attack, attacked, threat_model, self.images, self.labels, seed=self.seed, indices=self.indices)
        with torch.no_grad():
            return threat_model.margin(attacked(points), self.labels) < 0


class _Scaled(nn.Module):
    """A model with its logits multiplied by a factor."""

    def __init__(self, model: Model, factor: float):
        super().__init__()
        self._model, self._factor = model, factor

    def forward(self, points: Tensor) -> Tensor:
        return self._model(points) * self._factor


def gain_by_scale(probe: ProbeSet, loss: str) -> float:
    """The largest share of images that PGD-10 on the loss fools only when the logits are rescaled (`SCALES`)."""
    attack = PGD(steps=10, loss=loss, random_start=False)
    fooled = {scale: int(probe.fooled_by(attack, model=_Scaled(probe.model, scale)).sum()) for scale in SCALES}
    return max(0, *(fooled[scale] - fooled[1.0] for scale in SCALES)) / len(probe)


def success_by_radius(probe: ProbeSet, attack: Attack, factors: tuple[float, ...]) -> list[Tensor]:
    """Which images the attack fools in ever wider balls, each attacked on its own: bool [rows] for every factor."""
    return [probe.fooled_by(attack, factor=factor) for factor in factors]


@torch.no_grad()
def margin_instability(probe: ProbeSet, draws: int = 20) -> float:
    """The average relative change of the margin under small noise, each change counted as at most 1.

    The second indicator of Pintor et al., "Indicators of attack failure" (NeurIPS 2022), with the logit margin as the
    loss: a cross-entropy near 0 changes by a multiple of itself on models without masking, too.
    """
    before = logit_margin(probe.model(probe.images), probe.labels)
    changes = []
    for draw in range(draws):
        keys = sample_keys(probe.seed, probe.indices, "instability", draw)
        noise = NOISE_RADIUS * (2 * uniform(keys, probe.images.shape[1:]) - 1)
        after = logit_margin(probe.model(probe.images + noise.to(probe.images.dtype)), probe.labels)
        changes.append(((after - before).abs() / before.abs().clamp_min(1e-12)).clamp_max(1))
    return float(torch.stack(changes).mean())


@torch.no_grad()
def jumps_on_gray_levels(probe: ProbeSet, draws: int = 2) -> Tensor:
    """At which images the margin jumps where every pixel has moved by whole gray levels, bool [rows].

    A random point of the ball moves straight to the whole gray levels between it and its image. Along so short a way a
    margin changes evenly, so both halves change it alike. At a jump the second half changes it by more than `JUMP`
    times as much as the first and by more than `LEAST_JUMP` of itself, in every draw.
    """
    threat_model, found = probe.threat_model, torch.ones_like(probe.labels, dtype=torch.bool)
    for draw in range(draws):
        keys = sample_keys(probe.seed, probe.indices, "gray-levels", draw)
        noise = threat_model.geometry.random_start(probe.images, threat_model.eps, keys).to(probe.images.dtype)
        start = threat_model.project(probe.images + noise, probe.images)
        end = threat_model.to_gray_levels(start, probe.images)
        before, halfway, after = (
            logit_margin(probe.model(start.lerp(end, share)), probe.labels) for share in (0.0, 0.5, 1.0)
        )
        found &= (after - halfway).abs() > JUMP * (halfway - before).abs() + LEAST_JUMP * halfway.abs()
    return found


def gradient_mismatch(probe: ProbeSet, share: float = 0.03) -> Tensor:
    """How badly the gradient predicts the loss after a small step, for every image: float [rows].

    share: the length of the step along the gradient, in multiples of eps. 0 where the loss changes exactly as
    predicted, and 1 where the prediction and the change have nothing in common. A gradient that is the same multiple of
    the true one at nearly every image leads attacks the right way and counts as exact, for example where a forward
    scales its input in place, unseen by autograd. The step starts just inside the box, as those of the newest suites.
    """
    threat_model = probe.threat_model
    start = threat_model.move_inside(probe.images, probe.images, float(INSET))
    _, before, gradient = value_and_grad(probe.model, threat_model, "margin", {"points": start, "labels": probe.labels})
    length = torch.full_like(before, share * threat_model.eps)
    points = (start + threat_model.geometry.steepest(gradient, start, length, threat_model.box)).clamp(
        *threat_model.box
    )
    predicted = ((points - start) * gradient).flatten(1).sum(1)
    with torch.no_grad():
        after = threat_model.attack_loss("margin", probe.model(points), probe.labels)
    change = after - before
    factor = (change / predicted)[predicted != 0].median() if (predicted != 0).any() else change.new_ones(())
    if factor > 0 and len(change) > 3:
        rescaled = _relative_error(change, factor * predicted)
        if float(rescaled.median()) < SAME_MULTIPLE:
            return rescaled
    return _relative_error(change, predicted)


def _relative_error(change: Tensor, predicted: Tensor) -> Tensor:
    """The relative difference of two changes, each counted as at most 1: float [rows]."""
    error = (change - predicted).abs() / torch.maximum(change.abs(), predicted.abs()).clamp_min(1e-30)
    return error.clamp_max(1)


def convergence(probe: ProbeSet, attack: Attack) -> tuple[float, int]:
    """The share of images on which a search has not converged, and how many images it fools at a step but not its last.

    The fourth and third indicators of Pintor et al. (NeurIPS 2022). A search has not converged where the last ten steps
    still gain more than 0.05 of the best loss so far, scaled to [0, 1] over the search.
    """
    keys = random_keys(attack, probe.seed, probe.indices, 0)
    state = attack.start(probe.threat_model, Rows(probe.images, probe.labels, keys, probe.labels))
    margins: list[Tensor] = []

    def record(state: State) -> None:
        if len(margins) < attack.steps:
            with torch.no_grad():
                margins.append(probe.threat_model.margin(probe.model(state["points"]), probe.labels))

    record(state)
    run_steps(attack, probe.model, probe.threat_model, state, record)
    trace = torch.stack(margins)
    lowest = trace.cummin(0).values
    span = (lowest[0] - lowest[-1]).clamp_min(1e-30)
    gains = (lowest[-min(10, len(lowest))] - lowest[-1]) / span
    moving = (gains > 0.05) & (lowest[-1] >= 0)
    lost = (lowest[-1] < 0) & (trace[-1] >= 0)
    return float(moving.float().mean()), int(lost.sum())
