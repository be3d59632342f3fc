"""A check of an evaluation's outcome: what it measures, its threshold, and what it advises."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from robustbench_local.attacks import FGSM, PGD, Attack
from robustbench_local.attacks.suites import INSET
from robustbench_local.diagnostics import indicators
from robustbench_local.diagnostics.indicators import ProbeSet
from robustbench_local.results.checks import CHECKS, Sentences
from robustbench_local.results.schema import Diagnostic

INSIDE = float(INSET)
"""The inset of all attacks here, as in the newest suites."""
GRADIENT_ATTACK = PGD(steps=20, loss="scaled-ce", schedule="cosine", momentum=0.25, random_start=False, inset=INSIDE)
"""The first attack of every suite."""
PLANTED_ATTACK = PGD(steps=20, loss="margin", schedule="cosine", momentum=0.25, inset=INSIDE)
"""The attack that has to find planted adversarial examples."""
WIDEST = 1e6
"""A multiple of eps with which the ball contains the whole box."""
MOST_IN_WIDE_BALLS, MOST_PLANTED = 16, 8
"""Images that are attacked in wider balls, and images for which an adversarial example is planted."""


@dataclass(frozen=True)
class Outcome:
    """A few correctly classified images after the attacks, which the checks measure.

    robust: bool [rows], the images that are not fooled yet. attack, planted_attack: the attacks to measure with.
    ball_factors: the wider balls' eps, in multiples of the threat model's. planted: for how many images an adversarial
    example is planted. most_in_wide_balls: how many images are attacked there. fooled_share: the share of all correctly
    classified images that are fooled. Properties are computed when the first check needs them.
    """

    probe: ProbeSet
    robust: Tensor
    fooled_share: float
    attack: Attack = GRADIENT_ATTACK
    planted_attack: Attack = PLANTED_ATTACK
    ball_factors: tuple[float, ...] = (2.0, 4.0, WIDEST)
    planted: int = MOST_PLANTED
    most_in_wide_balls: int = MOST_IN_WIDE_BALLS

    @functools.cached_property
    def robust_images(self) -> ProbeSet:
        """The robust images; may be empty."""
        return self.probe.subset(self.robust)

    @functools.cached_property
    def robust_probe(self) -> ProbeSet:
        """A few of the robust images; may be empty."""
        return self.robust_images.first(self.most_in_wide_balls)

    @functools.cached_property
    def fooled_probe(self) -> ProbeSet:
        """The images that are fooled already; may be empty."""
        return self.probe.subset(~self.robust)

    @functools.cached_property
    def fooled_by_one_step(self) -> Tensor:
        return self.probe.fooled_by(FGSM())

    @functools.cached_property
    def fooled_by_cross_entropy(self) -> Tensor:
        return self.probe.fooled_by(PGD(steps=20))

    @functools.cached_property
    def convergence(self) -> tuple[float, int]:
        """`indicators.convergence` of 50 steps on the robust images."""
        attack = PGD(steps=50, loss="scaled-ce", schedule="cosine", momentum=0.25, random_start=False)
        return indicators.convergence(self.robust_probe, attack)


@dataclass(frozen=True)
class Measurement:
    """What a check has measured on n images.

    suspicious: whether the check warns; by default where the value exceeds the check's threshold. details: further
    values for the advice.
    """

    value: float
    n: int
    suspicious: bool | None = None
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """Why a check could not be made."""

    reason: str


@dataclass(frozen=True)
class Check:
    """One check.

    slug: its stable name. measure: takes the outcome and returns a measurement. threshold: the largest value that
    passes; None where the measurement alone decides. advice: a format string with the fields `value` and `n` and the
    measurement's details. always: made after every suite, on a few images, where it can raise a doubt; other checks
    explain a doubt that has been raised. remeasure: measure again with the strongest adaptive attack; a check that
    warns again fails. sentences: how the check turned out, in words; needed unless `results.checks` has them.
    """

    slug: str
    measure: Callable[[Outcome], Measurement | Skipped]
    threshold: float | None = None
    advice: str = ""
    always: bool = False
    remeasure: bool = False
    sentences: Sentences | None = None

    def finding(self, outcome: Outcome) -> Diagnostic:
        """Measure, and compare with the threshold."""
        measurement = self.measure(outcome)
        if isinstance(measurement, Skipped):
            return Diagnostic(
                slug=self.slug, check=self._sentence(passes=True), status="skipped", advice=measurement.reason
            )
        suspicious = measurement.suspicious
        if suspicious is None:
            suspicious = self.threshold is not None and measurement.value > self.threshold
        advice = self.advice.format(value=measurement.value, n=measurement.n, **measurement.details)
        return Diagnostic(
            slug=self.slug,
            check=self._sentence(passes=not suspicious),
            status="warn" if suspicious else "pass",
            value=measurement.value,
            threshold=self.threshold,
            n=measurement.n,
            advice=advice if suspicious else "",
        )

    def _sentence(self, *, passes: bool) -> str:
        sentences = self.sentences or CHECKS[self.slug]
        return sentences.passes if passes else sentences.fails
