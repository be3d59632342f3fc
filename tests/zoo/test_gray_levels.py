"""Defenses that tell points that an image file could hold from all others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import adaptive
import away
import honest
import pytest
import torch
from adaptive import Hunt
from evaluations import accuracy, some, troubled
from partial import sturdy
from short_attacks import shorten_adaptive_attacks
from tasks import task, undefended
from torch import nn

from robustbench_local import Classifier, ThreatModel, evaluate
from robustbench_local.attacks import PGD, Quantized, run
from robustbench_local.diagnostics import indicators
from robustbench_local.results import checks

LINF, L2 = ThreatModel("linf", "0.0975"), ThreatModel("l2", "0.6")


class Told(nn.Module):
    """The weak network where the gate is closed, and elsewhere the sturdy one."""

    def __init__(self, gate):
        super().__init__()
        self.gate, self.weak, self.sturdy = gate, undefended("digits"), sturdy("digits")

    def forward(self, images):
        return torch.where(self.gate(images)[:, None], self.sturdy(images), self.weak(images))


class Blurred(Told):
    """Between the levels the sturdy network mixes in only as far as the pixels are off."""

    def forward(self, images):
        levels = images * away.GRAY_LEVELS
        off = ((levels - levels.round()).abs().flatten(1).mean(1)[:, None] * 20).clamp_max(1)
        return off * self.sturdy(images) + (1 - off) * self.weak(images)


@dataclass(frozen=True)
class Case:
    build: object
    threat_model: ThreatModel

    def classifier(self):
        return Classifier(self.build().eval(), name="told")


CASES = {
    "tamper-proof": Case(partial(away.tamper_proof, task()), LINF),
    "in-l2": Case(partial(Told, away.off_grid), L2),
    "upper-half": Case(partial(Told, lambda images: away.off_grid(images[..., :4, :])), LINF),
    "blurred": Case(partial(Blurred, away.off_grid), LINF),
}
HONEST = ("plain-onnx-0", "plain-copied-input-0")


def standing(classifier, attack, threat_model, images, labels):
    hunt = Hunt(classifier, images, labels, threat_model)
    hunt.offer(hunt.rows, run(attack, classifier, threat_model, images, labels)[hunt.rows])
    return hunt.standing


def jumping(classifier, threat_model, images, labels):
    right = classifier(images.clone()).argmax(1) == labels
    images, labels = images[right][:16], labels[right][:16]
    probe = indicators.ProbeSet(classifier, threat_model, images, labels, torch.arange(len(labels)), 0)
    return accuracy(indicators.jumps_on_gray_levels(probe))


@pytest.mark.parametrize("name", CASES)
def test_its_margin_jumps_and_the_quantized_attack_finds_what_others_miss(name):
    case, (images, labels) = CASES[name], some(60)
    classifier = case.classifier()
    assert jumping(classifier, case.threat_model, images, labels) > 0.5
    plain, quantized = (
        accuracy(standing(classifier, attack(steps=40, loss="margin"), case.threat_model, images, labels))
        for attack in (PGD, Quantized)
    )
    assert quantized < plain - 0.1


def honest_jumps(name, norm):
    one = honest.families()[name].within(norm)
    part = honest.part(one, 40)
    return jumping(one.build(), one.threat_model, part.images(range(len(part))), part.labels)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", HONEST)
def test_no_margin_of_an_honest_network_jumps(name, norm):
    assert honest_jumps(name, norm) == 0


@pytest.mark.soak
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", honest.families())
def test_no_margin_of_any_honest_network_jumps(name, norm):
    assert honest_jumps(name, norm) == 0


@pytest.mark.soak
@pytest.mark.parametrize("name", CASES)
def test_its_number_is_that_of_the_best_adaptive_attack(name, monkeypatch):
    shorten_adaptive_attacks(monkeypatch)
    case, part = CASES[name], task().test.subset(range(120))
    classifier = case.classifier()
    evaluation = evaluate(classifier, part, case.threat_model, suite="fast", device="cpu")
    hunt = Hunt(classifier, part.images(range(120)), part.labels, case.threat_model)
    for shown, way in ((away.on_grid, classifier.module.weak), (None, classifier.module.sturdy)):
        hunt.shown = shown
        adaptive.everything(hunt, [way], queries=200, starts=1)
    assert evaluation.result.verdict.status != "trusted"
    assert checks.GRAY_LEVELS in troubled(evaluation.result)
    assert evaluation.robust_accuracy.value <= accuracy(hunt.standing) + 0.02
