"""A defense that masks a part of itself claims more than it has, and is never trusted."""

import members
import pytest
from adaptive import Hunt
from evaluations import accuracy, evaluated, require_seen, some, troubled

from robustbench_local.results import checks

ASKED_IN_TURN = ("grad-mode", "remembering", "counting")
"""Those that a plain PGD, asking what it has asked before, says nothing of."""


def claims_more_than_it_has(name, images, labels):
    member = members.member(name)
    classifier = member.build()
    clean = Hunt(classifier, images, labels, member.threat_model).standing
    claimed = member.claimed(classifier, images, labels)
    member = members.member(name, queries=50, enough=int(claimed.sum()) - 1)
    left = member.adaptive(classifier, images, labels, member.threat_model)
    assert accuracy(clean) >= 0.85, "nobody would use it"
    assert int(left.sum()) < int(claimed.sum())


QUICK = (
    "rippled-pixels-of-20",
    "reversed-gradient-of-5",
    "clamped",
    "rectified",
    "checkered",
    "rounded-branch",
    "tamper-proof",
    "batch-of-one",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_subtle_defense_claims_more_than_it_has(name):
    claims_more_than_it_has(name, *some())


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in members.SUBTLE if name not in ASKED_IN_TURN])
def test_a_subtle_defense_claims_more_than_it_has_of_all_digits(name):
    claims_more_than_it_has(name, *some(360))


@pytest.mark.soak
@pytest.mark.parametrize("suite", ["fast", "standard"])
@pytest.mark.parametrize("name", members.SUBTLE)
def test_a_subtle_defense_is_never_trusted(name, suite):
    require_seen(name, suite)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["remembering", "counting"])
def test_a_model_with_a_memory_is_named(name):
    evaluation, _ = evaluated(members.member(name))
    assert checks.STATELESS in troubled(evaluation.result)
