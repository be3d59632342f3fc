"""Intervals and tests for counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy  # its submodules are loaded when used: commands that need no statistics answer at once


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Two-sided Wilson score interval of a proportion (Wilson, 1927)."""
    interval = scipy.stats.binomtest(correct, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def exact_bounds(correct: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """One-sided exact bounds of a proportion, each wrong with probability at most alpha (Clopper and Pearson, 1934)."""
    low = scipy.stats.binomtest(correct, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low
    high = scipy.stats.binomtest(correct, n, alternative="less").proportion_ci(1 - alpha, method="exact").high
    return float(low), float(high)


def mcnemar(lost: int, gained: int, *, mid_p: bool = False) -> float:
    """One-sided p-value that as many samples or more are lost when losing and gaining are equally likely.

    lost, gained: the samples that only the old or only the new model gets right (McNemar, 1947, exact form).
    mid_p: the observed split counts by half (Fagerland, Lydersen and Laake, 2013), which costs less power.
    """
    changed = lost + gained
    as_many = scipy.special.bdtr(gained, changed, 0.5)
    if not mid_p:
        return float(as_many)
    more = scipy.special.bdtr(gained - 1, changed, 0.5) if gained else 0.0
    return float(as_many + more) / 2


def drop_p_value(lost: int, gained: int, n: int, limit: float) -> float:
    """One-sided p-value that so much is lost on n paired samples when the drop P(lost) − P(gained) is limit.

    Below alpha exactly where drop_bounds' low is above limit; with limit 0 it is mcnemar's mid-p value. That so little
    is lost when the drop is limit has the p-value drop_p_value(gained, lost, n, -limit).

    The thought: at a drop of limit >= 0 each sample is lost for good with probability limit, and of the others as many
    are lost as gained but for chance. So a binomial number, whose law is known, is taken out of lost, McNemar's test
    judges the rest, and the p-value is the mean over that number. The number is drawn as if nothing were known of it,
    which makes the test cautious, not exact: from 50 samples on, of which at most half change sides, its error was
    nowhere found above alpha (benchmarks/gate_statistics.py).
    Raises ValueError for counts that no n samples give.
    """
    if min(lost, gained) < 0 or n < 1 or lost + gained > n:
        raise ValueError(f"{lost} lost and {gained} gained are no counts of {n} samples")
    if limit > 0:
        return _upper_tail(lost, gained, n, limit)
    even = mcnemar(lost, gained, mid_p=True)
    # A drop below zero is a gain: that so little is gained. It is never easier to believe than no drop at all.
    return even if limit == 0 else min(even, _lower_tail(gained, lost, n, -limit))


def _upper_tail(lost: int, gained: int, n: int, drop: float) -> float:
    for_good, chance = _lost_for_good(n, drop)
    rest = np.maximum(lost - for_good, 0)
    tails = scipy.special.bdtr(gained, rest + gained, 0.5)
    if for_good[0] == 0:
        # Nothing is taken out: mid-p here makes this the mid-p test as the drop goes to zero.
        tails[0] = mcnemar(lost, gained, mid_p=True)
    return float(min(chance @ tails, 1.0))


def _lower_tail(lost: int, gained: int, n: int, drop: float) -> float:
    for_good, chance = _lost_for_good(n, drop)
    possible = for_good <= lost
    rest = lost - for_good[possible]
    return float(min(chance[possible] @ scipy.special.bdtr(rest, rest + gained, 0.5), 1.0))


def _lost_for_good(n: int, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that n samples lose with probability drop each, and their chances, without the far tails."""
    spread = 10 * math.sqrt(n * drop * (1 - drop)) + 20
    numbers = np.arange(max(0, math.floor(n * drop - spread)), min(n, math.ceil(n * drop + spread)) + 1)
    # scipy's binom.pmf overflows at the smallest probabilities.
    ways = scipy.special.gammaln(n + 1) - scipy.special.gammaln(numbers + 1) - scipy.special.gammaln(n - numbers + 1)
    return numbers, np.exp(ways + scipy.special.xlogy(numbers, drop) + scipy.special.xlog1py(n - numbers, -drop))


def drop_bounds(lost: int, gained: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """One-sided bounds of the paired drop P(lost) − P(gained), each wrong with probability alpha at most (see
    drop_p_value).

    Between them lie the drops that drop_p_value rejects neither for so much nor for so little lost: low > 0 exactly
    where mcnemar(lost, gained, mid_p=True) < alpha, and where nothing changed high is the exact bound, about 3/n.
    Both rise with lost and fall with gained. Raises ValueError for counts that no n samples give.
    """
    # 0.0 - x, as -x would make a negative zero.
    return _least_drop(lost, gained, n, alpha), 0.0 - _least_drop(gained, lost, n, alpha)


def _least_drop(lost: int, gained: int, n: int, alpha: float) -> float:
    """The drop below which all are rejected: so much is lost."""

    def excess(drop: float) -> float:
        return drop_p_value(lost, gained, n, drop) - alpha

    if excess(-1.0) >= 0:
        return -1.0
    ends = (0.0, 1.0) if excess(0.0) < 0 else (-1.0, 0.0)
    return float(scipy.optimize.brentq(excess, *ends, xtol=1e-9))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the given order.

    Rejecting those below alpha rejects any true hypothesis with probability at most alpha (Holm, 1979).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
