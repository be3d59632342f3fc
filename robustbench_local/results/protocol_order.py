"""What is known of the suites without importing them: their hashes, and which of them is no weaker than which."""

from __future__ import annotations

from robustbench_local.errors import UserError, nearest
from robustbench_local.results.schema import Protocol

SUITE_HASHES: dict[tuple[str, int], str] = {
    ("fast", 1): "fde966760b7eb8983ac613ff6c116e5fbbccc5f2052c5acdc24192ea1cc623ca",
    ("standard", 1): "60d71f9c1786065dac702656807d9bfdb683afbf610a8a66f2c483d9c1f09b20",
    ("exhaustive", 1): "b7b66314bfd81b68428a887c88dea61966b8198486931fd31002b1aab42d05fc",
    ("autoattack", 1): "4e963ea580deb86e74fa132582ef79cb23d813acaea0b3e9ef3b9d2513abb41f",
}
"""The sha256 that a result of that suite carries; a test holds it against `resolve_suite`."""

NO_WEAKER: dict[str, tuple[str, ...]] = {
    "fast": ("fast", "standard", "autoattack", "exhaustive"),
    "standard": ("standard", "exhaustive"),
    "autoattack": ("autoattack", "exhaustive"),
    "exhaustive": ("exhaustive",),
}
"""For each suite those that find at least as much. `standard` is not named for `autoattack`, nor the other way round:
neither holds every attack of the other."""


def protocol_name(protocol: Protocol) -> str:
    """`standard/1`, or the name alone where there is no version."""
    return protocol.name if protocol.version is None else f"{protocol.name}/{protocol.version}"


def different_hashes(one: str, other: str) -> tuple[str, str]:
    """Two hashes for people: their first twelve digits, or all where these are the same."""
    return (one[:12], other[:12]) if one[:12] != other[:12] else (one, other)


def require_known(text: str) -> tuple[str, int]:
    """`standard/1` as a name and a version; `standard` means its newest version.

    Raises UserError for a suite or version that does not exist.
    """
    name, slash, number = text.partition("/")
    versions = [version for suite, version in SUITE_HASHES if suite == name]
    known = ", ".join(f"{suite}/{version}" for suite, version in SUITE_HASHES)
    if not versions:
        raise UserError(f"unknown suite {name!r}: a gate can require {known}.{nearest(name, NO_WEAKER)}")
    version = max(versions) if not slash else int(number) if number.isdecimal() and len(number) < 10 else -1
    if version not in versions:
        raise UserError(f"there is no suite {text!r}: a gate can require {known}")
    return name, version


def weaker(protocol: Protocol, required: str) -> str:
    """Why a result's protocol does not do where `required` is asked for, or nothing.

    Raises UserError where there is no suite of the required name.
    """
    name, version = require_known(required)
    has = protocol_name(protocol)
    if protocol.name not in NO_WEAKER:
        return f"the gate requires {name}/{version}, but the result is of protocol {has}: attack with --suite {name}"
    known = SUITE_HASHES.get((protocol.name, protocol.version or 0))
    if known is None:
        return f"the result is of {has}, which this version of robust does not know: judge it with the one that made it"
    if known != protocol.sha256:
        found, expected = different_hashes(protocol.sha256, known)
        return (
            f"the result calls its protocol {has}, but its settings are others ({found} instead of {expected}): attack "
            f"with --suite {has}"
        )
    if protocol.name not in NO_WEAKER[name] or (protocol.name == name and (protocol.version or 0) < version):
        return f"the gate requires {name}/{version}, but the result is of {has}: attack with --suite {name}"
    return ""
