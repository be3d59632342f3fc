"""What is measured of a model: against linear models, where every measure is known, and models that break one rule."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustbench_local.attacks import PGD, ThreatModel
from robustbench_local.attacks.attack import initial_state
from robustbench_local.attacks.losses import logit_margin
from robustbench_local.attacks.randomness import sample_keys, uniform
from robustbench_local.diagnostics.active_test import active_test
from robustbench_local.diagnostics.indicators import (
    NOISE_RADIUS,
    ProbeSet,
    convergence,
    gain_by_scale,
    gradient_mismatch,
    margin_instability,
    success_by_radius,
)

SHAPE, EPS = (1, 4, 4), 0.1
ATTACK = PGD(steps=10, loss="scaled-ce", schedule="cosine", random_start=False)


class Linear(nn.Module):
    """Three classes of linear scores, changed by a front and an end."""

    def __init__(self, front=lambda images: images, end=lambda logits: logits):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(16, 3, generator=generator)
        self.front, self.end = front, end

    def forward(self, images):
        return self.end(self.front(images).flatten(1) @ self.weight)


def looked(model, n=24):
    images = 0.3 + 0.4 * torch.rand((n, *SHAPE), generator=torch.Generator().manual_seed(1))
    return ProbeSet(model, ThreatModel("linf", EPS), images, Linear()(images).argmax(1), torch.arange(n), 0)


def noisy(images):
    return images + 0.5 * torch.randn_like(images)


def comb(images):
    return images + 0.01 * torch.sin(3000 * images)


def test_instability_is_the_published_formula_on_margins():
    model = Linear()
    part = looked(model)
    before = logit_margin(model(part.images), part.labels)
    expected = []
    for draw in range(3):
        noise = NOISE_RADIUS * (2 * uniform(sample_keys(0, part.indices, "instability", draw), SHAPE) - 1)
        after = logit_margin(model(part.images + noise), part.labels)
        expected += [min(1.0, abs(float(a - b) / float(b))) for a, b in zip(after, before, strict=True)]
    assert margin_instability(part, draws=3) == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    torch.manual_seed(0)
    assert margin_instability(looked(Linear(front=noisy))) > 0.3 > 0.1 > margin_instability(part)


def test_a_linear_loss_rises_as_its_gradient_says_and_a_comb_does_not():
    assert float(gradient_mismatch(looked(Linear())).median()) < 1e-3
    assert float(gradient_mismatch(looked(Linear(front=comb))).median()) > 0.5
    torch.manual_seed(0)
    assert float(gradient_mismatch(looked(Linear(front=noisy))).median()) > 0.5


def scaled_unseen(images):
    """Doubled, and autograd does not know; the forward is that of the identity."""
    with torch.no_grad():
        images.mul_(2)
    return images / 2


def weighted(factors):
    """The identity, whose gradient is multiplied by a factor for each image in turn."""

    def front(images):
        weights = torch.as_tensor(factors).repeat(len(images))[: len(images), None, None, None]
        return images.detach() + weights * (images - images.detach())

    return front


def test_a_gradient_that_is_a_multiple_of_the_true_one_leads_the_same_way():
    assert float(gradient_mismatch(looked(Linear(front=scaled_unseen))).median()) < 1e-3
    for factor in (0.01, 0.3, 30.0):
        assert float(gradient_mismatch(looked(Linear(front=weighted([factor])))).median()) < 1e-3
    assert float(gradient_mismatch(looked(Linear(front=weighted([0.01, 0.1, 1.0, 10.0])))).median()) > 0.5
    assert float(gradient_mismatch(looked(Linear(front=weighted([-1.0])))).median()) == 1
    assert float(gradient_mismatch(looked(Linear(front=weighted([0.01])), n=2)).median()) > 0.9, (
        "too few images for a common multiple"
    )


def test_the_scale_matters_where_the_softmax_saturates():
    assert gain_by_scale(looked(Linear(end=lambda logits: 1e4 * logits)), "ce") > 0.1
    assert gain_by_scale(looked(Linear(end=lambda logits: 1e4 * logits)), "scaled-ce") == 0
    assert gain_by_scale(looked(Linear()), "ce") == 0


def test_a_wide_ball_holds_every_image_unless_the_attack_is_blind():
    everyone, blind = (
        success_by_radius(looked(Linear()), ATTACK, (1e6,)),
        success_by_radius(looked(Linear(front=lambda images: images.detach())), ATTACK, (2.0, 1e6)),
    )
    assert bool(everyone[0].all())
    assert not any(bool(each.any()) for each in blind)
    narrow, wide = success_by_radius(looked(Linear()), ATTACK, (0.5, 2.0))
    assert int(narrow.sum()) < int(wide.sum())
    assert bool((wide | ~narrow).all())


@dataclass(frozen=True)
class Scripted:
    """Points on a line through the image, one after the other, whatever the model says."""

    name: ClassVar[str] = "scripted"
    restarts: ClassVar[int] = 1
    targets: ClassVar[int] = 0
    levels: tuple[float, ...] = ()

    @property
    def steps(self):
        return len(self.levels)

    def start(self, threat_model, rows):
        return initial_state(rows, self._at(rows.images, 0))

    def step(self, model, threat_model, state):
        number = min(int(state["step"][0]) + 1, self.steps - 1)
        return {**state, "points": self._at(state["images"], number), "step": state["step"] + 1}

    def _at(self, images, number):
        return torch.full_like(images, self.levels[number])


class Mean(nn.Module):
    """The margin of class 0 is the mean pixel minus a half."""

    def forward(self, images):
        mean = images.flatten(1).mean(1)
        return torch.stack([mean - 0.5, torch.zeros_like(mean)], 1)


def grey():
    """Four images of grey level 0.9: the levels of a scripted search are the course of its margin."""
    labels = torch.zeros(4, dtype=torch.int64)
    return ProbeSet(Mean(), ThreatModel("linf", 1), torch.full((4, *SHAPE), 0.9), labels, torch.arange(4), 0)


def test_unfinished_and_lost_searches_are_told():
    part = grey()
    falling = tuple(0.9 - 0.01 * step for step in range(30))
    resting = tuple([0.9 - 0.03 * step for step in range(10)] + [0.6] * 20)
    found_and_lost = (0.9, 0.4, *[0.8] * 20)
    assert convergence(part, Scripted(falling)) == (1.0, 0)
    assert convergence(part, Scripted(resting)) == (0.0, 0)
    assert convergence(part, Scripted(found_and_lost)) == (0.0, 4)


def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 3))


def test_planted_points_are_found_with_gradients_and_not_without():
    """In the ball, too, the planted point is on the far side of all random ones by construction."""
    images = 0.2 + 0.6 * torch.rand((8, *SHAPE), generator=torch.Generator().manual_seed(3))
    attack = PGD(steps=40, loss="margin", schedule="cosine", momentum=0.25, restarts=2)
    seen = active_test(network(), ThreatModel("linf", EPS), images, attack)
    assert seen.images >= 6
    assert seen.successes >= seen.images / 2
    assert seen.random_successes < seen.successes

    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, points):
            return self.net(points.detach())

    blind = active_test(Blind(), ThreatModel("linf", EPS), images, attack)
    assert blind.images == seen.images
    assert blind.successes <= 1


def test_instability_and_misguidance_are_bounded_and_medians():
    """A margin that noise multiplies counts as 1, not more; and a few images that gradients mislead are no verdict."""
    torch.manual_seed(0)
    assert margin_instability(looked(Linear(front=lambda images: images + 50 * torch.randn_like(images)))) <= 1
    part = looked(Linear())

    class Mostly(nn.Module):
        """Linear but for every fourth row."""

        def forward(self, images):
            rows = (torch.arange(len(images)) % 4 == 0).float()[:, None]
            return (1 - rows) * Linear()(images) + rows * Linear(front=comb)(images)

    assert float(gradient_mismatch(dataclasses.replace(part, model=Mostly())).median()) < 1e-3


def test_a_success_at_the_last_step_is_not_lost():
    part = grey()
    assert convergence(part, Scripted((0.9, *[0.4] * 20))) == (0.0, 0)
