"""The active test: Zimmermann et al., "Increasing confidence in adversarial robustness evaluations" (NeurIPS 2022).

An attack that cannot find an adversarial example that is known to be there says nothing by finding none. So the
readout is replaced by one that tells random points inside the ball from a single one on its edge: the attack must find
a point that the new readout takes for the one on the edge.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustbench_local.attacks.attack import Attack, Model, run
from robustbench_local.attacks.randomness import normal, sample_keys
from robustbench_local.attacks.threat_model import ThreatModel

INNER = 100
"""Points inside the ball; the paper takes 999 and more."""
WITHIN = 0.95
"""How far out they lie at most, as a share of eps."""
ABOVE = 0.25
"""Where the threshold lies on the way from the highest random point to the planted one."""
RIDGE = 1e-3


class ActiveTestResult(NamedTuple):
    """Of how many images a planted point could be told apart, on how many the attack found such a point, and on how
    many further random points did.
    """

    images: int
    found: int
    by_chance: int


class _Readout(nn.Module):
    """[below, above]: whether a linear function of the model's features is above its threshold."""

    def __init__(self, features: Model, weights: Tensor, threshold: Tensor):
        super().__init__()
        self._features, self._weights, self._threshold = features, weights, threshold

    def forward(self, points: Tensor) -> Tensor:
        score = self._features(points) @ self._weights - self._threshold
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Features:
    """What the last linear layer of a model is given, float [rows, features]; its logits where there is none."""

    def __init__(self, model: nn.Module):
        self._model = model
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self._last = layers[-1] if layers else None

    def __call__(self, points: Tensor) -> Tensor:
        seen: list[Tensor] = []
        if self._last is None:
            return self._model(points)
        handle = self._last.register_forward_pre_hook(lambda module, given: seen.append(given[0]))  # noqa: ARG005
        try:
            logits = self._model(points)
        finally:
            handle.remove()
        usable = len(seen) == 1 and seen[0].dim() == 2 and len(seen[0]) == len(points)
        return seen[0].float() if usable else logits


def active_test(
    model: nn.Module, threat_model: ThreatModel, images: Tensor, attack: Attack, *, seed: int = 0, batch_size: int = 32
) -> ActiveTestResult:
    """Plant a point for every image and let the attack look for it.

    images: float [rows, ...] in the box. attack: of the family that the evaluation relied on.
    """
    features, counts = Features(model), [0, 0, 0]
    untargeted = ThreatModel(threat_model.norm, threat_model.eps, threat_model.box)
    label = torch.zeros(1, dtype=torch.int64, device=images.device)
    for row, image in enumerate(images.split(1)):
        points = _random_points(untargeted, image, seed + row)
        with torch.no_grad():
            told = torch.cat([features(part) for part in points.split(batch_size)])
        inner, further, edge = told[:INNER], told[INNER:-1], told[-1]
        weights = _direction(inner, edge)
        scores = inner @ weights
        highest, planted = scores.max(), edge @ weights
        if not bool(planted - highest > 1e-3 * (planted - scores.mean()).abs()):
            continue
        threshold = highest + ABOVE * (planted - highest)
        readout = _Readout(features, weights, threshold)
        found = run(attack, readout, untargeted, image, label, seed=seed + row)
        with torch.no_grad():
            counts[1] += int(readout(found).argmax(1)[0])
        counts[0] += 1
        counts[2] += bool((further @ weights > threshold).any())
    return ActiveTestResult(*counts)


def _random_points(threat_model: ThreatModel, image: Tensor, seed: int) -> Tensor:
    """INNER points inside the ball, as many again, and one on its edge, float [2 · INNER + 1, ...]."""
    indices = torch.arange(2 * INNER + 1, device=image.device)
    keys = sample_keys(seed, indices, "active-test", 0)
    images = image.expand(len(keys), *image.shape[1:])
    noise = threat_model.geometry.random_start(images, WITHIN * threat_model.eps, keys)
    far = normal(keys[-1:], image.shape[1:])
    length = torch.full((1,), threat_model.eps, device=image.device)
    noise = torch.cat([noise[:-1], threat_model.geometry.steepest(far, image, length, threat_model.box)])
    return threat_model.project(images + noise.to(image.dtype), images)


def _direction(inner: Tensor, edge: Tensor) -> Tensor:
    """The direction that best tells one point from many, [features]: linear discriminant analysis (Fisher, 1936), with
    a little of the mean variance added to every feature.
    """
    centred = (inner - inner.mean(0)).double()
    covariance = centred.T @ centred / len(inner)
    ridge = RIDGE * covariance.diagonal().mean().clamp_min(1e-30)
    covariance = covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    weights = torch.linalg.solve(covariance, edge.double() - inner.double().mean(0))
    return (weights / weights.norm().clamp_min(1e-30)).to(inner.dtype)
