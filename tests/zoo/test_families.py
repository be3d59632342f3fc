"""Honest models of many families: what they are, and that no evaluation says anything against them."""

import calibrate
import honest
import honest_recipes
import pytest
import torch
from evaluations import evaluated, some, troubled
from honest_networks import EarlyExit

FAMILIES = honest_recipes.FAMILIES
SAMPLE = (
    ("early-exit-0", "linf", "fast"),
    ("overwriting-0", "l2", "fast"),
    ("plain-tiny-logits-0", "linf", "standard"),
    ("plain-onnx-0", "l2", "fast"),
    ("plain-copied-input-0", "linf", "fast"),
)
"""One evaluation each of models that checks have cried wolf at."""


def shares(kind):
    halves = [honest_recipes.half(name) for name, one in FAMILIES.items() if one.kind == kind]
    return halves.count("derive"), halves.count("confirm")


def test_half_of_at_least_25_families_are_robust_and_both_halves_alike():
    robust, undefended = shares("robust"), shares("undefended")
    assert len(FAMILIES) >= 25
    assert sum(robust) >= sum(undefended)
    assert all(0 <= derive - confirm <= 1 for derive, confirm in (robust, undefended))


def test_every_seed_of_a_family_is_in_the_same_half():
    ones = honest.families().values()
    assert len({(one.family, one.half) for one in ones}) == len(FAMILIES)
    assert len(ones) == 3 * len(FAMILIES)


def test_a_bound_is_the_exact_binomial_one():
    assert calibrate.bound(0, 1) == pytest.approx(0.95)
    assert calibrate.bound(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert calibrate.bound(3, 3) == 1


@pytest.mark.parametrize(
    ("verdict", "best", "expected"),
    [("trusted", 0.5, False), ("doubtful", 0.6, True), ("doubtful", 0.59, True), ("not-trusted", 0.58, False)],
)
def test_a_false_alarm_is_a_doubt_about_a_number_that_is_right_to_a_point(verdict, best, expected):
    assert calibrate.is_false_alarm({"verdict": verdict, "reported": 0.6, "best": best}) is expected


def test_a_crash_is_a_false_alarm():
    assert calibrate.is_false_alarm({"crash": "IndexError"})


def test_some_rows_leave_early_and_others_do_not():
    images, _ = some()
    network = honest_recipes.fitted("early-exit", 0).module
    assert isinstance(network, EarlyExit)
    sure = network.first_head(network.first(images)).softmax(1).amax(1) >= network.sure
    assert 0 < int(sure.sum()) < len(images)


def test_margins_of_the_hinge_loss_are_huge():
    images, labels = some()
    logits = honest_recipes.fitted("plain-hinge", 0)(images)
    rivals = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    assert float((logits.gather(1, labels[:, None]).squeeze(1) - rivals).median()) > 1000


def family(name):
    """The model of that name; skips where it needs a package that is not installed."""
    one = honest.families()[name]
    if one.family == "plain-onnx":
        pytest.importorskip("onnx2torch")
    return one


def test_the_graph_computes_sizes():
    graph = family("plain-onnx-0").build().module
    assert any("shape" in type(layer).__name__.lower() for layer in graph.modules())


def test_one_writes_into_the_tensor_of_its_caller():
    images, _ = some()
    asked = images.clone()
    honest_recipes.fitted("overwriting", 0)(asked)
    assert not torch.equal(asked, images)


@pytest.mark.parametrize(("name", "norm", "suite"), SAMPLE)
def test_a_sample_is_trusted(name, norm, suite):
    evaluation, _ = evaluated(family(name).within(norm), 100, suite)
    assert troubled(evaluation.result) == set()
    assert evaluation.result.verdict.status == "trusted"


@pytest.mark.soak
@pytest.mark.parametrize("suite", ["fast", "standard"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", honest.families())
def test_no_honest_model_raises_a_false_alarm(name, norm, suite):
    row = calibrate.measured(family(name).within(norm), suite, 120)
    assert not calibrate.is_false_alarm(row), calibrate.line(row)


@pytest.mark.soak
@pytest.mark.parametrize("name", honest.families())
def test_much_of_a_robust_model_stands_under_everything_known(name):
    one = family(name)
    left = calibrate.measured(one, "standard", 120, always=True)
    assert left["reported"] - left["best"] <= 0.01
    if one.kind == "robust":
        assert 0.4 <= left["best"] <= 0.95
