"""From what was asked for – a suite's name, attacks by name – to attacks, and to the protocol the result may carry."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from robustbench_local.attacks import ATTACKS
from robustbench_local.attacks.attack import Attack, settings
from robustbench_local.attacks.suites import SUITES
from robustbench_local.errors import UserError, nearest
from robustbench_local.options import build, parse_spec
from robustbench_local.result import Protocol


def resolve_attack(text: str) -> Attack:
    """`pgd:steps=50,restarts=5` or `art/DeepFool:max_iter=20` as an attack.

    Raises UserError for an unknown name or setting, with the nearest one.
    """
    name, given = parse_spec(text)
    if name.startswith("art/"):
        from robustbench_local.art_attacks import art_attack

        return build(art_attack(name.removeprefix("art/")), given, f"--attack {name}")
    if name not in ATTACKS:
        raise UserError(
            f"unknown attack {name!r}: there are {', '.join(ATTACKS)}, and art/NAME for those of "
            f"adversarial-robustness-toolbox; 'robust list attacks' shows them.{nearest(name, ATTACKS)}"
        )
    return build(ATTACKS[name], given, f"--attack {name}")


def resolve_suite(text: str) -> tuple[Protocol, tuple[Attack, ...]]:
    """`fast/1` or `fast`, which means its newest version.

    Raises UserError for a suite or version that does not exist.
    """
    name, slash, number = text.partition("/")
    if name not in SUITES:
        raise UserError(f"unknown suite {name!r}: there are {', '.join(SUITES)}.{nearest(name, SUITES)}")
    versions = SUITES[name]
    version = max(versions) if not slash else int(number) if number.isdecimal() else -1
    if version not in versions:
        known = ", ".join(f"{name}/{each}" for each in versions)
        raise UserError(f"there is no {text!r}: the versions of this suite are {known}")
    attacks = versions[version]
    return Protocol(name=name, version=version, sha256=settings_hash(attacks)), attacks


def custom(attacks: Sequence[Attack]) -> Protocol:
    """The protocol of a run whose attacks were chosen one by one."""
    return Protocol(name="custom", version=None, sha256=settings_hash(attacks))


def settings_hash(attacks: Sequence[Attack]) -> str:
    """sha256 of the attacks, their order and every one of their settings."""
    content = [[attack.name, settings(attack)] for attack in attacks]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
