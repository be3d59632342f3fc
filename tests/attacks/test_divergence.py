"""The inner attack of TRADES: against a linear model, by its properties, and beside a loop written anew."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.attack import Rows
from robustbench_local.attacks.divergence import START_NOISE, DivergencePGD
from robustbench_local.attacks.randomness import normal, sample_keys

ROWS, SHAPE = 10, (3, 4, 4)
BALLS = [ThreatModel("linf", 0.08), ThreatModel("l2", 0.5), ThreatModel("l1", 3.0), ThreatModel("linf", 1e-5)]

every_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: f"{ball.norm}-{ball.eps:g}")


@pytest.fixture
def rows() -> Rows:
    generator = torch.Generator().manual_seed(4)
    images = (1.2 * torch.rand(ROWS, *SHAPE, generator=generator) - 0.1).clamp(0, 1)
    labels = torch.arange(ROWS) % 3
    return Rows(images, labels, sample_keys(0, torch.arange(ROWS), "divergence", 0), labels)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.SiLU(), nn.Linear(24, 3))


def ends(attack, model, ball, rows, reference):
    """Where the attack begins and where it ends."""
    state = attack.start(ball, rows)
    start_points, state["reference"] = state["points"], reference
    for _ in range(attack.steps):
        state = attack.step(model, ball, state)
    return start_points, state["points"]


def divergence(model, points, reference):
    return (torch.xlogy(reference, reference) - reference * model(points).log_softmax(1)).sum(1).detach()


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5}, {"schedule": "cosine"}])
def test_it_ends_at_the_corner_on_the_side_where_it_begins(settings):
    """Of two classes the divergence is convex in the difference of logits, and 0 at the image alone."""
    torch.manual_seed(1)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    images = 0.2 + 0.6 * torch.rand(ROWS, *SHAPE)
    keys = sample_keys(0, torch.arange(ROWS), "divergence", 0)
    zeros = torch.zeros(ROWS, dtype=torch.int64)
    ball = ThreatModel("linf", 0.08)
    weight = (linear[1].weight[1] - linear[1].weight[0]).detach()
    noise = START_NOISE * normal(keys, SHAPE)
    sides = (noise.flatten(1) @ weight).sign()
    assert set(sides.tolist()) == {-1.0, 1.0}
    reference = linear(images).softmax(1).detach()
    _, ends_at = ends(DivergencePGD(steps=20, **settings), linear, ball, Rows(images, zeros, keys, zeros), reference)
    expected = images + 0.08 * (sides[:, None] * weight.sign()).view_as(images)
    torch.testing.assert_close(ends_at, expected, rtol=0, atol=1e-6)


@every_ball
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.25}, {"schedule": "cosine"}])
def test_points_climb_inside_ball_and_box(model, rows, ball, settings):
    reference = model(rows.images).softmax(1).detach()
    start_points, ends_at = ends(DivergencePGD(steps=20, **settings), model, ball, rows, reference)
    for points in (start_points, ends_at):
        assert (ball.geometry.distance(points - rows.images) <= ball.eps * (1 + 1e-5) + 6e-8).all()
        assert points.min() >= 0
        assert points.max() <= 1
        assert not points.requires_grad
    if ball.eps > 1e-4:
        assert (divergence(model, ends_at, reference) > 10 * divergence(model, start_points, reference)).all()


def test_it_begins_a_thousandth_of_the_box_around_the_image(rows):
    ball = ThreatModel("linf", 0.08)
    start_points = DivergencePGD().start(ball, rows)["points"]
    torch.testing.assert_close(
        start_points, (rows.images + 0.001 * normal(rows.keys, SHAPE)).clamp(0, 1), rtol=0, atol=1e-7
    )
    assert (start_points != rows.images).flatten(1).any(1).all(), "at the image itself there is no way uphill"


@every_ball
def test_keys_decide_and_neither_labels_nor_targets_nor_other_rows(model, rows, ball):
    # In float64, because float32 sees only a few digits of the gradient this near to the image.
    model, rows = model.double(), rows._replace(images=rows.images.double())
    attack, reference = DivergencePGD(steps=5), model(rows.images).softmax(1).detach()
    _, whole = ends(attack, model, ball, rows, reference)
    aimed = ThreatModel(ball.norm, ball.eps, target=2)
    relabelled = rows._replace(labels=(rows.labels + 1) % 3, targets=rows.targets * 0)
    assert torch.equal(ends(attack, model, aimed, relabelled, reference)[1], whole)
    some = torch.tensor([7, 1, 4])
    alone = ends(attack, model, ball, Rows(*(part[some] for part in rows)), reference[some])[1]
    torch.testing.assert_close(alone, whole[some], rtol=0, atol=1e-7)
    assert not torch.equal(ends(attack, model, ball, rows._replace(keys=rows.keys + 1), reference)[1], whole)


def test_it_leads_away_from_what_it_is_given_and_not_from_the_prediction(model, rows):
    """Away from certainty of a class: that class' probability falls, whichever it is."""
    ball, certain = ThreatModel("linf", 0.08), torch.eye(3)
    for kind in range(3):
        _, ends_at = ends(DivergencePGD(steps=20), model, ball, rows, certain[kind].expand(ROWS, 3))
        assert ends_at.isfinite().all()
        fallen = model(ends_at).softmax(1)[:, kind] < model(rows.images).softmax(1)[:, kind]
        assert fallen.all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("momentum", [0.0, 0.25])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_it_agrees_with_a_plain_loop(model, rows, norm, momentum, schedule):
    eps, steps = (0.08, 6) if norm == "linf" else (0.5, 6)
    images = rows.images
    reference = model(images).softmax(1).detach()

    def back(points):
        distance = points - images
        if norm == "linf":
            return (images + distance.clamp(-eps, eps)).clamp(0, 1)
        lengths = distance.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return (images + distance * (eps / lengths).clamp(max=1)).clamp(0, 1)

    points = before = back(images + 0.001 * normal(rows.keys, SHAPE))
    for step in range(steps):
        length = 2.5 * eps / steps if schedule == "constant" else eps * (1 + math.cos(math.pi * step / steps))
        points = points.detach().requires_grad_(True)
        loss = F.kl_div(model(points).log_softmax(1), reference, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        gradient = gradient.sign() if norm == "linf" else gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        ahead = back(points.detach() + length * gradient)
        # Croce and Hein, ICML 2020, equation (1) of APGD.
        ahead = back(points + (1 - momentum) * (ahead - points) + momentum * (points - before)).detach()
        before, points = points.detach(), ahead
    attack = DivergencePGD(steps=steps, momentum=momentum, schedule=schedule)
    ends_at = ends(attack, model, ThreatModel(norm, eps), rows, reference)[1]
    torch.testing.assert_close(ends_at, points, rtol=0, atol=2e-4)


def test_it_costs_a_forward_and_a_backward_pass_a_step(rows):
    passes = []

    def counter(points):
        logits = points.flatten(1)[:, :3] * 2
        passes.append("forward")
        logits.register_hook(lambda _: passes.append("backward"))
        return logits

    ends(DivergencePGD(steps=4), counter, ThreatModel("linf", 0.08), rows, torch.full((ROWS, 3), 1 / 3))
    assert passes == ["forward", "backward"] * 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"step_size": -1.0}, "step_size is -1"),
        ({"momentum": 1.0}, "momentum is 1"),
        ({"loss": "margin"}, "has a fixed loss and start"),
        ({"random_start": False}, "leave out loss, random_start"),
        ({"targets": 2}, "and targets"),
    ],
)
def test_settings_that_it_would_not_heed_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        DivergencePGD(**settings)
