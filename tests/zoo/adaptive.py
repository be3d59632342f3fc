"""Attacks by someone who has read the defense's code: their gradients come from a stand-in, their verdicts do not.

A point counts only when the untouched model, asked once, misclassifies it inside ball and box.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robustbench_local.attacks import ThreatModel, square
from robustbench_local.attacks.losses import LOSSES, targeted_loss

Logits = Callable[[Tensor], Tensor]
"""Images [rows, ...] to logits [rows, classes], differentiable."""
ROUNDING = 1e-6
CLASSES = 10


class Hunt:
    """Images under attack and which of them still stand.

    enough: no attack begins any more when so few stand. shown: takes points and their images and gives the points that
    the model is asked about instead.
    """

    shown: Callable[[Tensor, Tensor], Tensor] | None = None

    def __init__(self, model: Logits, images: Tensor, labels: Tensor, threat_model: ThreatModel, *, enough: int = 0):
        self.model, self.images, self.labels, self.threat_model = model, images, labels, threat_model
        self.enough = enough
        self.standing = self._predictions(images) == labels

    @property
    def rows(self) -> Tensor:
        """Which images are to be attacked, int64."""
        rows = self.standing.nonzero().squeeze(1)
        return rows if len(rows) > self.enough else rows[:0]

    @torch.no_grad()
    def _predictions(self, points: Tensor) -> Tensor:
        return self.model(points).argmax(1)

    def offer(self, rows: Tensor, points: Tensor) -> Tensor:
        """Ask the untouched model about points for some rows; gives bool [rows]: which of these images stand."""
        if not len(rows):
            return torch.zeros(0, dtype=torch.bool)
        images, (low, high) = self.images[rows], self.threat_model.box
        points = self.shown(points, images) if self.shown else points
        inside = self.threat_model.geometry.distance(points - images) <= self.threat_model.eps + ROUNDING
        inside &= ((points >= low) & (points <= high)).flatten(1).all(1)
        predicted = self._predictions(points)
        fooled = inside & (predicted != self.labels[rows])
        if self.threat_model.reject is not None:
            fooled &= predicted != self.threat_model.reject
        self.standing[rows[fooled]] = False
        return self.standing[rows]


def climb(
    hunt: Hunt,
    rise: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int = 50,
    draws: int = 1,
    jitter: float = 0.0,
    generator: torch.Generator,
    from_image: bool = False,
    asked: int = 1,
) -> None:
    """PGD with steps that fall along half a cosine from 2 · eps; every point on the way is offered.

    rise: points and labels -> what to climb, [rows]. draws: how many gradients are averaged, of points that lie
    uniformly within jitter · eps around. asked: how often a point is offered, to a model that answers at random.
    """
    threat_model, geometry = hunt.threat_model, hunt.threat_model.geometry
    rows = hunt.rows
    images = hunt.images[rows]
    start = threat_model.eps * (2 * torch.rand(images.shape, generator=generator) - 1)
    points = images if from_image else threat_model.project(images + start, images)
    for step in range(steps + 1):
        for _ in range(asked):
            stands = hunt.offer(rows, points)
            rows, points = rows[stands], points[stands]
        if not len(rows) or step == steps:
            return
        images, labels, gradient = hunt.images[rows], hunt.labels[rows], torch.zeros_like(points)
        for _ in range(draws):
            noise = jitter * threat_model.eps * (2 * torch.rand(points.shape, generator=generator) - 1)
            looked = (points + noise).requires_grad_(True)
            with torch.enable_grad():
                gradient += torch.autograd.grad(rise(looked, labels).sum(), looked)[0].nan_to_num()
        length = threat_model.eps * (1 + math.cos(math.pi * step / steps))
        lengths = torch.full((len(rows),), length)
        moved = points + geometry.steepest(gradient, points, lengths, threat_model.box)
        points = threat_model.project(moved, images)


def away(logits: Logits, loss: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Away from the label."""
    return lambda points, labels: LOSSES[loss](logits(points), labels)


def to_class(logits: Logits, loss: str, rank: int) -> Callable[[Tensor, Tensor], Tensor]:
    """To the class that is so many places after the label, round the circle."""

    def rise(points: Tensor, labels: Tensor) -> Tensor:
        found = logits(points)
        return targeted_loss(loss, found, labels, (labels + rank) % found.shape[1])

    return rise


def everything(
    hunt: Hunt,
    ways: Sequence[Logits],
    twins: Sequence[Logits] = (),
    *,
    seed: int = 0,
    queries: int = 5000,
    starts: int = 3,
) -> None:
    """Every loss through every way, then points of the twins, then random search, on what still stands.

    starts: random ones, for every loss.
    """
    generator = torch.Generator().manual_seed(seed)
    for way in ways:
        for loss in ("margin", "scaled-ce", "ce"):
            climb(hunt, away(way, loss), generator=generator, from_image=True)
        for loss in ("margin", "scaled-ce"):
            for _ in range(starts):
                climb(hunt, away(way, loss), steps=100, generator=generator)
        for rank in range(1, CLASSES):
            climb(hunt, to_class(way, "margin", rank), generator=generator)
    for twin in twins:
        climb(hunt, away(twin, "margin"), generator=generator)
        for rank in range(1, CLASSES):
            climb(hunt, to_class(twin, "margin", rank), generator=generator, steps=20)
    black_box(hunt, queries=queries, seed=seed)


def black_box(hunt: Hunt, *, queries: int = 5000, seed: int = 0) -> None:
    """Square, on the untouched model."""
    rows = hunt.rows
    if len(rows):
        points = square(hunt.model, hunt.images[rows], hunt.labels[rows], hunt.threat_model, steps=queries, seed=seed)
        hunt.offer(rows, points)


def over_draws(hunt: Hunt, model: Logits, *, seed: int = 0) -> None:
    """EOT: gradients averaged over the model's own randomness."""
    generator = torch.Generator().manual_seed(seed)
    for loss in ("margin", "scaled-ce"):
        for _ in range(2):
            climb(hunt, away(model, loss), draws=10, generator=generator)


def shattered(hunt: Hunt, model: Logits, *, seed: int = 0) -> None:
    """Tramèr et al. (NeurIPS 2020): gradients that jump are averaged over a neighbourhood."""
    generator = torch.Generator().manual_seed(seed)
    for jitter in (0.3, 0.1, 1.0):
        for loss in ("margin", "scaled-ce"):
            climb(hunt, away(model, loss), draws=20, jitter=jitter, generator=generator)


def past_detector(
    hunt: Hunt, logits: Logits, strangeness: Callable[[Tensor, Tensor], Tensor], *, seed: int = 0, queries: int = 5000
) -> None:
    """Carlini and Wagner (AISec 2017): taken for another class, and near enough to it.

    strangeness: points and the classes that they are to be taken for -> [rows], above 1 where they are refused.
    """
    generator = torch.Generator().manual_seed(seed)

    def taken_for(rank: int, weight: float) -> Callable[[Tensor, Tensor], Tensor]:
        def rise(points: Tensor, labels: Tensor) -> Tensor:
            found, aims = logits(points), (labels + rank) % CLASSES
            lead = found.gather(1, aims[:, None]).squeeze(1) - found.scatter(1, aims[:, None], -math.inf).amax(1)
            return lead.clamp_max(1) - weight * (strangeness(points, aims) - 0.8).clamp_min(0)

        return rise

    for weight in (1.0, 5.0, 0.2):
        for rank in range(1, CLASSES):
            climb(hunt, taken_for(rank, weight), steps=100, generator=generator)
    black_box(hunt, queries=queries, seed=seed)
