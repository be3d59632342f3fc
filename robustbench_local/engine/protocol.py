"""From what was asked for – a suite's name, attacks by name – to attacks, and to the protocol the result may carry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from robustbench_local.attacks import ATTACKS
from robustbench_local.attacks.attack import Attack, settings, spec_text
from robustbench_local.attacks.suites import SUITES, Stage
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.certification.region_attack import RegionSearch
from robustbench_local.errors import UserError, nearest
from robustbench_local.results.schema import Protocol
from robustbench_local.specs import build, parse_spec

OWN_ATTACKS: dict[str, type[Attack]] = {**ATTACKS, RegionSearch.name: RegionSearch}
"""Every attack that is written here: the mathematics of `attacks/`, and the search that needs a solver."""


@dataclass(frozen=True)
class Step:
    """A stage of a cascade with its attack."""

    attack: Attack
    stage: Stage


def resolve_attack(text: str) -> Attack:
    """`pgd:steps=50,restarts=5` or `art/DeepFool:max_iter=20` as an attack.

    Raises UserError for an unknown name or setting, with the nearest one.
    """
    name, given = parse_spec(text)
    if name.startswith("art/"):
        from robustbench_local.engine.art_attacks import art_attack

        return build(art_attack(name.removeprefix("art/")), given, f"--attack {name}")
    if name not in OWN_ATTACKS:
        raise UserError(
            f"unknown attack {name!r}: there are {', '.join(OWN_ATTACKS)}, and art/NAME for those of "
            f"adversarial-robustness-toolbox; 'robust list attacks' shows them.{nearest(name, OWN_ATTACKS)}"
        )
    return build(OWN_ATTACKS[name], given, f"--attack {name}")


def resolve_suite(text: str) -> tuple[Protocol, tuple[Step, ...]]:
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
    steps = tuple(Step(resolve_attack(stage.attack), stage) for stage in versions[version])
    return Protocol(name=name, version=version, sha256=settings_hash(steps)), steps


def require_goes_with(protocol: Protocol, threat_model: ThreatModel) -> None:
    """Raises UserError where the protocol does not know the threat model's norm."""
    if protocol.name == "autoattack" and threat_model.norm == "l1":
        raise UserError(
            "autoattack/1 is AutoAttack for L∞ and L2; its L1 version has an APGD of its own that is not here: "
            "choose --suite standard"
        )


def require_layers(module: nn.Module, steps: Sequence[Step]) -> None:
    """Raises UserError where an attack speaks of a layer that the model does not have."""
    names = {name for name, _ in module.named_modules()}
    names |= {".".join(parts[start:]) for parts in (name.split(".") for name in names) for start in range(len(parts))}
    for step in steps:
        for layer in filter(None, str(getattr(step.attack, "layers", "")).split("+")):
            if layer not in names:
                raise UserError(
                    f"--attack {step.attack.name}: the model has no layer {layer!r}.{nearest(layer, names)}"
                )


def custom(attacks: Sequence[Attack]) -> tuple[Protocol, tuple[Step, ...]]:
    """The protocol of a run whose attacks were chosen one by one: each on everything that stands."""
    steps = tuple(Step(attack, Stage(attack=spec_text(attack))) for attack in attacks)
    return Protocol(name="custom", version=None, sha256=settings_hash(steps)), steps


def settings_hash(steps: Sequence[Step]) -> str:
    """sha256 of the attacks, their order, every one of their settings, and what each is run on."""
    content = [
        [step.attack.name, settings(step.attack), step.stage.share, step.stage.least, step.stage.role] for step in steps
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
