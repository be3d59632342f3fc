import pytest

from robustbench_local.attacks import FGSM, PGD
from robustbench_local.attacks.suites import SUITES
from robustbench_local.engine.protocol import custom, resolve_attack, resolve_suite, settings_hash
from robustbench_local.errors import UserError
from robustbench_local.specs import parse_spec


def test_specs_are_parsed():
    assert parse_spec("pgd") == ("pgd", {})
    assert parse_spec("pgd:steps=5,step-size=2/255") == ("pgd", {"steps": "5", "step_size": "2/255"})


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("fgsm", FGSM()),
        ("pgd:steps=7,restarts=2", PGD(steps=7, restarts=2)),
        ("pgd:loss=margin", PGD(loss="margin")),
        ("pgd:step-size=2/255", PGD(step_size=2 / 255)),
        ("pgd:step_size=none", PGD()),
        ("pgd:random-start=false", PGD(random_start=False)),
    ],
)
def test_attacks_are_resolved(text, attack):
    assert resolve_attack(text) == attack


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pdg", "unknown attack 'pdg'.*Did you mean 'pgd'"),
        ("pgd:stesp=3", "'stesp'.*Did you mean 'steps'"),
        ("pgd:steps", "key=value"),
        ("pgd:steps=1,steps=2", "twice"),
        ("pgd:steps=2.5", "whole number"),
        ("pgd:steps=0", "at least 1"),
        ("pgd:steps=x", "not a number"),
        ("pgd:random-start=maybe", "true or false"),
        ("pgd:loss=cross", "ce, margin, scaled-ce"),
        ("art/DeepFoool", "Did you mean 'DeepFool'"),
        ("art/DeepFool:x=1", "max_iter"),
    ],
)
def test_bad_attacks_are_refused_with_the_nearest_name(text, words):
    with pytest.raises(UserError, match=words):
        resolve_attack(text)


def test_a_bare_suite_is_its_newest_version():
    for name, versions in SUITES.items():
        assert resolve_suite(name) == resolve_suite(f"{name}/{max(versions)}")
    for suite in ("fast", "fast/1"):
        assert {FGSM, PGD} <= {type(step.attack) for step in resolve_suite(suite)[1]}


@pytest.mark.parametrize(
    ("text", "words"), [("fats", "Did you mean 'fast'"), ("fast/9", "fast/1"), ("fast/x", "fast/1")]
)
def test_unknown_suites_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        resolve_suite(text)


def test_settings_decide_the_hash_and_only_a_suite_carries_its_name():
    protocol, steps = resolve_suite("fast")
    attacks = [step.attack for step in steps]
    assert custom(attacks)[0].name == "custom"
    assert custom(attacks)[0].sha256 != protocol.sha256
    assert settings_hash(steps) == protocol.sha256 != settings_hash(steps[::-1])
    assert custom([PGD(steps=49)])[0].sha256 != custom([PGD(steps=50)])[0].sha256


@pytest.mark.parametrize("suite", [f"{name}/{version}" for name in SUITES for version in SUITES[name]])
def test_every_suite_can_be_run(suite):
    protocol, steps = resolve_suite(suite)
    assert f"{protocol.name}/{protocol.version}" == suite
    assert steps
