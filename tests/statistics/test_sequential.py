import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robustbench_local.gates.limits import Floor
from robustbench_local.statistics.sequential import finite_bounds


@st.composite
def draws(draw, most=300):
    """correct, n, population."""
    population = draw(st.integers(1, most))
    n = draw(st.integers(0, population))
    return draw(st.integers(0, n)), n, population


def by_definition(correct, n, population, alpha):
    """In exact fractions.

    A total is kept while the mean likelihood of all larger (smaller) ones is at most 1 / alpha times its own.
    """

    def likelihood(total):
        return Fraction(
            math.comb(total, correct) * math.comb(population - total, n - correct), math.comb(population, n)
        )

    kept = {"low": [], "high": []}
    for total in range(population + 1):
        own = likelihood(total)
        for side, others in (("low", range(total + 1, population + 1)), ("high", range(total))):
            mean = sum(map(likelihood, others)) / len(others) if others else 0
            if own > 0 and alpha * mean <= own:
                kept[side].append(total)
    return kept["low"][0] / population, kept["high"][-1] / population


@pytest.mark.parametrize("alpha", [Fraction(7, 100), Fraction(19, 100)])
@pytest.mark.parametrize("population", [1, 2, 7, 20])
def test_bounds_are_those_of_the_definition(population, alpha):
    for n in range(population + 1):
        for correct in range(n + 1):
            expected = by_definition(correct, n, population, alpha)
            assert finite_bounds(correct, n, population, float(alpha)) == pytest.approx(expected), (correct, n)


@given(st.integers(1, 500), st.data())
def test_the_whole_set_leaves_nothing_open(population, data):
    correct = data.draw(st.integers(0, population))
    assert finite_bounds(correct, population, population) == (correct / population,) * 2


@given(draws())
@example((0, 1, 194))
@example((79, 80, 81))
@example((81, 82, 83))
def test_bounds_hold_what_was_seen_and_what_is_possible(counts):
    correct, n, population = counts
    low, high = finite_bounds(*counts)
    assert correct / population <= low <= high <= (population - (n - correct)) / population
    if n:
        # By at most one sample, since the bounds are multiples of 1 / population: (81, 82, 83) rules 81 of 83 out.
        assert low <= correct / n + 1 / population
        assert high >= correct / n - 1 / population
    assert finite_bounds(n - correct, n, population) == (pytest.approx(1 - high), pytest.approx(1 - low))


@given(draws(), st.sampled_from([0.01, 0.05, 0.2]))
def test_a_sample_more_moves_the_bounds_its_way(counts, alpha):
    """On this rests the benchmark's look-up of decisions."""
    correct, n, population = counts
    if n == population:
        return
    low, high = finite_bounds(correct, n, population, alpha)
    more, less = (finite_bounds(correct + right, n + 1, population, alpha) for right in (1, 0))
    assert less[0] <= low <= more[0]
    assert less[1] <= high <= more[1]


@pytest.mark.parametrize("counts", [(1, 0, 5), (-1, 2, 5), (2, 6, 5), (0, 0, 0)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="no counts"):
        finite_bounds(*counts)


def test_the_far_ends_of_a_large_set_are_finite_numbers():
    with np.errstate(all="raise", under="ignore"):
        for correct, n in ((0, 0), (0, 49_999), (25_000, 49_999), (49_999, 49_999), (50_000, 50_000)):
            low, high = finite_bounds(correct, n, 50_000)
            assert 0 <= low <= high <= 1
    began = time.process_time()
    finite_bounds(24_000, 40_000, 50_000)
    assert time.process_time() - began < 0.05


@pytest.mark.parametrize(("population", "alpha"), [(12, 0.05), (14, 0.2), (40, 0.05), (40, 0.3)])
def test_looking_after_every_sample_errs_at_most_alpha_times(population, alpha):
    """The exact probability, over all orders, that the truth is ever outside either bound."""
    for truth in range(population + 1):
        for side in (0, 1):
            # chance[correct]: of being there with no bound ever wrong
            chance = np.zeros(population + 1)
            chance[0], ever_wrong = 1.0, 0.0
            for n in range(1, population + 1):
                grown = np.zeros_like(chance)
                for correct, here in enumerate(chance):
                    right = max(truth - correct, 0) / (population - n + 1)
                    if here > 0:
                        grown[correct] += here * (1 - right)
                        if right > 0:
                            grown[correct + 1] += here * right
                chance = grown
                for correct in np.flatnonzero(chance > 0).tolist():
                    bound = finite_bounds(correct, n, population, alpha)[side]
                    if (bound - truth / population) * (1 if side == 0 else -1) > 1e-12:
                        ever_wrong += chance[correct]
                        chance[correct] = 0
            assert ever_wrong <= alpha


def decision(correct, n, population, limit):
    floor = Floor("min_robust", "robust accuracy", correct, n, limit, population, finite=True)
    return True if floor.passes(0.05) else False if floor.fails(0.05) else None


@settings(deadline=None)
@given(draws(), st.sampled_from([0.07, 0.29, 0.3, 0.5, 0.57, 0.9]))
def test_a_gate_decides_a_finite_set_by_its_bounds(counts, limit):
    correct, n, population = counts
    decided = decision(*counts, limit)
    if n == population:
        assert decided is (Fraction(correct, population) >= Fraction(str(limit)))
    if decided is True:
        assert correct > 0
    if decided is False:
        assert correct < n


def test_five_points_are_seen_in_a_fifth_of_ten_thousand_samples():
    """A short simulation of the product's decisions, looked at after every 50 samples, which can only take longer."""
    population, runs, rng = 10_000, 20, np.random.default_rng(0)
    for limit, truth in itertools.product((0.5, 0.7), (-0.05, 0.05)):
        total, seen = round((limit + truth) * population), []
        for _ in range(runs):
            order = rng.permutation(population) < total
            correct = np.cumsum(order)
            looks = range(50, population + 1, 50)
            n = next(n for n in looks if decision(int(correct[n - 1]), n, population, limit) is not None)
            seen.append(n)
        assert np.mean(seen) < 0.2 * population
