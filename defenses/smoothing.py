"""Training for randomized smoothing (Cohen, Rosenfeld and Kolter, ICML 2019; Salman et al., NeurIPS 2019).

Gaussian augmentation: Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing" (ICML
2019). SmoothAdv: Salman et al., "Provably robust deep learning via adversarially trained smoothed classifiers"
(NeurIPS 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustbench_local.attacks import randomness
from robustbench_local.attacks.attack import Model
from robustbench_local.attacks.pgd import PGD
from robustbench_local.defenses.multi_step import MultiStep
from robustbench_local.defenses.objective import OBJECTIVES, Examples, Objective, Parts, TrainingContext, inner_attack


@OBJECTIVES.register
@dataclass(frozen=True, kw_only=True)
class Gaussian(Objective):
    """Cross-entropy on images with Gaussian noise.

    sigma: standard deviation of the noise, in pixel units.
    """

    name: ClassVar[str] = "gaussian"
    validation_metric: ClassVar[Literal["clean", "robust", "noisy"]] = "noisy"
    sigma: float = 0.25

    def __post_init__(self) -> None:
        _require_noise(self.sigma)

    def examples(self, context: TrainingContext, images: Tensor, labels: Tensor, keys: Tensor) -> Examples:  # noqa: ARG002
        return Examples(images, labels, keys, noisy(images, self.sigma, keys, 0))

    def loss(self, context: TrainingContext, examples: Examples) -> tuple[Tensor, Parts]:
        loss = context.cross_entropy(context.logits(examples.adversarial), examples.labels)
        return loss, {"noisy": loss.detach()}


@OBJECTIVES.register
@dataclass(frozen=True, kw_only=True)
class SmoothAdv(MultiStep):
    """Cross-entropy under noise at adversarial points of the smoothed classifier, estimated with a few draws.

    sigma: standard deviation of the noise, in pixel units. draws: noise samples per image, the same in attack and loss.
    steps, step_size: of the inner attack; step_size is in pixel units, by default 2.5 · eps / steps.
    """

    name: ClassVar[str] = "smooth-adv"
    validation_metric: ClassVar[Literal["clean", "robust", "noisy"]] = "noisy"
    sigma: float = 0.25
    draws: int = 2
    steps: int = 4
    step_size: float | None = None

    def __post_init__(self) -> None:
        _require_noise(self.sigma)
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}, but must be at least 1")
        super().__post_init__()

    def _attack(self) -> PGD:
        return PGD(steps=self.steps, step_size=self.step_size, random_start=False)

    def examples(self, context: TrainingContext, images: Tensor, labels: Tensor, keys: Tensor) -> Examples:
        noise = self._noise(images, keys)

        def smoothed(model: Model) -> Model:
            def log_probabilities(points: Tensor) -> Tensor:
                draws = torch.stack([model(points + part).log_softmax(1) for part in noise])
                return draws.logsumexp(0) - math.log(self.draws)

            return log_probabilities

        points = inner_attack(self._attack(), context, images, labels, keys, surrogate=smoothed)
        return Examples(images, labels, keys, points)

    def loss(self, context: TrainingContext, examples: Examples) -> tuple[Tensor, Parts]:
        noise = self._noise(examples.images, examples.keys)
        points = torch.cat([examples.adversarial + part for part in noise])
        loss = context.cross_entropy(context.logits(points), examples.labels.repeat(self.draws))
        return loss, {"adversarial": loss.detach()}

    def _noise(self, images: Tensor, keys: Tensor) -> list[Tensor]:
        return [noisy(torch.zeros_like(images), self.sigma, keys, draw) for draw in range(self.draws)]


def noisy(images: Tensor, sigma: float, keys: Tensor, draw: int) -> Tensor:
    """The images plus noise of one draw. Not clipped to the box, like the noise of the certificate."""
    return images + sigma * randomness.normal(keys, images.shape[1:], draw)


def _require_noise(sigma: float) -> None:
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma:g}, but must be above 0")
