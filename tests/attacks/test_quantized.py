"""PGD on whole gray levels: every point that it shows the model is one that an image file could hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn import functional

from robustbench_local.attacks import Quantized, ThreatModel, run
from robustbench_local.attacks.attack import Rows, run_steps
from robustbench_local.attacks.norms import NORMS

THREATS = [("linf", 8 / 255), ("linf", 0.1), ("l2", 0.5), ("l1", 2.0)]
SLACK = 1e-7


def file_images(rows=8, seed=0):
    levels = torch.randint(256, (rows, 2, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return levels.float() / 255


def small_net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))


class Linear(nn.Module):
    """Class 1 minus class 0 is the product with the weight, less 9."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))

    def forward(self, images):
        score = (images * self.weight).flatten(1).sum(1) - 9
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.mark.parametrize(("eps", "levels"), [(8 / 255, 8), (0.1, 25), (0.5 / 255, 0)])
def test_the_optimum_of_a_linear_model_is_every_whole_level_that_ball_and_box_allow(eps, levels):
    images, model = file_images(), Linear()
    points = run(Quantized(steps=20), model, ThreatModel("linf", eps), images, torch.zeros(8, dtype=torch.int64))
    stored = (images * 255).round()
    best = (stored + levels * model.weight.sign()).clamp(0, 255)
    assert torch.equal((points * 255).round(), best)
    assert torch.equal(points, best.to(torch.uint8).float() / 255), "bit for bit as loaded from a file"


pixels = hnp.arrays(np.float32, (3, 2, 3, 3), elements=st.floats(0, 1, width=32))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
@given(images=pixels, others=pixels, eps=st.floats(1e-3, 1), stored=st.booleans())
@settings(max_examples=40, deadline=None)
def test_moved_points_are_on_the_grid_legal_and_between_point_and_image(norm, box, images, others, eps, stored):
    width = box[1] - box[0]
    images, others = torch.from_numpy(images), torch.from_numpy(others)
    images = box[0] + width * ((images * 255).round() / 255 if stored else images)
    threat_model = ThreatModel(norm, eps * width, box=box)
    points = threat_model.project(box[0] + width * others, images)
    moved = threat_model.to_gray_levels(points, images)
    far, near = ((each.double() - images.double()) * 255 / width for each in (points, moved))
    assert ((near - near.round()).abs() < 1e-3).all()
    assert (near.abs() <= far.abs() + 1e-3).all()
    assert (near.abs() > far.abs() - 1 - 1e-3).all(), "less than a level is lost"
    assert (near * far >= 0).all()
    assert (threat_model.geometry.distance(near * width / 255) <= (eps + SLACK) * width).all()
    assert moved.min() >= box[0]
    assert moved.max() <= box[1]


def plain_loop(model, images, labels, threat_model, steps):
    """PGD along the margin, its model asked at whole gray levels; the smallest margin and its point for every row."""
    points, best, found = images, torch.full((len(images),), torch.inf), images.clone()
    before = images
    for step in range(steps):
        seen = torch.stack(
            [image + ((point - image) * 255 + 1e-4 * (point - image).sign()).trunc() / 255 for point, image in
             zip(points, images, strict=True)]
        ).requires_grad_()  # fmt: skip
        logits = model(seen)
        right = logits.gather(1, labels[:, None]).squeeze(1)
        margin = right - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        (gradient,) = torch.autograd.grad(-margin.sum(), seen)
        better = margin.detach() < best
        best = torch.where(better, margin.detach(), best)
        found[better] = seen.detach()[better]
        length = torch.full((len(points),), threat_model.eps * (1 + np.cos(np.pi * step / steps)))
        ahead = points + threat_model.geometry.steepest(gradient, points, length.float(), (0.0, 1.0))
        ahead = threat_model.project(ahead, images)
        ahead = threat_model.project(ahead.lerp(points, 0.25) + 0.25 * (points - before), images)
        before, points = points, ahead
    return best, found


@pytest.mark.parametrize(("norm", "eps"), THREATS)
def test_it_agrees_with_a_plain_loop(norm, eps):
    model, images, threat_model = small_net(), file_images(), ThreatModel(norm, eps)
    with torch.no_grad():
        labels = model(images).argmax(1)
    attack = Quantized(steps=12, random_start=False)
    state = attack.start(threat_model, Rows(images, labels, torch.arange(8), labels))
    state = run_steps(attack, model, threat_model, state)
    best, found = plain_loop(model, images, labels, threat_model, 12)
    assert torch.allclose(state["best_margin"], best, atol=1e-4)
    assert torch.allclose(state["best_points"], found, atol=1e-5)


@pytest.mark.parametrize(("norm", "eps"), THREATS)
def test_the_model_sees_whole_gray_levels_only(norm, eps):
    """And the point that the attack returns is the best of them."""
    net, images, threat_model, shown = small_net(), file_images(), ThreatModel(norm, eps), []

    def model(points):
        shown.append(points.detach().clone())
        return net(points)

    with torch.no_grad():
        labels = net(images).argmax(1)
    attack = Quantized(steps=20)
    points = run(attack, model, threat_model, images, labels)
    levels = torch.cat([*shown, points]) * 255
    assert len(shown) > 10
    assert ((levels - levels.round()).abs() < 1e-3).all()
    assert (threat_model.geometry.distance(points - images) <= eps + SLACK).all()
    with torch.no_grad():
        margins = [threat_model.margin(net(seen), labels) for seen in shown]
        assert torch.allclose(threat_model.margin(net(points), labels), torch.stack(margins).amin(0), atol=1e-5)


def test_small_steps_add_up():
    images, threat_model = file_images(), ThreatModel("linf", 4 / 255)
    labels = torch.zeros(8, dtype=torch.int64)
    attack = Quantized(steps=40, step_size=0.3 / 255, schedule="constant", momentum=0.0, random_start=False)
    points = run(attack, Linear(), threat_model, images, labels)
    rest = Quantized(steps=2, step_size=0.3 / 255, schedule="constant", momentum=0.0, random_start=False)
    assert float(functional.l1_loss(points, images)) > 3 / 255
    assert torch.equal(run(rest, Linear(), threat_model, images, labels), images)
