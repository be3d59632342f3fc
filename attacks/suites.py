"""Named suites of attacks. Each stage runs only on images that are not yet fooled; the most cost-effective run first.

A published version of a suite never changes; a better suite gets the next version.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["search", "follow-up", "probe", "tail", "solver", "diagnostic", "adaptive"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One attack of a suite, and the samples it runs on.

    attack: as the command line writes it. share: the fraction of samples not yet fooled to attack, those with the
    smallest margins. least: at least so many. role: a "search" always runs. A "follow-up" runs only if the
    stage before it fooled more than `MOVING` of its samples. A "probe" that fools more than `MASKED` of its samples,
    where gradient attacks failed, shows gradient masking; a "tail" runs only then. A "solver" runs only on networks
    that it supports. No suite contains a "diagnostic", which checks for gradient masking after every suite, or an
    "adaptive" attack, which runs if a check fails.
    """

    attack: str
    share: float = 1.0
    least: int = 1
    role: Role = "search"


MOVING = 0.002
"""The fraction of its samples that a stage must fool for a follow-up to be worth its cost."""
MASKED = 0.02
"""The fraction of its samples that a probe must fool to show gradient masking. On a large dataset, a cheap search
leaves fewer than that on any model."""

INSET = "1e-6"
"""The inset of version 2 of the suites: many times the rounding errors of float32 near 1, far less than changes any
result. Layers that clip their input have no gradient at the edges of the box, where version 1 evaluates theirs."""
GRADIENT_FREE = frozenset({"square"})

_ROUND = (
    "pgd:steps=20,schedule=cosine,momentum=0.25,restarts=10",
    "pgd:steps=20,loss=margin,schedule=cosine,momentum=0.25,targets=9",
)
UNTIL_NOTHING_MOVES = (
    *(Stage(attack=attack) for attack in _ROUND),
    *(Stage(attack=attack, role="follow-up") for _ in range(4) for attack in _ROUND),
)
"""Rounds of restarts; each runs only if the one before still fooled samples."""

SUITES: dict[str, dict[int, tuple[Stage, ...]]] = {
    "fast": {
        1: (
            Stage(attack="fgsm"),
            Stage(attack="pgd:steps=20,loss=scaled-ce,schedule=cosine,momentum=0.25"),
            Stage(
                attack="pgd:steps=20,loss=probability-margin,schedule=cosine,momentum=0.25,targets=3",
                share=0.2,
                least=20,
            ),
        )
    },
    "standard": {
        1: (
            Stage(attack="pgd:steps=20,loss=scaled-ce,schedule=cosine,momentum=0.25,random-start=false"),
            Stage(
                attack="pgd:steps=20,loss=probability-margin,schedule=cosine,momentum=0.25,targets=3",
                share=0.2,
                least=10,
            ),
            Stage(attack="pgd:steps=10,schedule=cosine,momentum=0.25,restarts=2", share=0.4, least=10),
            Stage(
                attack="pgd:steps=6,loss=probability-margin,schedule=cosine,momentum=0.25,targets=7", role="follow-up"
            ),
            Stage(attack="apgd:loss=dlr,targets=3", share=0.02, least=2),
            Stage(attack="regions:programs=4,starts=1,neurons=1000", share=0.02, least=12, role="solver"),
            Stage(attack="square:steps=300", share=0.05, least=4, role="probe"),
            Stage(attack="apgd:loss=dlr,targets=9", role="tail"),
            Stage(attack="fab:targets=9", role="tail"),
            Stage(attack="square:steps=5000", role="tail"),
        )
    },
    "exhaustive": {
        1: (
            Stage(attack="pgd:steps=20,loss=scaled-ce,schedule=cosine,momentum=0.25,random-start=false"),
            Stage(attack="pgd:steps=50,loss=scaled-ce,schedule=cosine,momentum=0.25,restarts=4"),
            Stage(attack="pgd:steps=20,loss=probability-margin,schedule=cosine,momentum=0.25,targets=9"),
            Stage(attack="apgd:loss=dlr,targets=9", share=0.3, least=50),
            *UNTIL_NOTHING_MOVES,
            Stage(attack="fab:targets=9", share=0.2, least=50),
            Stage(attack="square:steps=5000", share=0.1, least=50, role="probe"),
            Stage(attack="apgd:loss=dlr,targets=9", role="tail"),
            Stage(attack="fab:targets=9", role="tail"),
            Stage(attack="square:steps=5000", role="tail"),
            Stage(attack="regions:programs=8", role="solver"),
            Stage(attack="regions:programs=500", share=0.1, least=20, role="solver"),
        )
    },
    "autoattack": {
        1: (
            Stage(attack="apgd"),
            Stage(attack="apgd:loss=dlr,targets=9"),
            Stage(attack="fab:targets=9"),
            Stage(attack="square:steps=5000"),
        )
    },
}


def _moved_inside(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The same stages, whose gradients are taken just inside the box."""
    return tuple(replace(stage, attack=_with_inset(stage.attack)) for stage in stages)


def _with_inset(attack: str) -> str:
    if attack.partition(":")[0] in GRADIENT_FREE:
        return attack
    return f"{attack}{',' if ':' in attack else ':'}inset={INSET}"


SUITES |= {name: {**SUITES[name], 2: _moved_inside(SUITES[name][1])} for name in ("fast", "standard", "exhaustive")}
