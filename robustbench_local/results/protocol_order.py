"""The published suites by name, version and hash, and their order of strength; needs no torch."""

from __future__ import annotations

from robustbench_local.errors import UserError, nearest
from robustbench_local.results.reason import Reason
from robustbench_local.results.schema import Protocol

SUITE_HASHES: dict[tuple[str, int], str] = {
    ("fast", 1): "fde966760b7eb8983ac613ff6c116e5fbbccc5f2052c5acdc24192ea1cc623ca",
    ("fast", 2): "d0da60765e1927e02fea7ca75fa34caaffc9d75e8c6fba6d70b2871c13787a0a",
    ("standard", 1): "60d71f9c1786065dac702656807d9bfdb683afbf610a8a66f2c483d9c1f09b20",
    ("standard", 2): "93882f867b8da9b753f4dc10ca50bbd085f76e6688b801947447d71a220882c6",
    ("exhaustive", 1): "b7b66314bfd81b68428a887c88dea61966b8198486931fd31002b1aab42d05fc",
    ("exhaustive", 2): "5c9bdf47997d651b4df703a26c2bb3844669b2086b0ecaeb965163f7eb9bf723",
    ("autoattack", 1): "4e963ea580deb86e74fa132582ef79cb23d813acaea0b3e9ef3b9d2513abb41f",
}
"""The sha256 in a result of that suite and version. A test compares it with `resolve_suite`."""

NO_WEAKER: dict[str, tuple[str, ...]] = {
    "fast": ("fast", "standard", "autoattack", "exhaustive"),
    "standard": ("standard", "exhaustive"),
    "autoattack": ("autoattack", "exhaustive"),
    "exhaustive": ("exhaustive",),
}
"""For each suite the suites that are at least as strong. `standard` and `autoattack` are not comparable: neither
contains every attack of the other.

Of these, only versions from the required one on are strong enough, whichever the suite: version 2 takes its gradients
just inside the box and so breaks models on which no suite of version 1 finds anything."""


def protocol_name(protocol: Protocol) -> str:
    """`standard/1`, or the name alone where there is no version."""
    return protocol.name if protocol.version is None else f"{protocol.name}/{protocol.version}"


def distinct_prefixes(one: str, other: str) -> tuple[str, str]:
    """Two hashes for people: their first twelve digits, or all where these are equal."""
    return (one[:12], other[:12]) if one[:12] != other[:12] else (one, other)


def require_known(text: str) -> tuple[str, int]:
    """Name and version of a suite such as `standard/1`; `standard` means its newest version.

    Raises UserError for a suite or version that does not exist.
    """
    name, slash, number = text.partition("/")
    versions = [version for suite, version in SUITE_HASHES if suite == name]
    suites = ", ".join(f"{suite}/{version}" for suite, version in SUITE_HASHES)
    if not versions:
        raise UserError(
            f"unknown suite {name!r}: a gate can require {suites}.{nearest(name, NO_WEAKER)}", slug="unknown-suite"
        )
    version = max(versions) if not slash else int(number) if number.isdecimal() and len(number) < 10 else -1
    if version not in versions:
        raise UserError(f"there is no suite {text!r}: a gate can require {suites}", slug="unknown-suite")
    return name, version


def weaker(protocol: Protocol, required: str) -> Reason | None:
    """Why the protocol of a result is not as strong as `required`; None where it is.

    Raises UserError where the required suite does not exist.
    """
    name, version = require_known(required)
    actual = protocol_name(protocol)
    too_weak = Reason(
        "protocol-too-weak",
        f"the gate requires {name}/{version}, but the result was made with {actual}: attack with --suite {name}",
    )
    if protocol.name not in NO_WEAKER:
        return too_weak
    published = SUITE_HASHES.get((protocol.name, protocol.version or 0))
    if published is None:
        return Reason(
            "protocol-version-unknown",
            f"the result was made with {actual}, which this version of robust does not know: "
            "run the gate with the version that made it",
        )
    if published != protocol.sha256:
        own, expected = distinct_prefixes(protocol.sha256, published)
        return Reason(
            "protocol-settings-differ",
            f"the result names its protocol {actual}, but its settings differ from the published ones ({own} instead "
            f"of {expected}): attack with --suite {actual}",
        )
    if protocol.name not in NO_WEAKER[name] or (protocol.version or 0) < version:
        return too_weak
    return None
