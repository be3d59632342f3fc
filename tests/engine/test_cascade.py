"""Suites: what each stage is run on, when the further ones run, and how many classes they work with."""

import functools
import itertools

import pytest
import torch
from torch import nn

from robustbench_local import Classifier, ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import PGD
from robustbench_local.attacks.suites import SUITES, Stage
from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.errors import UserError

THREAT = ThreatModel("linf", 0.1)
evaluate = functools.partial(evaluate, diagnostics=False)  # diagnostics have tests of their own


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture
def suite(monkeypatch):
    def make(*stages):
        monkeypatch.setitem(SUITES, "made-up", {1: stages})
        return "made-up"

    return make


def blobs(classes, n=24, seed=0):
    """Images and a linear model of so many classes that is right about all of them, some by very little."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(classes, 16, generator=generator))
        net[1].bias.zero_()
    images = torch.rand(n, 1, 4, 4, generator=generator)
    classifier = Classifier(net)
    return classifier, ArrayDataset(images, classifier(images).argmax(1))


@pytest.mark.parametrize("classes", [2, 3, 4, 8, 10, 100, 1000])
@pytest.mark.parametrize("name", ["standard", "autoattack"])
def test_suites_work_with_any_number_of_classes(monkeypatch, classes, name):
    """A linear model, so what can be broken is known: the margin against the ℓ1 distance of two weight rows."""
    short = tuple(
        Stage(
            attack=stage.attack.replace("square:steps=5000", "square:steps=20"),
            share=stage.share,
            least=stage.least,
            role=stage.role,
        )
        for stage in SUITES[name][max(SUITES[name])]
    )
    monkeypatch.setitem(SUITES, name, {1: short})
    classifier, dataset = blobs(classes)
    weights = classifier.module[1].weight
    images = dataset.images(range(len(dataset)))
    logits = classifier(images)
    eps = 0.02
    # Every pixel moves as far as ball and box let it, towards each other class.
    ways = weights[None] - weights[dataset.labels][:, None]
    flat = images.flatten(1)[:, None]
    room = torch.where(ways > 0, (1 - flat).clamp(max=eps), flat.clamp(max=eps))
    best = logits - logits.gather(1, dataset.labels[:, None]) + (ways.abs() * room).sum(2)
    best = best.scatter(1, dataset.labels[:, None], -torch.inf).amax(1)
    assert (best.abs() > 1e-5).all(), "no sample sits on the edge"
    found = evaluate(classifier, dataset, ThreatModel("linf", eps), suite=name)
    assert [sample.robust for sample in found.samples] == (best < 0).tolist()


def test_a_share_takes_the_samples_of_smallest_margin(digits, suite):
    model, weak = load_classifier("digits-cnn-robust"), "pgd:steps=1,step-size=0.001,random-start=false"
    first = evaluate(model, digits, THREAT, attacks=[PGD(steps=1, step_size=0.001, random_start=False)])
    standing = sorted((sample for sample in first.samples if sample.robust), key=lambda sample: sample.margin)
    share = evaluate(
        model, digits, THREAT, suite=suite(Stage(attack=weak), Stage(attack="pgd:steps=30,loss=scaled-ce", share=0.1))
    )
    report = share.result.attacks[1]
    assert report.attacked == -(-len(standing) // 10)
    assert report.share == 0.1
    nearest = {sample.index for sample in standing[: report.attacked]}
    assert {sample.index for sample in share.samples if sample.broken_by == report.name} <= nearest
    assert report.fooled > 0
    least = evaluate(model, digits, THREAT, suite=suite(Stage(attack=weak), Stage(attack="fgsm", share=0.01, least=50)))
    assert least.result.attacks[1].attacked == 50


def test_a_follow_up_needs_something_to_follow(digits, suite):
    model = load_classifier("digits-cnn-robust")
    nothing, much = "pgd:steps=1,step-size=0,random-start=false", "pgd:steps=10"
    ran = evaluate(
        model,
        digits,
        THREAT,
        suite=suite(
            Stage(attack=nothing),
            Stage(attack="fgsm", role="follow-up"),
            Stage(attack=much),
            Stage(attack="pgd:steps=20,loss=scaled-ce", role="follow-up"),
        ),
    ).result.attacks
    assert [report.name.partition(":")[0] for report in ran] == ["pgd", "pgd", "pgd"]
    assert ran[0].fooled == 0 < ran[1].fooled
    assert ran[2].role == "follow-up"


def test_the_same_attack_again_draws_other_numbers(digits, suite):
    model, one = load_classifier("digits-cnn-robust"), "pgd:steps=3"
    twice = evaluate(model, digits, THREAT, suite=suite(Stage(attack=one), Stage(attack=one))).result
    restarts = evaluate(model, digits, THREAT, attacks=[PGD(steps=3, restarts=2)]).result
    assert twice.robust_accuracy == restarts.robust_accuracy
    assert sum(each.fooled for each in twice.attacks) == restarts.attacks[0].fooled


class Rounded(nn.Module):
    """The bundled classifier behind an input of few grey levels, through which no gradient comes."""

    def __init__(self):
        super().__init__()
        self.inner = load_classifier("digits-cnn").module

    def forward(self, images):
        return self.inner((images * 8).round() / 8)


def test_without_gradients_the_tail_runs_and_says_why(digits, monkeypatch):
    stages = tuple(
        Stage(
            attack="square:steps=300" if stage.role == "tail" and "square" in stage.attack else stage.attack,
            share=stage.share,
            least=stage.least,
            role=stage.role,
        )
        for stage in SUITES["standard"][2]
        if "apgd" not in stage.attack and "fab" not in stage.attack
    )
    monkeypatch.setitem(SUITES, "standard", {1: stages})
    part = digits.subset(range(60))
    result = evaluate(Classifier(Rounded(), input_shape=(1, 8, 8)), part, THREAT, suite="standard").result
    assert result.attacks[-1].role == "tail"
    assert result.attacks[-1].fooled > 5
    assert result.verdict.status == "doubtful"
    assert any(each.slug == "gradient-free-probe-agrees" and each.status == "warn" for each in result.diagnostics)


def test_a_probe_that_wins_calls_the_tail(digits, suite):
    """A search that does nothing stands for a masked gradient: Square then does what it could not."""
    model = load_classifier("digits-cnn")
    result = evaluate(
        model,
        digits.subset(range(60)),
        THREAT,
        suite=suite(
            Stage(attack="pgd:steps=1,step-size=0,random-start=false"),
            Stage(attack="square:steps=200", share=0.2, role="probe"),
            Stage(attack="apgd:steps=20", role="tail"),
        ),
    ).result
    assert [each.role for each in result.attacks] == ["search", "probe", "tail"]
    assert result.attacks[2].fooled > 0
    finding = next(each for each in result.diagnostics if each.slug == "gradient-free-probe-agrees")
    assert finding.status == "warn"
    assert finding.value > finding.threshold


def test_sound_gradients_cost_no_tail(digits):
    model = load_classifier("digits-cnn-robust")
    result = evaluate(model, digits, THREAT, suite="standard").result
    assert {each.role for each in result.attacks} <= {"search", "follow-up", "probe"}
    finding = next(each for each in result.diagnostics if each.slug == "gradient-free-probe-agrees")
    assert finding.status == "pass"


def test_a_targeted_threat_steers_to_its_target_alone(digits):
    threat_model = ThreatModel("linf", 0.3, source=3, target=8)
    result = evaluate(load_classifier("digits-cnn"), digits, threat_model, suite="standard").result
    steered = next(each for each in result.attacks if each.parameters.get("targets") == 3)
    assert steered.attacked <= 20 or steered.forward_passes <= 21 * steered.attacked


class Hungry(nn.Module):
    """Has room for so many images at once. refused: a counter that all copies of the model share."""

    def __init__(self, room, refused=None):
        super().__init__()
        refused = itertools.count() if refused is None else refused
        self.inner, self.room, self.refuse = load_classifier("digits-cnn-robust").module, room, lambda: next(refused)

    def forward(self, images):
        if len(images) > self.room:
            self.refuse()
            raise torch.OutOfMemoryError("out of memory")
        return self.inner(images)


def test_out_of_memory_halves_the_batch_and_changes_no_verdict(digits):
    part = digits.subset(range(100))
    plain = evaluate(load_classifier("digits-cnn-robust"), part, THREAT, suite="standard")
    refused = itertools.count()
    hungry = Classifier(Hungry(33, refused), input_shape=(1, 8, 8), copy=False)
    found = evaluate(hungry, part, THREAT, suite="standard", batch_size=80)
    assert [(s.robust, s.broken_by, s.step) for s in found.samples] == [
        (s.robust, s.broken_by, s.step) for s in plain.samples
    ]
    assert 0 < next(refused) <= 4


def test_not_even_one_image_is_a_sentence(digits):
    with pytest.raises(UserError, match="not enough memory"):
        evaluate(Classifier(Hungry(0), input_shape=(1, 8, 8), copy=False), digits, THREAT, batch_size=4)
