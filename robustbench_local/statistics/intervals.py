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
    """One-sided p-value of losing at least this many samples if losing and gaining are equally likely.

    lost, gained: samples that only the old or only the new model classifies correctly (McNemar, 1947, exact form).
    mid_p: count the observed split by half (Fagerland, Lydersen and Laake, 2013), which gives more power.
    """
    changed = lost + gained
    at_least = scipy.special.bdtr(gained, changed, 0.5)
    if not mid_p:
        return float(at_least)
    more = scipy.special.bdtr(gained - 1, changed, 0.5) if gained else 0.0
    return float(at_least + more) / 2


def drop_p_value(lost: int, gained: int, n: int, limit: float) -> float:
    """One-sided p-value of a paired drop at least this large if the true drop P(lost) − P(gained) is `limit`.

    It is below alpha exactly where the lower bound of `drop_bounds` is above limit. With limit 0 it is the mid-p value
    of `mcnemar`. The p-value of a drop at most this large is drop_p_value(gained, lost, n, -limit).

    The idea: at a drop of limit >= 0, each sample is lost for good with probability limit, and the other samples are
    lost or gained by chance alike. So a binomial number of samples is removed from lost, McNemar's test is applied to
    the rest, and the p-value is the mean over that number. Ignoring the data in that number makes the test
    conservative, not exact: from 50 samples on, at most half of them changed, its error was never above alpha
    (benchmarks/gate_statistics.py).
    Raises ValueError for counts that are impossible for n samples.
    """
    if min(lost, gained) < 0 or n < 1 or lost + gained > n:
        raise ValueError(f"{lost} lost and {gained} gained are impossible for {n} samples")
    if limit > 0:
        return _upper_tail(lost, gained, n, limit)
    even = mcnemar(lost, gained, mid_p=True)
    # A negative drop is a gain. Its p-value is never larger than that of no drop.
    return even if limit == 0 else min(even, _lower_tail(gained, lost, n, -limit))


def _upper_tail(lost: int, gained: int, n: int, drop: float) -> float:
    permanent, chance = _permanent_losses(n, drop)
    rest = np.maximum(lost - permanent, 0)
    tails = scipy.special.bdtr(gained, rest + gained, 0.5)
    if permanent[0] == 0:
        # Nothing is removed: mid-p here makes this the mid-p test as the drop goes to zero.
        tails[0] = mcnemar(lost, gained, mid_p=True)
    return float(min(chance @ tails, 1.0))


def _lower_tail(lost: int, gained: int, n: int, drop: float) -> float:
    permanent, chance = _permanent_losses(n, drop)
    possible = permanent <= lost
    rest = lost - permanent[possible]
    return float(min(chance[possible] @ scipy.special.bdtr(rest, rest + gained, 0.5), 1.0))


def _permanent_losses(n: int, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """How many of n samples are lost with probability drop each, and the probabilities, without the far tails."""
    spread = 10 * math.sqrt(n * drop * (1 - drop)) + 20
    numbers = np.arange(max(0, math.floor(n * drop - spread)), min(n, math.ceil(n * drop + spread)) + 1)
    # scipy's binom.pmf overflows at the smallest probabilities.
    ways = scipy.special.gammaln(n + 1) - scipy.special.gammaln(numbers + 1) - scipy.special.gammaln(n - numbers + 1)
    return numbers, np.exp(ways + scipy.special.xlogy(numbers, drop) + scipy.special.xlog1py(n - numbers, -drop))


def drop_bounds(lost: int, gained: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """One-sided bounds on the paired drop P(lost) − P(gained), each wrong with probability at most alpha.

    They contain the drops that `drop_p_value` does not reject in either direction: low > 0 exactly where
    mcnemar(lost, gained, mid_p=True) < alpha, and without any change high is the exact bound, about 3/n.
    Both increase with lost and decrease with gained. Raises ValueError for counts that are impossible for n samples.
    """
    # 0.0 - x, as -x would make a negative zero.
    return _least_drop(lost, gained, n, alpha), 0.0 - _least_drop(gained, lost, n, alpha)


def _least_drop(lost: int, gained: int, n: int, alpha: float) -> float:
    """The smallest drop that is not rejected as too small."""

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
