"""Single limits: whether one passes, fails or is undecided.

A floor passes where the exact one-sided lower bound of the accuracy is at least the limit, and fails where the upper
bound is below it. A largest drop passes where the upper bound of the paired drop is at most the limit (a test of
non-inferiority), and fails where the lower bound is above it. Every bound is wrong with probability at most alpha.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from robustbench_local.results.reason import Reason
from robustbench_local.statistics.intervals import drop_bounds, drop_p_value, exact_bounds, mcnemar
from robustbench_local.statistics.sequential import finite_bounds

MOST_SAMPLES = 10_000_000
"""If even this many samples would not decide a limit, the true value is practically equal to it."""


class Outcome(IntEnum):
    """What a limit or a gate decides; the values are the exit codes."""

    PASS = 0
    FAIL = 3
    UNDECIDED = 4
    NOT_COMPARABLE = 5

    @property
    def word(self) -> str:
        """`not comparable`."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Check:
    """The outcome of one limit.

    rule: the name of the limit in a gate file, with `:LABEL` for one class. limit, sentence: for people. slug: the kind
    of limit or refusal, for programs. low, high: one-sided bounds of the value. lost, gained, p: for a drop, the
    samples that changed and McNemar's mid-p value. A refusal has no numbers.
    """

    rule: str
    limit: str
    outcome: Outcome
    sentence: str
    slug: str
    value: float | None = None
    threshold: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    lost: int | None = None
    gained: int | None = None
    p: float | None = None


def refused(rule: str, limit: str, reason: Reason) -> Check:
    """A limit that cannot be decided, because the results are not comparable or not trusted."""
    return Check(rule, limit, Outcome.NOT_COMPARABLE, reason.sentence, reason.slug)


