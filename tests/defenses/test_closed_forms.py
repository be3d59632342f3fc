"""Training methods against a linear model of two classes, whose worst points are known in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.divergence import START_NOISE
from robustbench_local.attacks.randomness import normal
from robustbench_local.defenses import (
    FGSMRS,
    HAT,
    MART,
    NFGSM,
    PGDAT,
    RSLAD,
    TRADES,
    FreeAT,
    Gaussian,
    SmoothAdv,
    Standard,
    TrainingContext,
)

EPS = 0.05
LINF = ThreatModel("linf", EPS)


def points_of(objective, linear, batch, threat_model=LINF, teacher=None):
    return objective.examples(TrainingContext.of(linear, threat_model, teacher=teacher), *batch).adversarial


def uphill(linear, images, labels):
    """Along which the labels' cross-entropy rises, like images: the same wherever one stands."""
    weight = linear[1].weight.detach()
    return (weight[1 - labels] - weight[labels]).view_as(images)


def score(linear, images):
    """The second logit minus the first, which decides all that a model of two classes says."""
    return linear(images).detach().diff(dim=1).squeeze(1)


def corners(linear, images, sides):
    """Where the score is as high or, for a negative side, as low as it can be. sides: float [rows]."""
    weight = linear[1].weight.detach()
    return images + EPS * (sides[:, None].sign() * (weight[1] - weight[0]).sign()).view_as(images)


@pytest.mark.parametrize(
    "objective", [PGDAT(), PGDAT(steps=3, step_size=EPS), PGDAT(random_start=False), MART(), SmoothAdv()]
)
def test_attacks_on_the_cross_entropy_end_at_the_worst_corner(linear, inner, objective):
    images, labels, _ = inner
    expected = images + EPS * uphill(linear, images, labels).sign()
    torch.testing.assert_close(points_of(objective, linear, inner), expected, rtol=0, atol=1e-6)


