"""Every broken defense is broken as it says, is flagged, and its number is lowered."""

import honest
import members
import pytest
import torch
import torch.nn.functional as F
from adaptive import Hunt
from evaluations import accuracy, evaluated, require_seen, some, troubled
from short_attacks import shorten_adaptive_attacks
from tasks import task

from robustbench_local import Classifier, ThreatModel
from robustbench_local.attacks import pgd
from robustbench_local.results import checks

GAP = 0.15
"""By how much a broken defense claims too much, at least."""
NO_GRADIENT = ("distilled", "hot", "smoothed", "saturated", "quantised", "jpeg", "thermometer", "detached", "softmaxes")
"""Those whose cross-entropy has the gradient 0 at most images."""
SEEN_BY = {
    "saturated": {checks.GRADIENTS, checks.GROWTH},
    "quantised": {checks.LAYERS, checks.GROWTH, checks.PLANTED},
    "jpeg": {checks.GRADIENTS, checks.GROWTH, checks.PLANTED},
    "random": {checks.DETERMINISTIC},
    "k-winners": {checks.GRADIENT_PREDICTS_LOSS},
    "thermometer": {checks.GRADIENTS, checks.GROWTH, checks.PLANTED},
    "detached": {checks.LAYERS, checks.GROWTH, checks.PLANTED},
    "softmaxes": set(),
    "flat": set(),
    "rejecting": set(),
}
"""Checks that must warn, whatever other checks do."""


def gradients(classifier, images, labels):
    """Of the cross-entropy, [N, pixels]; 0 where there is none."""
    asked = images.clone().requires_grad_(True)
    loss = F.cross_entropy(classifier(asked), labels, reduction="sum")
    return torch.autograd.grad(loss, asked)[0].flatten(1) if loss.requires_grad else torch.zeros_like(images.flatten(1))


class Temperate(torch.nn.Module):
    """Logits that no softmax saturates on."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images):
        return self.factor * self.model(images)


def broken_by_much(name, images, labels, *, shortened):
    member = members.member(name)
    classifier = member.build()
    clean = accuracy(Hunt(classifier, images, labels, member.threat_model).standing)
    claimed = accuracy(member.claimed(classifier, images, labels))
    if shortened:
        member = members.member(name, queries=50, enough=int(min(0.3, claimed - GAP) * len(images)))
    left = accuracy(member.adaptive(classifier, images, labels, member.threat_model))
    assert clean >= 0.85, "nobody would use it"
    assert left <= claimed - GAP, "it claims no more than it has"
    assert left <= 0.31


@pytest.mark.parametrize("name", members.EARLIER)
def test_a_broken_defense_claims_more_than_it_has(name):
    broken_by_much(name, *some(), shortened=True)


@pytest.mark.soak
@pytest.mark.parametrize("name", members.EARLIER)
def test_a_broken_defense_claims_more_than_it_has_of_all_digits(name):
    broken_by_much(name, *some(360), shortened=False)


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_the_cross_entropy_has_no_gradient(name):
    images, labels = some()
    classifier = members.member(name).build()
    assert accuracy((gradients(classifier, images, labels) == 0).all(1)) >= 0.5


def test_the_flat_ones_logits_have_no_gradient():
    images, labels = some()
    soft = Classifier(Temperate(members.member("flat").build(), 1e-3), copy=False)
    assert accuracy((gradients(soft, images, labels) == 0).all(1)) >= 0.2


def test_an_undefended_network_has_gradients():
    images, labels = some()
    assert accuracy((gradients(honest.undefended_honest().build(), images, labels) == 0).all(1)) == 0


def test_the_random_one_answers_anew_at_every_call():
    images, _ = some()
    classifier = members.member("random").build()
    assert not torch.equal(classifier(images), classifier(images))


def test_the_winners_logits_jump():
    """Along a straight line nearly all of a change lies in few of many small steps."""
    images, _ = some(20)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        direction = 0.15 * torch.randn_like(images).sign()

    def largest(classifier):
        """The largest step's share of the whole way."""
        way = torch.stack([classifier(images + part * direction) for part in torch.linspace(0, 1, 501)])
        steps = (way[1:] - way[:-1]).abs().amax(2)
        return (steps.amax(0) / steps.sum(0)).median()

    assert largest(members.member("k-winners").build()) > 0.05
    assert largest(honest.undefended_honest().build()) < 0.01


def test_the_overfitted_one_resists_its_own_step_alone():
    images, labels = some()
    member = members.member("overfitted")
    stands = {attack: accuracy(member.claimed(member.build(), images, labels, attack)) for attack in ("fgsm", "pgd")}
    assert stands["pgd"] <= stands["fgsm"] - GAP


def test_the_detector_refuses_what_a_naive_attack_finds():
    images, labels = some()
    member = members.member("rejecting")
    classifier = member.build()
    points = pgd(classifier, images, labels, ThreatModel("linf", member.threat_model.eps), steps=20)
    predicted = classifier(points).argmax(1)
    refused, fooled = accuracy(predicted == 10), accuracy((predicted != labels) & (predicted != 10))
    assert refused >= 0.25
    assert fooled > 0
    assert accuracy(classifier(images).argmax(1) == 10) <= 0.1


def test_a_refusal_and_a_point_outside_the_ball_do_not_count():
    images, labels = some(3)
    points = images.clone()
    points[1] = (points[1] + 0.5).clamp(0, 1)

    def answers(asked):
        """Right about the images themselves; else: refused, wrong, wrong."""
        wrong = torch.stack([torch.tensor(10), (labels[1] + 1) % 10, (labels[2] + 1) % 10])
        return F.one_hot(labels if answers.calls == 0 else wrong, 11).float()

    answers.calls = 0
    hunt = Hunt(answers, images, labels, ThreatModel("linf", 0.1, reject=10))
    answers.calls = 1
    assert hunt.offer(torch.arange(3), points).tolist() == [True, True, False]
    assert hunt.standing.tolist() == [True, True, False]


def test_members_are_built_the_same_every_time():
    images, _ = some()
    once, again = members.member("quantised").build().module, members.KINDS["quantised"].make(task())
    assert torch.equal(once(images), again(images))


FEW_LEFT = ("distilled", "hot", "smoothed", "overfitted")
"""Those of which the newest suites leave so little that 30 images show nothing; the soak asks all."""


@pytest.mark.parametrize("name", [name for name in members.EARLIER if name != "jpeg"])  # which is slow, and a variant
def test_a_broken_defense_is_flagged_and_its_number_lowered(name, monkeypatch):
    shorten_adaptive_attacks(monkeypatch)
    member = members.member(name)
    evaluation, part = evaluated(member, 30)
    claimed = member.claimed(member.build(), part.images(range(len(part))), part.labels)
    if name not in FEW_LEFT:
        assert evaluation.result.verdict.status in ("doubtful", "not-trusted")
        assert troubled(evaluation.result) >= SEEN_BY[name]
    assert evaluation.robust_accuracy.correct < int(claimed.sum()) - 0.1 * len(part), "the claim does not stand"


@pytest.mark.soak
@pytest.mark.parametrize("suite", ["fast", "standard"])
@pytest.mark.parametrize("name", members.EARLIER)
def test_a_broken_defense_is_never_trusted(name, suite):
    require_seen(name, suite)
