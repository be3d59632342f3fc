"""One limit and what was counted against it: does it pass, fail, or leave the question open?

A floor passes where the exact one-sided lower bound of the accuracy reaches it and fails where the upper bound lies
below it. A largest drop passes where the upper bound of the paired drop is within it (the new model is not inferior by
more than that) and fails where the lower bound lies above it. Every bound is wrong with probability at most alpha.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from robustbench_local.statistics.intervals import drop_bounds, drop_p_value, exact_bounds, mcnemar
from robustbench_local.statistics.sequential import finite_bounds

MOST_SAMPLES = 10_000_000
"""A limit that so many samples would not decide lies, for all anyone can tell, exactly at the truth."""


class Outcome(IntEnum):
    """The values are the exit codes."""

    PASS = 0
    FAIL = 3
    UNDECIDED = 4
    NOT_COMPARABLE = 5

    @property
    def word(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Check:
    """One limit, what was measured against it, and the decision in a sentence.

    rule: the limit's name in a gate file, with `:LABEL` for one of a class. low, high: the one-sided bounds of the
    value. lost, gained, p: for a drop, the samples that changed sides and McNemar's mid-p value that nothing was lost.
    What was refused has a rule and a sentence alone.
    """

    rule: str
    limit: str
    outcome: Outcome
    sentence: str
    value: float | None = None
    threshold: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    lost: int | None = None
    gained: int | None = None
    p: float | None = None


def refused(rule: str, limit: str, reason: str) -> Check:
    """What cannot be decided because it cannot be compared, or not be believed."""
    return Check(rule, limit, Outcome.NOT_COMPARABLE, reason)


class Limit(ABC):
    """rule, name: as in a gate file and for people. limit: a fraction. available: samples the data set has of those.
    of: what samples it speaks of, as ` of class 4`; nothing where it is all.
    """

    rule: str
    name: str
    n: int
    limit: float
    available: int
    of: str = ""

    @abstractmethod
    def passes(self, alpha: float) -> bool:
        """Whether it is cleared, wrongly with probability at most alpha."""

    @abstractmethod
    def fails(self, alpha: float) -> bool:
        """Whether it is broken, wrongly with probability at most alpha."""

    @abstractmethod
    def with_sample_size(self, n: int) -> Limit:
        """The same limit with n samples of the same rates."""

    @abstractmethod
    def check(self, alpha: float, limits: int, failed: bool) -> Check:
        """The decision. limits: how many are held at once; failed: whether Holm's method fails it among them."""

    def samples_to_decide(self, alpha: float, limits: int, most: int) -> int | None:
        """About how many samples would decide, were they like these; None where not even `most` would."""

        def decides(n: int) -> bool:
            larger = self.with_sample_size(n)
            return larger.passes(alpha) or larger.fails(alpha / limits)

        low = enough = self.n
        while not decides(enough):
            if enough >= most:
                return None
            low, enough = enough, min(2 * enough, most)
        while enough - low > max(1, enough // 100):
            middle = (low + enough) // 2
            low, enough = (low, middle) if decides(middle) else (middle, enough)
        return enough

    def more_samples(self, alpha: float, limits: int, most: int = MOST_SAMPLES) -> str:
        """How many samples would decide, and whether the data set has them."""
        enough = self.samples_to_decide(alpha, limits, most)
        if enough is None:
            return "it lies so near the limit that no number of samples is likely to decide"
        needed = f"about {enough:,} samples{self.of} would decide"
        if self.available >= enough:
            return f"{needed}, and the data set has {self.available:,}"
        has = f"the data set has only {self.available:,}" if self.available > self.n else f"all {self.n:,} are used"
        return f"{needed}, but {has}: more data, or another limit"


@dataclass(frozen=True)
class Floor(Limit):
    """A least accuracy of the population that the samples were drawn from.

    finite: the samples were drawn one by one from the `available` ones until a gate was decided, so it is the accuracy
    of those, and the bounds hold however often they were looked at.
    """

    rule: str
    name: str
    correct: int
    n: int
    limit: float
    available: int
    finite: bool = False
    of: str = ""

    def bounds(self, alpha: float) -> tuple[float, float]:
        if self.finite:
            return finite_bounds(self.correct, self.n, self.available, alpha)
        return exact_bounds(self.correct, self.n, alpha)

    def passes(self, alpha: float) -> bool:
        return self.bounds(alpha)[0] >= self.limit

    def fails(self, alpha: float) -> bool:
        return self.bounds(alpha)[1] < self.limit

    def with_sample_size(self, n: int) -> Floor:
        correct = round(self.correct / self.n * n)
        return replace(self, correct=correct, n=n)

    def check(self, alpha: float, limits: int, failed: bool) -> Check:
        low, high = self.bounds(alpha)
        sure = f"with {confidence(alpha)} confidence"
        of_all = f" of the {self.available:,} images of the split" if self.finite else ""
        if low >= self.limit:
            outcome, reason = Outcome.PASS, f"{sure} at least {low:.1%}{of_all}"
        elif failed:
            outcome, reason = Outcome.FAIL, f"{sure} at most {high:.1%}{of_all}"
        else:
            outcome = Outcome.UNDECIDED
            between = (
                f"{sure} between {low:.1%} and {high:.1%}{of_all}"
                if high >= self.limit
                else f"{sure} at most {high:.1%}{of_all}, but of {limits} limits one may seem broken by chance"
            )
            reason = f"{between}; {self.more_samples(alpha, limits, self.available if self.finite else MOST_SAMPLES)}"
        value = self.correct / self.n
        return Check(
            self.rule,
            f"{self.name} ≥ {percent(self.limit)}",
            outcome,
            f"{self.name} {value:.1%} ({self.correct} of {self.n}): {reason}",
            value,
            self.limit,
            low,
            high,
            self.n,
        )


@dataclass(frozen=True)
class Drop(Limit):
    """A largest loss since the baseline on the same samples. lost, gained: those that only one of the models gets."""

    rule: str
    name: str
    lost: int
    gained: int
    n: int
    limit: float
    available: int

    def passes(self, alpha: float) -> bool:
        """As drop_bounds' high <= limit, which takes many p-values where this takes one."""
        return self.limit >= 1 or drop_p_value(self.gained, self.lost, self.n, -self.limit) <= alpha

    def fails(self, alpha: float) -> bool:
        """As drop_bounds' low > limit."""
        return self.limit < 1 and drop_p_value(self.lost, self.gained, self.n, self.limit) < alpha

    def with_sample_size(self, n: int) -> Drop:
        lost, gained = (round(count / self.n * n) for count in (self.lost, self.gained))
        return Drop(self.rule, self.name, lost, gained, n, self.limit, self.available)

    def check(self, alpha: float, limits: int, failed: bool) -> Check:
        low, high = drop_bounds(self.lost, self.gained, self.n, alpha)
        drop, p = (self.lost - self.gained) / self.n, mcnemar(self.lost, self.gained, mid_p=True)
        sure = f"with {confidence(alpha)} confidence"
        if self.passes(alpha):
            outcome = Outcome.PASS
            reason = f"{sure} it lost at most {100 * high:.1f} points" if high >= 0 else f"{sure} it lost nothing"
        elif failed:
            outcome, reason = Outcome.FAIL, f"{sure} it lost at least {100 * low:.1f} points"
        else:
            outcome = Outcome.UNDECIDED
            between = (
                f"{sure} it lost between {100 * low:.1f} and {100 * high:.1f} points"
                if not self.fails(alpha)
                else f"{sure} it lost at least {100 * low:.1f} points, but of {limits} limits one may seem broken by "
                "chance"
            )
            # Rounded up, so that the limit that is named would do.
            larger = math.ceil(1000 * high) / 1000
            reason = f"{between}; a limit of {percent(larger)} would pass; {self.more_samples(alpha, limits)}"
        changed = f"{self.name} changed by {100 * (self.gained - self.lost) / self.n:+.1f} points"
        counts = f"{self.lost} lost, {self.gained} gained of {self.n}, p = {p:.3g}"
        return Check(
            self.rule,
            f"drop in {self.name} ≤ {percent(self.limit)}",
            outcome,
            f"{changed} ({counts}): {reason}",
            drop,
            self.limit,
            low,
            high,
            self.n,
            self.lost,
            self.gained,
            p,
        )


def failing(limits: Sequence[Limit], alpha: float) -> list[bool]:
    """Which limits fail, so that any that holds is failed with probability at most alpha (Holm, 1979).

    Those that fail at alpha by their number are taken out, then the others are held to alpha by the number left, until
    no more fail. With one limit that is alpha itself.
    """
    failed = [False] * len(limits)
    while True:
        left = [position for position, done in enumerate(failed) if not done]
        more = [position for position in left if limits[position].fails(alpha / len(left))]
        if not more:
            return failed
        for position in more:
            failed[position] = True


def percent(fraction: float) -> str:
    """With one decimal, or as many more (to four) as the fraction has."""
    decimals = next((d for d in (1, 2, 3) if math.isclose(round(100 * fraction, d), 100 * fraction)), 4)
    return f"{100 * fraction:.{decimals}f}%"


def confidence(alpha: float) -> str:
    """`95%` for 0.05, `99.9%` for 0.001."""
    return f"{100 * (1 - alpha):.6g}%"