class Limit(ABC):
    """A limit and the counts that it is compared with.

    rule, name: in a gate file and for people. n: samples. limit: a fraction. available: how many samples the dataset
    has. of: ` of class 4` where the limit is for some samples only.
    """

    rule: str
    name: str
    n: int
    limit: float
    available: int
    of: str = ""

    @abstractmethod
    def passes(self, alpha: float) -> bool:
        """Whether the limit is met; wrong with probability at most alpha."""

    @abstractmethod
    def fails(self, alpha: float) -> bool:
        """Whether the limit is broken; wrong with probability at most alpha."""

    @abstractmethod
    def with_sample_size(self, n: int) -> Limit:
        """The same limit and rates with n samples."""

    @abstractmethod
    def check(self, alpha: float, limits: int, failed: bool) -> Check:
        """The decision. limits: how many are decided together. failed: whether Holm's method fails this one."""

    def samples_to_decide(self, alpha: float, limits: int, most: int) -> int | None:
        """About how many samples with the same rates would decide; None where more than `most` are needed."""

        def decides(n: int) -> bool:
            larger = self.with_sample_size(n)
            return larger.passes(alpha) or larger.fails(alpha / limits)

        low = high = self.n
        while not decides(high):
            if high >= most:
                return None
            low, high = high, min(2 * high, most)
        while high - low > max(1, high // 100):
            middle = (low + high) // 2
            low, high = (low, middle) if decides(middle) else (middle, high)
        return high

    def more_samples(self, alpha: float, limits: int, most: int = MOST_SAMPLES) -> str:
        """How many samples would decide, and whether the dataset has them."""
        needed = self.samples_to_decide(alpha, limits, most)
        if needed is None:
            return "the value is so close to the limit that more samples are unlikely to decide"
        decide = f"about {needed:,} samples{self.of} would decide"
        if self.available >= needed:
            return f"{decide}, and the dataset has {self.available:,}"
        has = f"the dataset has only {self.available:,}" if self.available > self.n else f"all {self.n:,} are used"
        return f"{decide}, but {has}: use more data or another limit"


@dataclass(frozen=True)
class Floor(Limit):
    """A least accuracy.

    finite: the samples were drawn one by one from the `available` ones until a gate was decided. Then the limit is for
    the accuracy of all available samples, and the bounds are valid at any stopping time.
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
        """One-sided bounds of the accuracy, each wrong with probability at most alpha."""
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
        population = f" of the {self.available:,} images of the split" if self.finite else ""
        if low >= self.limit:
            outcome, reason = Outcome.PASS, f"at least {low:.1%}{population}"
        elif failed:
            outcome, reason = Outcome.FAIL, f"at most {high:.1%}{population}"
        else:
            outcome = Outcome.UNDECIDED
            bounds = (
                f"between {low:.1%} and {high:.1%}{population}"
                if high >= self.limit
                else f"at most {high:.1%}{population}, but one of {limits} limits may seem broken by chance"
            )
            reason = f"{bounds}; {self.more_samples(alpha, limits, self.available if self.finite else MOST_SAMPLES)}"
        value = self.correct / self.n
        measured = f"measured {value:.1%} ({self.correct} of {self.n})"
        return Check(
            self.rule,
            f"{self.name} ≥ {percent(self.limit)}",
            outcome,
            f"{measured}; with {confidence(alpha)} confidence {reason}",
            slug_of_rule(self.rule),
            value,
            self.limit,
            low,
            high,
            self.n,
        )


@dataclass(frozen=True)
class Drop(Limit):
    """A largest drop since the baseline.

    lost, gained: how many samples only the baseline, and only the new model, gets right.
    """

    rule: str
    name: str
    lost: int
    gained: int
    n: int
    limit: float
    available: int

    def passes(self, alpha: float) -> bool:
        """The same as an upper bound of drop_bounds within the limit, with one p-value instead of many."""
        return self.limit >= 1 or drop_p_value(self.gained, self.lost, self.n, -self.limit) <= alpha

    def fails(self, alpha: float) -> bool:
        """The same as a lower bound of drop_bounds above the limit."""
        return self.limit < 1 and drop_p_value(self.lost, self.gained, self.n, self.limit) < alpha

    def with_sample_size(self, n: int) -> Drop:
        lost, gained = (round(count / self.n * n) for count in (self.lost, self.gained))
        return Drop(self.rule, self.name, lost, gained, n, self.limit, self.available)

    def check(self, alpha: float, limits: int, failed: bool) -> Check:
        low, high = drop_bounds(self.lost, self.gained, self.n, alpha)
        p = mcnemar(self.lost, self.gained, mid_p=True)
        if self.passes(alpha):
            outcome = Outcome.PASS
            reason = f"a drop of at most {100 * high:.1f} points" if high >= 0 else "no drop"
        elif failed:
            outcome, reason = Outcome.FAIL, f"a drop of at least {100 * low:.1f} points"
        else:
            outcome = Outcome.UNDECIDED
            bounds = (
                f"a drop between {100 * low:.1f} and {100 * high:.1f} points"
                if not self.fails(alpha)
                else f"a drop of at least {100 * low:.1f} points, but one of {limits} limits may seem broken by chance"
            )
            # Rounded up, so that the limit that the sentence names does pass.
            larger = math.ceil(1000 * high) / 1000
            reason = f"{bounds}; a limit of {percent(larger)} would pass; {self.more_samples(alpha, limits)}"
        change = f"{100 * (self.gained - self.lost) / self.n:+.1f} points"
        measured = f"measured {change} ({self.lost} lost, {self.gained} gained of {self.n}, p = {p:.3g})"
        return Check(
            self.rule,
            f"drop in {self.name} ≤ {percent(self.limit)}",
            outcome,
            f"{measured}; with {confidence(alpha)} confidence {reason}",
            slug_of_rule(self.rule),
            (self.lost - self.gained) / self.n,
            self.limit,
            low,
            high,
            self.n,
            self.lost,
            self.gained,
            p,
        )


def failing(limits: Sequence[Limit], alpha: float) -> list[bool]:
    """Which limits fail; the probability of failing any limit that holds is at most alpha (Holm, 1979).

    Limits that fail at alpha divided by the number of limits are removed, and the rest are tested again at alpha
    divided by the number left, until none fails.
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
    """A fraction as a percentage with one to four decimals, as many as it has."""
    decimals = next((d for d in (1, 2, 3) if math.isclose(round(100 * fraction, d), 100 * fraction)), 4)
    return f"{100 * fraction:.{decimals}f}%"


def confidence(alpha: float) -> str:
    """`95%` for 0.05, `99.9%` for 0.001."""
    return f"{100 * (1 - alpha):.6g}%"


def slug_of_rule(rule: str) -> str:
    """`min-class-robust` for the rule `min_class_robust:4`."""
    return rule.partition(":")[0].replace("_", "-")
