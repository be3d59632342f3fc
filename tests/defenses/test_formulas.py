"""Training methods against plain loops, written anew from the papers' formulas and their authors' code."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.randomness import normal
from robustbench_local.defenses import (
    HAT,
    MART,
    RSLAD,
    TRADES,
    DefensiveDistillation,
    Examples,
    SmoothAdv,
    TrainingContext,
)

EPS, STEP, STEPS = 0.03, 0.006, 7
LINF = ThreatModel("linf", EPS)


def ascend(model, images, start, climb, *, step=STEP, steps=STEPS, eps=EPS):
    """Signed gradient ascent on climb(points) in ball and box, on the network in eval mode as the authors have it."""
    model.eval()
    points = start.clone()
    for _ in range(steps):
        points = points.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(climb(points), points)
        points = points.detach() + step * gradient.sign()
        points = torch.min(torch.max(points, images - eps), images + eps).clamp(0, 1)
    model.train()
    return points.detach()


def near(images, keys):
    return (images + 0.001 * normal(keys, images.shape[1:])).clamp(0, 1)


def kl(target, logits):
    """sum_k target_k (log target_k - log softmax(logits)_k), [rows]."""
    return (target * (target.log() - F.softmax(logits, 1).log())).sum(1)


def trades(model, images, labels, keys, teacher, beta=6.0):
    reference = F.softmax(model.eval()(images), 1).detach()
    points = ascend(model, images, near(images, keys), lambda x: kl(reference, model(x)).sum())
    logits, adversarial_logits = model(images), model(points)
    return F.cross_entropy(logits, labels) + beta * kl(F.softmax(logits, 1), adversarial_logits).sum() / len(images)


def mart(model, images, labels, keys, teacher, beta=5.0):
    start = images + EPS * LINF.geometry.random_start(images, 1.0, keys)
    points = ascend(model, images, start.clamp(0, 1), lambda x: F.cross_entropy(model(x), labels, reduction="sum"))
    logits, adversarial_logits = model(images), model(points)
    probabilities, weights = F.softmax(adversarial_logits, 1), F.softmax(logits, 1)
    two = torch.argsort(probabilities, dim=1)[:, -2:]
    rivals = torch.where(two[:, 1] == labels, two[:, 0], two[:, 1])
    boosted = F.cross_entropy(adversarial_logits, labels) + F.nll_loss(
        torch.log(1.0001 - probabilities + 1e-12), rivals
    )
    doubt = 1.0000001 - weights[torch.arange(len(images)), labels]
    return boosted + beta * (kl(weights, adversarial_logits) * doubt).sum() / len(images)


def hat(model, images, labels, keys, teacher, beta=2.5, gamma=0.5, reach=2.0):
    reference = F.softmax(model.eval()(images), 1).detach()
    points = ascend(model, images, near(images, keys), lambda x: kl(reference, model(x)).sum())
    helpers = (images + reach * (points - images)).clamp(0, 1)
    soft_labels = teacher(points).argmax(1)
    clean, adversarial_logits, helped = model(images), model(points), model(helpers)
    drift = kl(F.softmax(clean, 1), adversarial_logits).sum() / len(images)
    return F.cross_entropy(clean, labels) + beta * drift + gamma * F.cross_entropy(helped, soft_labels)


def rslad(model, images, labels, keys, teacher):
    soft_labels = F.softmax(teacher(images), 1).detach()
    points = ascend(model, images, near(images, keys), lambda x: kl(soft_labels, model(x)).sum())
    clean, adversarial_logits = model(images), model(points)
    return 5 / 6 * kl(soft_labels, adversarial_logits).mean() + 1 / 6 * kl(soft_labels, clean).mean()


def smooth_adv(model, images, labels, keys, teacher, sigma=0.25, draws=3):
    noise = torch.stack([normal(keys, images.shape[1:], draw) for draw in range(draws)]) * sigma

    def climb(points):
        average = torch.stack([F.softmax(model(points + part), 1) for part in noise]).mean(0)
        return F.nll_loss(average.log(), labels, reduction="sum")

    points = ascend(model, images, images, climb)
    everything = (points + noise).flatten(0, 1)
    return F.cross_entropy(model(everything), labels.repeat(draws))


def distillation(model, images, labels, keys, teacher, temperature=20.0):
    soft_labels = F.softmax(teacher(images) / temperature, 1).detach()
    return -temperature * (soft_labels * F.log_softmax(model(images) / temperature, 1)).sum(1).mean()


ATTACK = {"steps": STEPS, "step_size": STEP}


@pytest.mark.parametrize(
    ("objective", "formula"),
    [
        (TRADES(**ATTACK), trades),
        (MART(**ATTACK), mart),
        (HAT(**ATTACK), hat),
        (RSLAD(**ATTACK), rslad),
        (SmoothAdv(draws=3, **ATTACK), smooth_adv),
        (DefensiveDistillation(), distillation),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("seed", [1, 2])
def test_loss_gradients_and_running_statistics_are_those_of_the_formula(network, batch, objective, formula, seed):
    images, labels, keys = batch(rows=12)
    ours, theirs = network(seed=seed), network(seed=seed)
    recognised = network(seed=seed).eval()(images).argmax(1)
    labels = torch.where(torch.arange(12) < 6, recognised, labels)
    teacher = network(seed=7).eval().requires_grad_(False)
    learner = TrainingContext.of(ours, LINF, teacher=teacher)
    loss, _ = objective.loss(learner, objective.examples(learner, images, labels, keys))
    expected = formula(theirs, images, labels, keys, teacher)
    torch.testing.assert_close(loss, expected, rtol=2e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=2e-5, msg=lambda text, at=name: at + text)
    torch.testing.assert_close(ours.norm.running_var, theirs.norm.running_var)


@pytest.mark.parametrize(
    ("objective", "parts", "weights"),
    [
        (TRADES(beta=3.0), ("clean", "divergence"), (1, 3)),
        (MART(beta=2.0), ("boosted", "divergence"), (1, 2)),
        (HAT(beta=1.5, gamma=0.25), ("clean", "divergence", "helpers"), (1, 1.5, 0.25)),
        (RSLAD(clean=0.4), ("clean", "adversarial"), (0.4, 0.6)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_loss_is_the_weighted_sum_of_its_parts(network, batch, objective, parts, weights):
    learner = TrainingContext.of(network(), LINF, teacher=network(seed=7).eval())
    loss, named = objective.loss(learner, objective.examples(learner, *batch()))
    assert set(named) == set(parts)
    torch.testing.assert_close(loss.detach(), sum(named[p] * w for p, w in zip(parts, weights, strict=True)))


def test_divergence_of_a_prediction_that_has_not_moved_is_0_and_never_less(network, batch):
    images, labels, keys = batch()
    learner = TrainingContext.of(network(), LINF)
    examples = TRADES().examples(learner, images, labels, keys)
    learner.model.eval()
    _, still = TRADES().loss(learner, dataclasses.replace(examples, adversarial=images))
    _, adversarial_logits = TRADES().loss(learner, examples)
    assert still["divergence"] == 0
    assert adversarial_logits["divergence"] > 1e-4


def test_mart_looks_at_the_strongest_rival_whether_or_not_the_point_is_recognised():
    probabilities = torch.tensor([[0.7, 0.2, 0.1]])
    learner = TrainingContext(lambda images: probabilities.log().expand(len(images), 3) + 5, LINF, None)
    for label, own, rival in ((0, 0.7, 0.2), (1, 0.2, 0.7), (2, 0.1, 0.7)):
        image, labels = torch.zeros(1, 1), torch.tensor([label])
        loss, parts = MART().loss(learner, Examples(image, labels, labels, image))
        assert loss.item() == pytest.approx(-math.log(own) - math.log(1.0001 - rival), rel=1e-5)
        assert parts["divergence"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sure", [1.0, 1e4])
def test_mart_costs_a_finite_amount_where_a_rival_is_certain(sure):
    logits = torch.tensor([[0.0, sure, -sure]], requires_grad=True)
    learner = TrainingContext(lambda _: logits, LINF, None)
    image, label = torch.zeros(1, 1), torch.tensor([0])
    loss, parts = MART().loss(learner, Examples(image, label, label, image))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if sure > 1:
        assert parts["boosted"].item() == pytest.approx(sure - math.log(0.0001), abs=0.02)


def test_a_teacher_is_never_trained(network, batch):
    teacher = network(seed=7).eval()
    learner = TrainingContext.of(network(), LINF, teacher=teacher)
    for objective in (HAT(), RSLAD(), DefensiveDistillation()):
        loss, _ = objective.loss(learner, objective.examples(learner, *batch()))
        loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert learner.model.last.weight.grad is not None


def test_attack_of_smooth_adv_fools_the_smoothed_classifier_more_than_noise_does(network, batch):
    images, labels, keys = batch(rows=40)
    learner = TrainingContext.of(network().eval(), LINF)
    objective = SmoothAdv(draws=8)
    examples = objective.examples(learner, images, labels, keys)
    attacked, _ = objective.loss(learner, examples)
    noisy, _ = objective.loss(learner, dataclasses.replace(examples, adversarial=images))
    assert attacked > noisy + 0.04
