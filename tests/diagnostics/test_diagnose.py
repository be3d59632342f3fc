"""What an evaluation says about itself: what each check sees, what it calls for, and what becomes of the number."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest
import torch
from short_attacks import shorten_adaptive_attacks
from torch import nn

from robustbench_local import Classifier, ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import PGD
from robustbench_local.attacks.attack import spec_text
from robustbench_local.diagnostics import diagnose, probes
from robustbench_local.diagnostics.adaptive_attacks import REASONS
from robustbench_local.diagnostics.check import Check, Measurement
from robustbench_local.diagnostics.probes import PROBES, Draw, Probing
from robustbench_local.diagnostics.verdict import verdict_of
from robustbench_local.engine.observer import Observer
from robustbench_local.engine.protocol import custom, resolve_attack
from robustbench_local.results import checks
from robustbench_local.results.checks import Sentences
from robustbench_local.results.reading import read_result
from robustbench_local.results.schema import Diagnostic

THREAT = ThreatModel("linf", "0.1")
AFTER = set(checks.AFTER_ATTACKS)
ALWAYS = {check.slug for check in diagnose.outcome_checks() if check.always} | {checks.PROBED}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits").subset(range(80))


class Rounded(nn.Module):
    """The bundled classifier behind an input of few grey levels, through which no gradient comes."""

    def __init__(self):
        super().__init__()
        self.inner = load_classifier("digits-cnn").module

    def forward(self, images):
        return self.inner((images * 8).round() / 8)


@pytest.fixture(scope="module")
def short_attacks():
    """The last adaptive attacks with a fraction of their steps: what they find is not tested here."""
    with pytest.MonkeyPatch.context() as patch:
        shorten_adaptive_attacks(patch)
        yield


ROUNDED, BALL = Classifier(Rounded(), name="rounded"), ThreatModel("linf", "0.15")


@pytest.fixture(scope="module")
def masked(digits, short_attacks, tmp_path_factory):
    """The evaluation of a masked model."""
    return evaluate(ROUNDED, digits, BALL, output=tmp_path_factory.mktemp("masked") / "whole.json")


def by_check(result):
    return {finding.slug: finding for finding in result.diagnostics}


def attacks_with(result, role):
    return [report for report in result.attacks if report.role == role]


def test_an_honest_model_is_trusted_for_no_more_passes_than_its_suite(digits):
    result = evaluate(load_classifier("digits-cnn-robust"), digits, THREAT).result
    found = by_check(result)
    assert result.verdict.status == "trusted"
    assert result.verdict.reasons == []
    assert found.keys() >= AFTER
    assert all(found[slug].status == "pass" for slug in ALWAYS - {checks.MANY_STEPS})
    assert all(found[slug].status == "skipped" for slug in AFTER - ALWAYS)
    assert [report.name for report in attacks_with(result, "diagnostic")] == [
        spec_text(resolve_attack(probe)) for probe in PROBES
    ]
    assert not attacks_with(result, "adaptive")
    suite = len(digits) + sum(each.forward_passes + each.backward_passes for each in attacks_with(result, "search"))
    assert result.cost.forward_passes + result.cost.backward_passes <= 2 * suite


def test_where_nothing_is_robust_nothing_is_asked(digits):
    result = evaluate(load_classifier("digits-cnn"), digits, ThreatModel("linf", "0.5")).result
    found = by_check(result)
    assert result.robust_accuracy.correct == 0
    assert result.verdict.status == "trusted"
    assert all(found[slug].status == "skipped" for slug in AFTER)
    assert not attacks_with(result, "diagnostic")


def test_without_diagnostics_nothing_is_trusted_outright(digits):
    result = evaluate(load_classifier("digits-cnn-robust"), digits, THREAT, diagnostics=False).result
    assert result.verdict.status == "not-assessed"
    assert not AFTER & by_check(result).keys()


def test_no_eps_needs_no_diagnosis(digits):
    result = evaluate(load_classifier("digits-cnn"), digits, ThreatModel("linf", 0)).result
    assert result.robust_accuracy == result.clean_accuracy
    assert not AFTER & by_check(result).keys()


def test_a_masked_model_is_seen_and_attacked_through_its_mask(masked):
    result = masked.result
    found = by_check(result)
    assert result.verdict.status == "doubtful"
    for check in (checks.GRADIENTS, checks.LAYERS, checks.GROWTH, checks.PLANTED, checks.PROBED, checks.ADAPTED):
        assert found[check].status == "warn", check
        assert found[check].advice, check
    assert "round" in found[checks.LAYERS].value
    suite = next(report for report in reversed(result.attacks) if report.role == "search")
    assert suite.robust_accuracy_after > 0.85
    assert result.robust_accuracy.value < 0.3
    through = next(report for report in result.attacks if report.name.startswith("bpda"))
    assert through.fooled > 20
    assert through.because == checks.PROBED
    assert {report.because for report in attacks_with(result, "adaptive")} <= REASONS


def test_what_no_attack_resolves_is_not_trusted(digits, monkeypatch):
    """With no remedy at hand, the search goes on missing what is known to exist."""
    from robustbench_local.diagnostics import diagnose as diagnostics
    from robustbench_local.diagnostics.adaptive_attacks import AdaptiveAttack

    (step,) = custom([PGD(steps=1, step_size=0.0, random_start=False)])[1]
    nothing = dataclasses.replace(step, stage=dataclasses.replace(step.stage, role="adaptive"))
    monkeypatch.setattr(probes, "PROBES", (spec_text(step.attack),))
    monkeypatch.setattr(diagnostics, "select_adaptive_attacks", lambda *given: [AdaptiveAttack(nothing, checks.GROWTH)])
    result = evaluate(ROUNDED, digits.subset(range(40)), BALL).result
    assert result.verdict.status == "not-trusted"
    failed = {finding.slug for finding in result.diagnostics if finding.status == "fail"}
    assert failed & {checks.GROWTH, checks.PLANTED}


def test_a_weak_attack_of_ones_own_is_found_out(digits, short_attacks):
    """A single step on an undefended network: the probes find more, and what they find counts."""
    model = load_classifier("digits-cnn")
    weak = evaluate(model, digits, BALL, attacks=[PGD(steps=1)]).result
    strong = evaluate(model, digits, BALL, diagnostics=False).result
    assert by_check(weak)[checks.PROBED].status == "warn"
    assert weak.verdict.status == "doubtful"
    assert weak.attacks[0].robust_accuracy_after > strong.robust_accuracy.value + 0.1
    assert abs(weak.robust_accuracy.value - strong.robust_accuracy.value) <= 0.02


def test_an_evaluation_stopped_among_the_adaptive_attacks_ends_like_another(digits, masked, tmp_path, short_attacks):
    class Impatient(Observer):
        def begin(self, stage, total, finished=0):
            if "saturating" in stage:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(ROUNDED, digits, BALL, output=tmp_path / "part.json", observer=Impatient())
    resumed = evaluate(ROUNDED, digits, BALL, output=tmp_path / "part.json", resume=True)
    assert resumed.samples == masked.samples

    def stages(result):
        return [(report.name, report.attacked, report.fooled, report.because) for report in result.attacks]

    assert stages(resumed.result) == stages(masked.result)
    assert resumed.result.diagnostics == masked.result.diagnostics


@pytest.mark.parametrize(
    ("statuses", "assessed", "expected"),
    [
        (["pass", "skipped"], True, "trusted"),
        (["pass", "warn"], True, "doubtful"),
        (["fail", "warn"], True, "not-trusted"),
        (["pass"], False, "not-assessed"),
        (["warn"], False, "doubtful"),
    ],
)
def test_the_verdict_is_the_gravest_finding(statuses, assessed, expected):
    findings = [Diagnostic(slug=f"c{n}", status=status, advice="a") for n, status in enumerate(statuses)]
    verdict = verdict_of(findings, assessed=assessed)
    assert verdict.status == expected
    assert verdict.reasons == [f"c{n}: a" for n, status in enumerate(statuses) if status in ("warn", "fail")]


def probing(found, remaining, n=100):
    asked = torch.arange(n)
    return Probing(Draw((asked[:0], asked)), asked, 0.5, found, remaining, n)


@pytest.mark.parametrize(
    ("first", "found", "expected"),
    [("pass", 0, "pass"), ("pass", 40, "fail"), ("warn", 0, "warn"), ("warn", 40, "warn")],
)
def test_probes_over_blocks_never_take_a_warning_back(first, found, expected):
    findings = [Diagnostic(slug=checks.PROBED, status=first), Diagnostic(slug=checks.GROWTH, status="pass")]
    (pooled, other) = diagnose.over_blocks(findings, [probing(0, 0), probing(found, 0)])
    assert (pooled.status, other) == (expected, findings[1])


def brightness(outcome):
    return Measurement(float(outcome.probe.images.mean()), len(outcome.probe))


def test_a_new_check_is_one_file_and_one_name(digits, monkeypatch, tmp_path, short_attacks):
    """Its sentences are its own: result files show them where no code knows the check."""
    module = types.ModuleType("robustbench_local.diagnostics.brightness_check")
    sentences = Sentences("images are dark", "images are bright", "")
    advice = "{n} images have a mean of {value:.1f}"
    module.CHECKS = (Check("images-dark", brightness, 0.01, advice, always=True, remeasure=True, sentences=sentences),)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(diagnose, "CHECK_FILES", (*diagnose.CHECK_FILES, "brightness_check"))
    output = tmp_path / "r.json"
    result = evaluate(load_classifier("digits-cnn-robust"), digits.subset(range(12)), THREAT, output=output).result
    for finding in (by_check(result)["images-dark"], by_check(read_result(output))["images-dark"]):
        assert (finding.status, finding.threshold, finding.n) == ("fail", 0.01, result.clean_accuracy.correct)
        assert finding.sentence == "images are bright"
        assert "images have a mean of 0." in finding.advice
    assert result.verdict.status == "not-trusted"


def test_slugs_of_checks_are_unique():
    slugs = [check.slug for check in diagnose.outcome_checks()] + [checks.PROBED]
    assert sorted(slugs) == sorted(checks.AFTER_ATTACKS)
