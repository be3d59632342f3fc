"""What a finite set's accuracy can still be, at any moment while its samples are drawn at random without replacement.

The bounds may be looked at after every sample, and the drawing may stop because of what they say: over the whole
course each of them is wrong with probability at most alpha (prior-posterior ratio of Waudby-Smith and Ramdas, 2020).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy


def finite_bounds(correct: int, n: int, population: int, alpha: float = 0.05) -> tuple[float, float]:
    """Anytime-valid one-sided bounds of the accuracy of all population samples, of which n are drawn and correct right.

    Each is wrong with probability at most alpha, however often one looks; both are the accuracy itself where all
    samples are drawn. They are those of this moment alone: bounds of earlier moments are not carried along.
    Raises ValueError unless 0 <= correct <= n <= population and population > 0.
    """
    if not 0 <= correct <= n <= population or population < 1:
        raise ValueError(f"{correct} correct of {n} drawn of {population} are no counts of a draw without replacement")
    # The totals of correct samples that the draw leaves possible. With all totals equally likely before it, the
    # posterior is the likelihood of the draw, made to sum to one.
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
    # A total is refused where the mean likelihood of all larger totals (for the lower bound; of all smaller ones for
    # the upper) is 1 / alpha times its own: were it true, that ratio would be a martingale that begins at 1.
    above = np.append(np.cumsum(posterior[:0:-1])[::-1], 0)
    below = np.append(0, np.cumsum(posterior[:-1]))
    low = totals[alpha * above <= posterior * wrong][0]
    high = totals[alpha * below <= posterior * totals][-1]
    return float(low / population), float(high / population)


@lru_cache(maxsize=8)
def _log_factorials(largest: int) -> np.ndarray:
    return scipy.special.gammaln(np.arange(largest + 1) + 1.0)
