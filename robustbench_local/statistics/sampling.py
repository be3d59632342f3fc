"""How many members of a finite population may still have a property, after some were drawn without replacement."""

from __future__ import annotations

import math

import scipy


def most_remaining(found: int, population: int, share: float, alpha: float) -> int:
    """The largest number of members not drawn that may have the property; exceeded with probability at most alpha.

    found: how many of those drawn have it. share: the smallest share of any stratum that was drawn, in [0, 1]; the
    members of a stratum are drawn at random without replacement, and the draws of different strata are independent.

    The idea: with d such members in all, the number found is a sum of d independent Bernoulli variables (Vatutin and
    Mikhailov, 1982) with a mean of at least share · d, wherever the d members are. Below its mean minus one, the tail
    of such a sum is at most that of a binomial variable with d trials (Hoeffding, 1956).
    Raises ValueError for counts or shares that are impossible.
    """
    if not 0 <= found <= population or not 0 <= share <= 1:
        raise ValueError(f"{found} found of {population} with a share of {share} drawn is impossible")
    if share == 1:
        return 0
    low, high = found, population  # `low` is possible; everything above `high` is not
    while low < high:
        middle = (low + high + 1) // 2
        if _possible(middle, found, share, alpha):
            low = middle
        else:
            high = middle - 1
    return low - found


def _possible(members: int, found: int, share: float, alpha: float) -> bool:
    """Whether that many members in all are compatible with those found."""
    if found and found > share * members - 1:
        return True  # too close to the mean for Hoeffding's inequality
    return bool(scipy.special.bdtr(found, members, share) > alpha)


def share_for(limit: int, population: int, alpha: float) -> float:
    """The share of every stratum to draw so that, if nothing is found, at most `limit` members have it.

    Returns a share in [0, 1]; 0 where the population is no larger than the limit.
    """
    if population <= limit:
        return 0.0
    return 1.0 - math.exp(math.log(alpha) / (limit + 1))
