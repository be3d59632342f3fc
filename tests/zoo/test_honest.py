"""An honest network has what it claims, and no check warns of it."""

import honest
import pytest
from evaluations import accuracy, evaluated, some, troubled


def honest_by_little(one, images, labels, *, queries=50):
    classifier = one.build()
    claimed = accuracy(honest.naive(one, classifier, images, labels))
    left = accuracy(honest.truth(one, classifier, images, labels, queries=queries))
    assert claimed - left <= 0.05
    return left


def test_an_honest_network_has_what_it_claims():
    assert honest_by_little(honest.trained()["pgd-at-0"], *some()) >= 0.6


def test_an_undefended_network_claims_nothing():
    assert honest_by_little(honest.undefended_honest(), *some()) <= 0.05


@pytest.mark.soak
@pytest.mark.parametrize("name", honest.trained())
def test_every_honest_network_has_what_it_claims(name):
    assert honest_by_little(honest.trained()[name], *some(360), queries=1000) >= 0.6


@pytest.mark.soak
@pytest.mark.parametrize("one", honest.published_honest(), ids=lambda one: one.name)
def test_every_published_network_has_what_it_claims(one):
    dataset = one.dataset()
    images, labels = dataset.images(range(60)), dataset.labels[:60]
    assert honest_by_little(one, images, labels, queries=300) > 0


@pytest.mark.parametrize("method", [method.partition(":")[0] for method in honest.METHODS])
def test_an_honest_model_is_trusted(method):
    evaluation, _ = evaluated(honest.trained()[f"{method}-0"], 120)
    assert troubled(evaluation.result) == set()
    assert evaluation.result.verdict.status == "trusted"


def test_an_undefended_model_hides_nothing():
    evaluation, _ = evaluated(honest.undefended_honest())
    assert evaluation.result.verdict.status == "trusted"
    assert evaluation.robust_accuracy.value < 0.05


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
