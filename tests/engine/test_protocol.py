"""A published protocol keeps its hash: settings that are added later count only where they are used."""

import dataclasses

import pytest

from robustbench_local.attacks import APGD, EOT, FAB, FGSM, PGD
from robustbench_local.attacks.attack import random_stream_name, settings, spec_text
from robustbench_local.attacks.suites import Stage
from robustbench_local.engine.protocol import OWN_ATTACKS, Step, custom, resolve_suite, settings_hash

PUBLISHED = {
    "fast/1": "fde966760b7eb8983ac613ff6c116e5fbbccc5f2052c5acdc24192ea1cc623ca",
    "standard/1": "60d71f9c1786065dac702656807d9bfdb683afbf610a8a66f2c483d9c1f09b20",
    "fast/2": "d0da60765e1927e02fea7ca75fa34caaffc9d75e8c6fba6d70b2871c13787a0a",
    "standard/2": "93882f867b8da9b753f4dc10ca50bbd085f76e6688b801947447d71a220882c6",
    "exhaustive/2": "5c9bdf47997d651b4df703a26c2bb3844669b2086b0ecaeb965163f7eb9bf723",
    "autoattack/1": "4e963ea580deb86e74fa132582ef79cb23d813acaea0b3e9ef3b9d2513abb41f",
    "exhaustive/1": "b7b66314bfd81b68428a887c88dea61966b8198486931fd31002b1aab42d05fc",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterPGD(PGD):
    """PGD as a later version might have it."""

    warmup: int = dataclasses.field(default=0, metadata={"since": 2})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForgetfulPGD(PGD):
    """An added field that does not say so."""

    warmup: int = 0


@pytest.mark.parametrize(("suite", "sha256"), PUBLISHED.items())
def test_published_protocols_keep_their_hashes(suite, sha256):
    assert resolve_suite(suite)[0].sha256 == sha256


def test_an_added_setting_changes_nothing_at_its_default():
    assert custom([LaterPGD(steps=7)])[0] == custom([PGD(steps=7)])[0]
    assert spec_text(LaterPGD(steps=7)) == spec_text(PGD(steps=7))
    assert random_stream_name(LaterPGD(steps=7)) == random_stream_name(PGD(steps=7))


@pytest.mark.parametrize("attack", [PGD(), APGD(steps=5), FAB(targets=9), EOT(draws=2)])
def test_an_inset_draws_the_same_random_numbers(attack):
    assert random_stream_name(dataclasses.replace(attack, inset=1e-6)) == random_stream_name(attack)


@pytest.mark.parametrize("name", ["fast", "standard", "exhaustive"])
def test_version_2_of_a_suite_is_version_1_with_an_inset(name):
    (_, first), (_, second) = resolve_suite(f"{name}/1"), resolve_suite(f"{name}/2")
    assert len(first) == len(second)
    for old, new in zip(first, second, strict=True):
        changed = {} if old.attack.name == "square" else {"inset": 1e-6}
        assert settings(new.attack) == {**settings(old.attack), **changed}
        assert dataclasses.replace(new.stage, attack="") == dataclasses.replace(old.stage, attack="")


def test_an_added_setting_that_is_used_changes_the_protocol():
    hashes = {custom([LaterPGD(warmup=warmup)])[0].sha256 for warmup in (0, 1, 2)}
    assert len(hashes) == 3
    assert spec_text(LaterPGD(warmup=1)) == "pgd:warmup=1"
    assert custom([ForgetfulPGD()])[0].sha256 != custom([PGD()])[0].sha256, "the mark is what keeps the hash"


def test_the_rule_holds_inside_a_suite():
    _, steps = resolve_suite("fast/1")
    later = [Step(LaterPGD(**vars(step.attack)), step.stage) if type(step.attack) is PGD else step for step in steps]
    assert settings_hash(later) == PUBLISHED["fast/1"]
    later[-1] = Step(dataclasses.replace(later[-1].attack, warmup=3), later[-1].stage)
    assert settings_hash(later) != PUBLISHED["fast/1"]


@pytest.mark.parametrize(("change", "same"), [({}, True), ({"least": 5}, False), ({"share": 0.5}, False)])
def test_a_limit_on_the_samples_of_a_stage_counts(change, same):
    plain = settings_hash([Step(FGSM(), Stage(attack="fgsm"))])
    assert (settings_hash([Step(FGSM(), Stage(attack="fgsm", **change))]) == plain) is same


def test_later_fields_are_told_apart_from_settings_of_the_first_version():
    """Nothing that version 1 knew may be marked as added: it would drop out of the hash."""
    for name, kind in OWN_ATTACKS.items():
        marked = [field.name for field in dataclasses.fields(kind) if field.metadata.get("since", 1) > 1]
        assert marked == KNOWN_ADDITIONS.get(name, []), name


INSET = ["fgsm", "pgd", "apgd", "fab", "bpda", "eot", "descent", "quantized", "regions"]
KNOWN_ADDITIONS: dict[str, list[str]] = {name: ["inset"] for name in INSET}
