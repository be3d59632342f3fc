"""What is measured of a model to see whether attacks on it can be believed; `diagnostics.py` draws the conclusions.

Everything is measured on the untouched float32 classifier, on images float [rows, ...] in the box with labels int64
[rows] that it classifies correctly. Nothing here changes what counts as robust.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustbench_local.attacks import PGD, Attack, ThreatModel
from robustbench_local.attacks.attack import Model, Rows, random_keys, run, value_and_grad
from robustbench_local.attacks.losses import logit_margin
from robustbench_local.attacks.randomness import sample_keys, uniform

SCALES = (1e-3, 1.0, 1e3)
NOISE_RADIUS = 4 / 255
"""Of the second indicator of attack failure: noise of (rand - 0.5) · 8/255."""


@dataclass(frozen=True)
class ProbeSet:
    """The model, the images that are looked at, their numbers in the data set, and what may be done to them."""

    model: Model
    threat_model: ThreatModel
    images: Tensor
    labels: Tensor
    indices: Tensor
    seed: int

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> ProbeSet:
        return self.chosen(torch.arange(len(self), device=self.labels.device) < count)

    def chosen(self, rows: Tensor) -> ProbeSet:
        """rows: bool [rows]."""
        return replace(self, images=self.images[rows], labels=self.labels[rows], indices=self.indices[rows])

    def fooled_by(self, attack: Attack, *, factor: float = 1.0, model: Model | None = None) -> Tensor:
        """Which images an attack fools, bool [rows]; in a ball so many times as wide, or another model."""
        whole = torch.full_like(self.images[:1], self.threat_model.box[1] - self.threat_model.box[0])
        largest = float(self.threat_model.geometry.distance(whole)) / self.threat_model.eps
        threat_model, asked = self.threat_model.scaled(min(factor, largest)), model or self.model
        points = run(attack, asked, threat_model, self.images, self.labels, seed=self.seed, indices=self.indices)
        with torch.no_grad():
            return threat_model.margin(asked(points), self.labels) < 0


class _Scaled(nn.Module):
    def __init__(self, model: Model, factor: float):
        super().__init__()
        self._model, self._factor = model, factor

    def forward(self, points: Tensor) -> Tensor:
        return self._model(points) * self._factor


def gain_by_scale(looked: ProbeSet, loss: str) -> float:
    """The largest share of images that PGD-10 on the loss fools more when the logits are multiplied (`SCALES`)."""
    attack = PGD(steps=10, loss=loss, random_start=False)
    fooled = {scale: int(looked.fooled_by(attack, model=_Scaled(looked.model, scale)).sum()) for scale in SCALES}
    return max(0, *(fooled[scale] - fooled[1.0] for scale in SCALES)) / len(looked)


def success_by_radius(looked: ProbeSet, attack: Attack, factors: tuple[float, ...]) -> list[Tensor]:
    """Whom the attack fools in ever wider balls, each searched for itself: bool [rows] for every factor."""
    return [looked.fooled_by(attack, factor=factor) for factor in factors]


@torch.no_grad()
def margin_instability(looked: ProbeSet, draws: int = 20) -> float:
    """How much the margin moves under small noise, relative to itself, at most 1, on average.

    The second indicator of Pintor et al., "Indicators of attack failure" (NeurIPS 2022), with the logit margin for the
    loss: a cross-entropy near 0 moves by many times itself on models that hide nothing.
    """
    before = logit_margin(looked.model(looked.images), looked.labels)
    moved = []
    for draw in range(draws):
        keys = sample_keys(looked.seed, looked.indices, "instability", draw)
        noise = NOISE_RADIUS * (2 * uniform(keys, looked.images.shape[1:]) - 1)
        after = logit_margin(looked.model(looked.images + noise.to(looked.images.dtype)), looked.labels)
        moved.append(((after - before).abs() / before.abs().clamp_min(1e-12)).clamp_max(1))
    return float(torch.stack(moved).mean())


def gradient_mismatch(looked: ProbeSet, share: float = 0.1) -> float:
    """How far the loss is from rising as its gradient says, at the median image: 0 where a step along the gradient, so
    long as a share of eps, does what it promises, 1 where it does nothing of it.
    """
    state = {"points": looked.images, "labels": looked.labels}
    _, before, gradient = value_and_grad(looked.model, looked.threat_model, "margin", state)
    length = torch.full_like(before, share * looked.threat_model.eps)
    way = looked.threat_model.geometry.steepest(gradient, looked.images, length, looked.threat_model.box)
    points = (looked.images + way).clamp(*looked.threat_model.box)
    promised = ((points - looked.images) * gradient).flatten(1).sum(1)
    with torch.no_grad():
        after = looked.threat_model.attack_loss("margin", looked.model(points), looked.labels)
    risen = after - before
    off = (risen - promised).abs() / torch.maximum(risen.abs(), promised.abs()).clamp_min(1e-30)
    return float(off.clamp_max(1).median())


def convergence(looked: ProbeSet, attack: PGD) -> tuple[float, int]:
    """The share of images on which a search has not come to rest, and how many it had fooled on the way and then lost.

    The fourth and third indicators of Pintor et al. (NeurIPS 2022): of every image's loss, scaled to [0, 1] over the
    search and never falling, the last ten steps still gain more than 0.05; and a step before the last had succeeded
    where the last does not.
    """
    keys = random_keys(attack, looked.seed, looked.indices, 0)
    state = attack.start(looked.threat_model, Rows(looked.images, looked.labels, keys, looked.labels))
    margins = []
    for _ in range(attack.steps):
        with torch.no_grad():
            margins.append(looked.threat_model.margin(looked.model(state["points"]), looked.labels))
        state = attack.step(looked.model, looked.threat_model, state)
    trace = torch.stack(margins)
    lowest = trace.cummin(0).values
    span = (lowest[0] - lowest[-1]).clamp_min(1e-30)
    gains = (lowest[-min(10, len(lowest))] - lowest[-1]) / span
    moving = (gains > 0.05) & (lowest[-1] >= 0)
    lost = (lowest[-1] < 0) & (trace[-1] >= 0)
    return float(moving.float().mean()), int(lost.sum())
