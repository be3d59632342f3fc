"""Bounds on what is left in a population of which a part was drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from robustbench_local.statistics.sampling import most_remaining, share_for


def test_nothing_found_leaves_what_the_closed_form_says():
    """Without a find, d members are ruled out where (1 - share)^d is at most alpha."""
    for share, alpha in itertools.product((0.05, 0.3, 0.8), (0.05, 0.0125)):
        ruled_out = next(d for d in range(1, 2000) if (1 - share) ** d <= alpha)
        assert most_remaining(0, 10_000, share, alpha) == ruled_out - 1


def test_the_share_for_a_limit_is_just_enough():
    for limit, population in ((0, 50), (1, 80), (10, 900), (100, 8000)):
        share = share_for(limit, population, 0.025)
        assert most_remaining(0, population, share * 1.0001, 0.025) <= limit
        assert most_remaining(0, population, share * 0.99, 0.025) > limit or limit == 0


def test_a_population_within_the_limit_needs_no_draw():
    assert share_for(5, 5, 0.05) == 0


def test_all_drawn_leaves_nothing():
    assert most_remaining(7, 30, 1.0, 0.05) == 0


def test_nothing_drawn_rules_nothing_out():
    assert most_remaining(0, 30, 0.0, 0.05) == 30


def test_more_finds_leave_more_and_larger_shares_leave_less():
    finds = [most_remaining(found, 500, 0.3, 0.05) for found in range(20)]
    shares = [most_remaining(4, 500, share, 0.05) for share in (0.1, 0.2, 0.4, 0.8)]
    assert finds == sorted(finds)
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(("found", "population", "share"), [(-1, 5, 0.5), (6, 5, 0.5), (1, 5, 1.5)])
def test_impossible_counts_are_refused(found, population, share):
    with pytest.raises(ValueError, match="impossible"):
        most_remaining(found, population, share, 0.05)


def error_rate(strata, members, share, alpha):
    """The exact probability that the bound is exceeded. strata: sizes; members: how many of each have the property."""
    drawn = [-(-round(share * 1000) * size // 1000) for size in strata]
    found = np.ones(1)
    for size, count, draw in zip(strata, members, drawn, strict=True):
        found = np.convolve(found, stats.hypergeom(size, count, draw).pmf(np.arange(count + 1)))
    population, total = sum(strata), sum(members)
    left = [most_remaining(k, population, share, alpha) for k in range(total + 1)]
    return sum(p for k, p in enumerate(found) if total - k > left[k])


@pytest.mark.parametrize("members", [(0, 0, 0, 9), (3, 2, 2, 2), (9, 0, 0, 0), (1, 0, 0, 0), (20, 20, 20, 20)])
@pytest.mark.parametrize("share", [0.1, 0.35, 0.8])
def test_wherever_the_members_are_the_bound_is_wrong_no_more_often_than_it_says(members, share):
    assert error_rate((20, 40, 80, 60), members, share, 0.05) <= 0.05 + 1e-9
