"""Every broken defense is flagged and its number lowered; no honest model raises a warning."""

import honest
import members
import pytest
from tasks import task

from robustbench_local import evaluate
from robustbench_local.diagnostics import adaptive_attacks
from robustbench_local.engine.protocol import resolve_attack
from robustbench_local.results import checks

SEEN_BY = {
    "distilled": {checks.GRADIENTS, checks.CROSS_ENTROPY},
    "hot": {checks.GRADIENTS, checks.CROSS_ENTROPY},
    "smoothed": {checks.CROSS_ENTROPY},
    "saturated": {checks.GRADIENTS, checks.GROWTH},
    "quantised": {checks.LAYERS, checks.GROWTH, checks.PLANTED},
    "jpeg": {checks.GRADIENTS, checks.GROWTH, checks.PLANTED},
    "random": {checks.DETERMINISTIC, checks.STABLE},
    "k-winners": {checks.GRADIENT_PREDICTS_LOSS},
    "thermometer": {checks.GRADIENTS, checks.GROWTH, checks.PLANTED},
    "detached": {checks.LAYERS, checks.GROWTH, checks.PLANTED},
    "overfitted": {checks.MANY_STEPS},
    "softmaxes": set(),
    "flat": set(),
    "rejecting": set(),
}
"""Checks that must warn, whatever other checks do."""


@pytest.fixture
def short_square(monkeypatch):
    """The last adaptive attack with a tenth of its queries; `make soak` runs it whole."""
    monkeypatch.setattr(adaptive_attacks, "resolve_attack", lambda text: resolve_attack(text.replace("5000", "500")))


def evaluated(one, samples=None, suite="fast"):
    test = one.dataset() if isinstance(one, honest.Honest) else task().test
    part = test.subset(range(min(samples or len(test), len(test))))
    return evaluate(one.build(), part, one.threat_model, suite=suite, device="cpu"), part


def troubled(result):
    return {finding.slug for finding in result.diagnostics if finding.status in ("warn", "fail")}


@pytest.mark.parametrize("name", [name for name in members.KINDS if name != "jpeg"])  # which is slow, and a variant
def test_a_broken_defense_is_flagged_and_its_number_lowered(name, short_square):
    member = members.member(name)
    evaluation, part = evaluated(member, 60)
    claimed = member.claimed(member.build(), part.images(range(len(part))), part.labels)
    assert evaluation.result.verdict.status in ("doubtful", "not-trusted")
    assert troubled(evaluation.result) >= SEEN_BY[name]
    assert evaluation.robust_accuracy.correct < int(claimed.sum()) - 0.1 * len(part), "the claim does not stand"


@pytest.mark.parametrize("method", [method.partition(":")[0] for method in honest.METHODS])
def test_an_honest_model_is_trusted(method):
    evaluation, _ = evaluated(honest.trained()[f"{method}-0"])
    assert troubled(evaluation.result) == set()
    assert evaluation.result.verdict.status == "trusted"


def test_an_undefended_model_hides_nothing():
    evaluation, _ = evaluated(honest.undefended_honest())
    assert evaluation.result.verdict.status == "trusted"
    assert evaluation.robust_accuracy.value < 0.05


@pytest.mark.soak
@pytest.mark.parametrize("name", members.KINDS)
def test_the_number_is_within_two_points_of_the_best_adaptive_attack(name):
    member = members.member(name)
    evaluation, part = evaluated(member)
    left = member.adaptive(member.build(), part.images(range(len(part))), part.labels, member.threat_model)
    assert evaluation.result.verdict.status != "trusted"
    assert evaluation.robust_accuracy.value <= float(left.float().mean()) + 0.02


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(honest.trained()))
@pytest.mark.parametrize("suite", ["fast", "standard"])
def test_every_honest_model_is_trusted(name, suite):
    evaluation, _ = evaluated(honest.trained()[name], suite=suite)
    assert troubled(evaluation.result) == set()
    assert evaluation.result.verdict.status == "trusted"


@pytest.mark.truth
def test_published_models_are_trusted(shared):
    warnings = {one.name: troubled(evaluated(one)[0].result) for one in honest.published_honest()}
    assert not any(warnings.values()), {name: slugs for name, slugs in warnings.items() if slugs}
