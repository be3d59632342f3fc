"""From the names of a suite or of attacks to the attacks themselves, and to the protocol that a result names."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from robustbench_local.attacks import ATTACKS
from robustbench_local.attacks.attack import Attack, settings, spec_text
from robustbench_local.attacks.suites import SUITES, Stage
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.certification.region_attack import RegionSearch
from robustbench_local.engine.function_attack import AttackFunction, as_attack, load_function_attack
from robustbench_local.errors import UserError, nearest
from robustbench_local.results.schema import Protocol
from robustbench_local.specs import build, parse_function_spec, parse_spec

OWN_ATTACKS: dict[str, type[Attack]] = {**ATTACKS, RegionSearch.name: RegionSearch}
"""Every attack of this package: the mathematics of `attacks/`, and the search that needs a solver."""


@dataclass(frozen=True)
class Step:
    """A stage of a cascade with its attack."""

    attack: Attack
    stage: Stage


def resolve_attack(text: str) -> Attack:
    """The attack that a text names.

    `pgd:steps=50,restarts=5`, `art/DeepFool:max_iter=20`, or a function: `path/file.py:function:key=value`,
    `package.module:function`.
    Raises UserError for an unknown name or setting, with the nearest one, and for a function that cannot be loaded.
    """
    if function := parse_function_spec(text, OWN_ATTACKS):
        return load_function_attack(function)
    name, values = parse_spec(text)
    if name.startswith("art/"):
        from robustbench_local.engine.art_attacks import art_attack

        return build(art_attack(name.removeprefix("art/")), values, f"--attack {name}")
    if name not in OWN_ATTACKS:
        raise UserError(
            f"unknown attack {name!r}: there are {', '.join(OWN_ATTACKS)}, art/NAME for those of "
            "adversarial-robustness-toolbox, and path/file.py:function for your own; 'robust list attacks' shows them."
            f"{nearest(name, OWN_ATTACKS)}",
            slug="unknown-attack",
        )
    return build(OWN_ATTACKS[name], values, f"--attack {name}")


def resolve_suite(text: str) -> tuple[Protocol, tuple[Step, ...]]:
    """`fast/1`, or `fast`, which means its newest version.

    Raises UserError for a suite or version that does not exist.
    """
    name, slash, number = text.partition("/")
    if name not in SUITES:
        raise UserError(
            f"unknown suite {name!r}: there are {', '.join(SUITES)}.{nearest(name, SUITES)}", slug="unknown-suite"
        )
    versions = SUITES[name]
    version = max(versions) if not slash else int(number) if number.isdecimal() and len(number) < 10 else -1
    if version not in versions:
        available = ", ".join(f"{name}/{each}" for each in versions)
        raise UserError(
            f"there is no {text!r}: the versions of this suite are {available}", slug="unknown-suite-version"
        )
    steps = tuple(Step(resolve_attack(stage.attack), stage) for stage in versions[version])
    return Protocol(name=name, version=version, sha256=settings_hash(steps)), steps


def require_goes_with(protocol: Protocol, threat_model: ThreatModel) -> None:
    """Raises UserError where the protocol does not support the threat model's norm."""
    if protocol.name == "autoattack" and threat_model.norm == "l1":
        raise UserError(
            "autoattack/1 is AutoAttack for L∞ and L2; AutoAttack's L1 version uses another APGD, which is not "
            "implemented here: choose --suite standard",
            slug="suite-norm-unsupported",
        )


def require_layers(module: nn.Module, steps: Sequence[Step]) -> None:
    """Raises UserError where an attack names a layer that the model does not have."""
    names = {name for name, _ in module.named_modules()}
    names |= {".".join(parts[start:]) for parts in (name.split(".") for name in names) for start in range(len(parts))}
    for step in steps:
        for layer in filter(None, str(getattr(step.attack, "layers", "")).split("+")):
            if layer not in names:
                raise UserError(
                    f"--attack {step.attack.name}: the model has no layer {layer!r}.{nearest(layer, names)}",
                    slug="unknown-layer",
                )


def custom(attacks: Sequence[Attack | AttackFunction]) -> tuple[Protocol, tuple[Step, ...]]:
    """The protocol of a run with attacks of the user's choice: each runs on every image not yet fooled.

    A plain function among them becomes an attack; see `function_attack`.
    Raises UserError for something that is neither.
    """
    steps = tuple(Step(attack, Stage(attack=spec_text(attack))) for attack in map(as_attack, attacks))
    return Protocol(name="custom", version=None, sha256=settings_hash(steps)), steps


def settings_hash(steps: Sequence[Step]) -> str:
    """sha256 of the attacks, their order, their settings, and which samples each stage runs on.

    A published protocol keeps its hash when a dataclass gains an optional field: a field declared with
    `metadata={"since": 2}` (a later addition) enters the hash only where it departs from its default.
    """
    content = [_hashed_step(step) for step in steps]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hashed_step(step: Step) -> list[Any]:
    original, added = _by_age(step.attack)
    content: list[Any] = [step.attack.name, {**original, **added}, step.stage.share, step.stage.least, step.stage.role]
    code = getattr(step.attack, "code_sha256", None)
    if code is not None:
        content.append({"code": code})
    return content


def _by_age(instance: Any) -> tuple[dict[str, object], dict[str, object]]:
    """The fields of a dataclass that version 1 had, and the later ones that depart from their defaults."""
    later = {field.name: field.default for field in dataclasses.fields(instance) if field.metadata.get("since", 1) > 1}
    values = settings(instance)
    original = {name: value for name, value in values.items() if name not in later}
    return original, {name: values[name] for name, default in later.items() if values[name] != default}
