"""What an evaluation should do, as one frozen object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from robustbench_local.attacks.attack import Attack
from robustbench_local.engine.function_attack import AttackFunction
from robustbench_local.errors import UserError, nearest
from robustbench_local.evaluation.stopping import StoppingRule

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How to evaluate; every field may be given to `evaluate` as a keyword instead.

    suite: the name of a protocol, such as "standard" or "standard/1"; by default "fast".
    attacks: attacks to run instead of a suite: objects, functions (see `engine.function_attack`), or specs such as
    "pgd:steps=50".
    samples: the size of a seeded subset, stratified by class; by default every image.
    seed: decides the subset and the attacks' random numbers.
    batch_size: images per batch; by default what fits the device.
    device: "cpu", "cuda", "cuda:1" or "mps"; by default the best available.
    precision: arithmetic of the search, "auto", "fp32", "tf32" or "bf16". Successes are always verified in float32.
    diagnostics: run gradient-masking checks after the suite and, where one fails, adaptive attacks.
    stopping_rule: evaluate block by block, in a seeded random order, until the rule is satisfied.

    Raises UserError where two fields contradict each other.
    """

    suite: str | None = None
    attacks: Sequence[Attack | AttackFunction | str] | None = None
    samples: int | None = None
    seed: int = 0
    batch_size: int | None = None
    device: str | torch.device | None = None
    precision: str = "auto"
    diagnostics: bool = True
    stopping_rule: StoppingRule | None = None

    def __post_init__(self) -> None:
        if self.suite is not None and self.attacks is not None:
            raise UserError(
                "both a suite and attacks are set, but a suite is defined by its own attacks: set one of them",
                slug="suite-and-attacks",
            )
        if self.attacks is not None and not self.attacks:
            raise UserError(
                "the list of attacks is empty: add at least one attack, or leave the list out to run a suite",
                slug="no-attacks",
            )
        if self.stopping_rule is not None and self.samples is not None:
            raise UserError(
                "an evaluation that stops when a gate is decided chooses its own number of samples: leave out "
                "--samples or --until-gate",
                slug="samples-and-stopping-rule",
            )


def with_overrides(settings: Settings, overrides: Mapping[str, Any], function: str) -> Settings:
    """Return the settings with some fields replaced.

    function: the name of the function whose keywords the overrides are.
    Raises TypeError for a name that is not a field of the settings.
    """
    fields = [field.name for field in dataclasses.fields(settings)]
    for name in overrides:
        if name not in fields:
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}.{nearest(name, fields)} "
                f"The settings are {', '.join(fields)}"
            )
    return dataclasses.replace(settings, **overrides) if overrides else settings
