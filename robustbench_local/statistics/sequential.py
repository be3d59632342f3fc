"""Bounds on the accuracy over a finite set while its samples are drawn at random without replacement.

The bounds may be computed after every sample, and sampling may stop because of them: over the whole course each of them
is wrong with probability at most alpha (prior-posterior ratio of Waudby-Smith and Ramdas, 2020).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy

ROUNDING = 1e-9
"""Relative error of the likelihoods, which are computed through logarithms of factorials."""


def finite_bounds(correct: int, n: int, population: int, alpha: float = 0.05) -> tuple[float, float]:
    """Anytime-valid one-sided bounds on the accuracy over `population` samples, after n of them were drawn.

    correct: how many of the n are correct. Each bound is wrong with probability at most alpha, even if computed often.
    Both equal the accuracy once all samples are drawn. They depend on the current counts only, not on earlier bounds.
    Raises ValueError unless 0 <= correct <= n <= population and population > 0.
    """
    if not 0 <= correct <= n <= population or population < 1:
        raise ValueError(f"{correct} correct of {n} drawn of {population} are no counts of a draw without replacement")
    # All totals of correct samples that this draw allows. With a uniform prior over the totals, the posterior is the
    # likelihood of the draw, normalized to sum to one.
    totals = np.arange(correct, population - (n - correct) + 1)
    wrong = population - totals
    table = _log_factorials(population + 1)
    posterior = np.exp(
        table[totals]
        - table[totals - correct]
        - table[correct]
        + table[wrong]
        - table[wrong - (n - correct)]
        - table[n - correct]
        - (table[population + 1] - table[population - n] - table[n + 1])
    )
    # A total is rejected where the mean likelihood of all larger totals (for the lower bound; of all smaller ones for
    # the upper) is 1 / alpha times its own: if the total were true, that ratio would be a martingale starting at 1.
    above = np.append(np.cumsum(posterior[:0:-1])[::-1], 0)
    below = np.append(0, np.cumsum(posterior[:-1]))
    # A total at which both sides are equal is kept, whatever rounding makes of them.
    low = totals[alpha * above <= posterior * wrong * (1 + ROUNDING)][0]
    high = totals[alpha * below <= posterior * totals * (1 + ROUNDING)][-1]
    return float(low / population), float(high / population)


@lru_cache(maxsize=8)
def _log_factorials(largest: int) -> np.ndarray:
    table: np.ndarray = scipy.special.gammaln(np.arange(largest + 1) + 1.0)
    return table
