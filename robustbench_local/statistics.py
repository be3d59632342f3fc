"""Intervals and tests for counts, all of them scipy's."""
from __future__ import annotations

from scipy import stats


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Two-sided Wilson score interval of a proportion (Wilson, 1927)."""
    interval = stats.binomtest(correct, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def exact_bounds(correct: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """One-sided exact bounds of a proportion, each wrong with probability at most alpha (Clopper and Pearson, 1934)."""
    low = stats.binomtest(correct, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low
    high = stats.binomtest(correct, n, alternative="less").proportion_ci(1 - alpha, method="exact").high
    return float(low), float(high)


def mcnemar(lost: int, gained: int) -> float:
    """One-sided exact p-value that as many samples or more are lost when losing and gaining are equally likely.

    lost, gained: the samples that only the old or only the new model gets right (McNemar, 1947, exact form).
    """
    if lost + gained == 0:
        return 1.0
    return float(stats.binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue)