def test_one_step_in_l2_ends_at_the_worst_point_of_the_sphere(linear, inner):
    images, labels, _ = inner
    direction = uphill(linear, images, labels).flatten(1)
    expected = images + 0.3 * (direction / direction.norm(dim=1, keepdim=True)).view_as(images)
    objective = PGDAT(steps=1, step_size=0.3, random_start=False)
    result = points_of(objective, linear, inner, ThreatModel("l2", 0.3))
    torch.testing.assert_close(result, expected.clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_pgd_at_is_cross_entropy_at_the_worst_corner(linear, inner, smoothing):
    images, labels, keys = inner
    learner = TrainingContext(linear, LINF, TrainingContext.of(linear, LINF).frozen_model, label_smoothing=smoothing)
    loss, parts = PGDAT().loss(learner, PGDAT().examples(learner, images, labels, keys))
    worst = images + EPS * uphill(linear, images, labels).sign()
    expected = F.cross_entropy(linear(worst), labels, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert parts["adversarial"] == loss
    for ours, theirs in zip(
        torch.autograd.grad(loss, list(linear.parameters())),
        torch.autograd.grad(expected, list(linear.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", [TRADES(), HAT(), TRADES(steps=4, step_size=EPS)])
def test_divergence_is_highest_at_the_corner_on_the_side_where_the_attack_begins(linear, inner, objective):
    """It is convex in the score and 0 at the image, so that either way leads uphill as far as the ball goes."""
    images, _, keys = inner
    sides = score(linear, images + START_NOISE * normal(keys, images.shape[1:])) - score(linear, images)
    assert (sides > 0).any()
    assert (sides < 0).any()
    result = points_of(objective, linear, inner)
    torch.testing.assert_close(result, corners(linear, images, sides), rtol=0, atol=1e-6)


def test_rslad_leads_away_from_what_the_teacher_says_and_not_from_the_student(linear, inner):
    images, _, keys = inner
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        teacher[1].bias += torch.tensor([0.2, 0.0])
    sides = score(linear, images + START_NOISE * normal(keys, images.shape[1:])) - score(teacher, images)
    assert (sides > 0.05).any()
    assert (sides < -0.05).any()
    result = points_of(RSLAD(), linear, inner, teacher=teacher)
    torch.testing.assert_close(result, corners(linear, images, sides), rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [EPS, 0.6])
def test_fgsm_rs_is_one_step_from_uniform_noise_projected_back(linear, inner, eps):
    images, labels, keys = inner
    ball = ThreatModel("linf", eps)
    # Without a step the noise itself shows.
    start = PGDAT(steps=1, step_size=1e-30).examples(TrainingContext.of(linear, ball), images, labels, keys).adversarial
    assert (start != images).any()
    assert (start - images).abs().amax() <= eps + 1e-6
    for step in (1.25, 0.5):
        adversarial_logits = start - images + step * eps * uphill(linear, images, labels).sign()
        expected = (images + adversarial_logits.clamp(-eps, eps)).clamp(0, 1)
        torch.testing.assert_close(points_of(FGSMRS(step=step), linear, inner, ball), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [EPS, 0.3, 0.6])
@pytest.mark.parametrize("settings", [{}, {"step": 1.5}, {"noise": 0.5, "step": 0.25}])
def test_n_fgsm_is_one_step_from_strong_noise_cut_by_the_box_alone(linear, inner, eps, settings):
    images, labels, keys = inner
    reach, step = settings.get("noise", 2.0) * eps, settings.get("step", 1.0) * eps
    start = (images + ThreatModel("linf", 1).geometry.random_start(images, reach, keys)).clamp(0, 1)
    expected = (start + step * uphill(linear, images, labels).sign()).clamp(0, 1)
    result = points_of(NFGSM(**settings), linear, inner, ThreatModel("linf", eps))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_noise_of_n_fgsm_fills_twice_the_ball(linear):
    grey = (torch.full((400, 3, 2, 2), 0.5), torch.zeros(400, dtype=torch.int64), torch.arange(400) * 7919)
    noise = points_of(NFGSM(step=1e-9), linear, grey) - 0.5
    assert 0.99 * 2 * EPS < noise.abs().max() <= 2 * EPS + 1e-6
    assert noise.std().item() == pytest.approx(2 * EPS / 3**0.5, rel=0.02), "uniform"


def test_free_moves_points_by_the_gradient_that_the_weights_got_and_ends(linear, inner):
    images, labels, keys = inner
    objective, learner = FreeAT(replays=4), TrainingContext.of(linear, LINF)
    examples = objective.examples(learner, images, labels, keys)
    expected = examples.adversarial.detach()
    assert 0.9 * EPS < (expected - images).abs().max() <= EPS + 1e-6
    for replay in range(4):
        torch.testing.assert_close(examples.adversarial.detach(), expected, rtol=0, atol=1e-6)
        assert examples.replay == replay
        assert examples.adversarial.is_leaf
        assert examples.adversarial.requires_grad
        objective.loss(learner, examples)[0].backward()
        adversarial_logits = expected + EPS * uphill(linear, images, labels).sign()
        expected = images + (adversarial_logits - images).clamp(-EPS, EPS)
        with torch.no_grad():
            linear[1].weight.neg_()  # the step is that of the weights that were learnt with, not of those that are now
        following = objective.next_replay(learner, examples)
        if replay < 3:
            assert following.images is images
            assert following.labels is labels
            assert following.keys is keys
            examples = following
    assert following is None


def test_only_free_learns_from_the_same_batch_again(linear, inner):
    learner = TrainingContext.of(linear, LINF)
    for objective in (Standard(), PGDAT(), NFGSM(), FGSMRS()):
        assert objective.next_replay(learner, objective.examples(learner, *inner)) is None


def test_gaussian_adds_noise_of_its_deviation_and_nothing_else(linear):
    images = torch.rand(300, 3, 2, 2)
    keys = torch.arange(300) * 7919
    result = points_of(Gaussian(sigma=0.4), linear, (images, torch.zeros(300, dtype=torch.int64), keys))
    torch.testing.assert_close(result, images + 0.4 * normal(keys, (3, 2, 2)), rtol=0, atol=1e-6)
    assert (result - images).std().item() == pytest.approx(0.4, rel=0.05)


def test_standard_is_cross_entropy_at_the_images(linear, inner):
    images, labels, keys = inner
    learner = TrainingContext.of(linear, LINF)
    loss, parts = Standard().loss(learner, Standard().examples(learner, images, labels, keys))
    assert loss == F.cross_entropy(linear(images), labels) == parts["clean"]


def test_temperature_softens_the_loss_and_leaves_its_gradient_as_long(linear, inner):
    images, labels, keys = inner
    logits = linear(images).detach().requires_grad_(True)
    learner = TrainingContext(lambda _: logits, LINF, TrainingContext.of(linear, LINF).frozen_model)
    objective = Standard(temperature=20)
    loss, _ = objective.loss(learner, objective.examples(learner, images, labels, keys))
    soft_labels = F.one_hot(labels, 2)
    torch.testing.assert_close(loss, -20 * (soft_labels * (logits / 20).log_softmax(1)).sum(1).mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, ((logits / 20).softmax(1) - soft_labels) / len(images))


def test_a_helper_lies_reach_times_as_far_out_in_the_box_and_is_named_by_the_teacher(linear, inner):
    images, labels, keys = inner
    seen = []

    def model(points):
        seen.append(points)
        return linear(points)

    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    learner = TrainingContext(model, LINF, TrainingContext.of(linear, LINF).frozen_model, teacher)
    objective = HAT(reach=6.0)
    examples = objective.examples(learner, images, labels, keys)
    _, parts = objective.loss(learner, examples)
    helpers = (images + 6 * (examples.adversarial - images)).clamp(0, 1)
    assert ((examples.adversarial - images).abs() > 0.99 * EPS).all()
    assert (helpers == 0).any()
    assert (helpers == 1).any()
    assert any(torch.equal(points, helpers) for points in seen)
    soft_labels = teacher(examples.adversarial).argmax(1)
    assert (soft_labels != labels).any(), "the teacher has a mind of its own"
    torch.testing.assert_close(parts["helpers"], F.cross_entropy(linear(helpers), soft_labels).detach())
