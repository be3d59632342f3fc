import pytest

from robustbench_local.errors import UserError
from robustbench_local.results.protocol_order import SUITE_HASHES, require_known, weaker
from robustbench_local.results.schema import Protocol


def suite(name, version=1, sha256=None):
    return Protocol(name=name, version=version, sha256=sha256 or SUITE_HASHES.get((name, version), "f" * 64))


@pytest.mark.parametrize(
    ("required", "protocol", "slug"),
    [
        ("fast/1", suite("fast"), ""),
        ("fast", suite("standard", 2), ""),
        ("fast", suite("exhaustive", 2), ""),
        ("fast/1", suite("standard", 2), ""),
        ("standard/1", suite("standard", 2), ""),
        ("standard", suite("exhaustive", 2), ""),
        ("autoattack", suite("exhaustive", 2), ""),
        ("fast/1", suite("autoattack"), ""),
        ("standard/1", suite("standard"), ""),
        ("standard/1", suite("exhaustive"), ""),
        ("autoattack/1", suite("autoattack"), ""),
        ("autoattack", suite("exhaustive"), ""),
        ("exhaustive/1", suite("exhaustive"), ""),
        ("standard/1", suite("fast"), "protocol-too-weak"),
        ("standard/1", suite("fast", 2), "protocol-too-weak"),
        ("fast", suite("fast"), "protocol-too-weak"),
        ("fast", suite("standard"), "protocol-too-weak"),
        ("fast/2", suite("autoattack"), "protocol-too-weak"),
        ("standard", suite("standard"), "protocol-too-weak"),
        ("standard/2", suite("exhaustive"), "protocol-too-weak"),
        ("autoattack/1", suite("standard", 2), "protocol-too-weak"),
        ("exhaustive", suite("standard"), "protocol-too-weak"),
        ("exhaustive", suite("autoattack"), "protocol-too-weak"),
        ("standard", suite("autoattack"), "protocol-too-weak"),
        ("autoattack/1", suite("standard"), "protocol-too-weak"),
        ("fast/1", Protocol(name="custom", version=None, sha256="a"), "protocol-too-weak"),
        ("fast/1", suite("fast", sha256="a" * 64), "protocol-settings-differ"),
        ("fast/1", suite("standard", sha256="a" * 64), "protocol-settings-differ"),
        ("fast/1", suite("fast", version=9), "protocol-version-unknown"),
    ],
)
def test_what_a_required_protocol_is_satisfied_by(required, protocol, slug):
    reason = weaker(protocol, required)
    assert (reason.slug if reason else "") == slug


def test_newer_versions_are_no_weaker(monkeypatch):
    monkeypatch.setitem(SUITE_HASHES, ("fast", 3), "3" * 64)
    assert weaker(suite("fast", 3), "fast/1") is None
    assert weaker(suite("fast", 3), "fast") is None
    reason = weaker(suite("fast", 2), "fast")
    assert reason == weaker(suite("fast", 2), "fast/3")
    assert reason.slug == "protocol-too-weak"
    assert "fast/3" in reason.sentence


@pytest.mark.parametrize("text", ["", "quick", "fast/9", "fast/", "fast/x", "fast/1/2", "fast/" + "9" * 5000])
def test_unknown_suites_cannot_be_required(text):
    with pytest.raises(UserError, match="fast/1") as refused:
        require_known(text)
    assert refused.value.slug == "unknown-suite"


def test_the_known_hashes_are_those_of_the_suites():
    from robustbench_local.attacks.suites import SUITES
    from robustbench_local.engine.protocol import resolve_suite

    assert {
        (name, version): resolve_suite(f"{name}/{version}")[0].sha256
        for name, versions in SUITES.items()
        for version in versions
    } == SUITE_HASHES


def test_hashes_that_begin_alike_are_shown_whole():
    known = SUITE_HASHES["fast", 1]
    assert known in weaker(suite("fast", sha256=known[:40] + "0" * 24), "fast").sentence
    assert known not in weaker(suite("fast", sha256="0" * 64), "fast").sentence
