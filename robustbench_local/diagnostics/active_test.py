"""The active test: Zimmermann et al., "Increasing confidence in adversarial robustness evaluations" (NeurIPS 2022).

An attack that misses adversarial examples which are known to exist proves nothing where it finds none. So the model's
readout is replaced by one that separates random points inside the ball from a single point on its boundary, and the
attack has to find a point that the new readout assigns to the one on the boundary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustbench_local.attacks.attack import Attack, run
from robustbench_local.attacks.randomness import normal, sample_keys
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.diagnostics.features import Features, FeaturesMissing, Logits

INNER_POINTS = 48
"""Random points inside the ball; the paper uses 999 and more."""
INNER_RADIUS = 0.95
"""Their largest distance from the image, in multiples of eps."""
THRESHOLD_POSITION = 0.25
"""Where the readout's threshold is, between the highest score of a random point (0) and the planted one's (1)."""
RIDGE = 1e-3


class ActiveTestResult(NamedTuple):
    """images: for how many the planted point can be separated. successes: for how many of these the attack succeeds.

    random_successes: for how many of these further random points succeed.
    """

    images: int
    successes: int
    random_successes: int


class _Readout(nn.Module):
    """Two logits: 0, and how far a linear function of the model's features is above its threshold."""

    def __init__(self, features: Logits, weights: Tensor, threshold: Tensor):
        super().__init__()
        self._features, self._weights, self._threshold = features, weights, threshold

    def forward(self, points: Tensor) -> Tensor:
        score = self._features(points) @ self._weights - self._threshold
        return torch.stack([torch.zeros_like(score), score], dim=1)


def active_test(
    model: nn.Module, threat_model: ThreatModel, images: Tensor, attack: Attack, *, seed: int = 0, batch_size: int = 32
) -> ActiveTestResult:
    """Plant an adversarial example for every image and attack.

    images: float [rows, ...] in the box. attack: an attack like those that the evaluation relied on. The readout is of
    the model's features, or of its logits where the features of some point are missing.
    """
    try:
        return _active_test(Features(model), threat_model, images, attack, seed=seed, batch_size=batch_size)
    except FeaturesMissing:
        return _active_test(Logits(model), threat_model, images, attack, seed=seed, batch_size=batch_size)


def _active_test(
    features: Logits, threat_model: ThreatModel, images: Tensor, attack: Attack, *, seed: int, batch_size: int
) -> ActiveTestResult:
    counts = [0, 0, 0]
    untargeted = ThreatModel(threat_model.norm, threat_model.eps, threat_model.box)
    label = torch.zeros(1, dtype=torch.int64, device=images.device)
    for row, image in enumerate(images.split(1)):
        points = _random_points(untargeted, image, seed + row)
        with torch.no_grad():
            values = torch.cat([features(part) for part in points.split(batch_size)])
        features.require_own_rows(points, values)
        inner, further, planted = values[:INNER_POINTS], values[INNER_POINTS:-1], values[-1]
        weights = _direction(inner, planted)
        scores, planted_score = inner @ weights, planted @ weights
        highest = scores.max()
        if not bool(planted_score - highest > 1e-3 * (planted_score - scores.mean()).abs()):
            continue
        threshold = highest + THRESHOLD_POSITION * (planted_score - highest)
        readout = _Readout(features, weights, threshold)
        adversarial = run(attack, readout, untargeted, image, label, seed=seed + row)
        with torch.no_grad():
            counts[1] += int(readout(adversarial).argmax(1)[0])
        counts[0] += 1
        counts[2] += bool((further @ weights > threshold).any())
    return ActiveTestResult(*counts)


def _random_points(threat_model: ThreatModel, image: Tensor, seed: int) -> Tensor:
    """Twice INNER_POINTS points inside the ball, and one on its boundary, float [2 · INNER_POINTS + 1, ...]."""
    indices = torch.arange(2 * INNER_POINTS + 1, device=image.device)
    keys = sample_keys(seed, indices, "active-test", 0)
    images = image.expand(len(keys), *image.shape[1:])
    noise = threat_model.geometry.random_start(images, INNER_RADIUS * threat_model.eps, keys)
    direction = normal(keys[-1:], image.shape[1:])
    length = torch.full((1,), threat_model.eps, device=image.device)
    noise = torch.cat([noise[:-1], threat_model.geometry.steepest(direction, image, length, threat_model.box)])
    return threat_model.project(images + noise.to(image.dtype), images)


def _direction(inner: Tensor, planted: Tensor) -> Tensor:
    """The direction that best separates one point from many, [features].

    Linear discriminant analysis (Fisher, 1936), with a little of the mean variance added to every feature. inner: float
    [points, features]. planted: float [features].
    """
    centered = (inner - inner.mean(0)).double()
    covariance = centered.T @ centered / len(inner)
    ridge = RIDGE * covariance.diagonal().mean().clamp_min(1e-30)
    covariance = covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    weights: Tensor = torch.linalg.solve(covariance, planted.double() - inner.double().mean(0))
    unit: Tensor = weights / weights.norm().clamp_min(1e-30)
    return unit.to(inner.dtype)
