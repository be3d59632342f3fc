import importlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robustbench_local.statistics.intervals import drop_bounds, drop_p_value, exact_bounds, holm, mcnemar, wilson


@st.composite
def paired_counts(draw, least=1, most=400):
    """lost, gained, n."""
    n = draw(st.integers(least, most))
    lost = draw(st.integers(0, n))
    return lost, draw(st.integers(0, n - lost)), n


def test_wilson_by_hand():
    """Wilson (1927): centre (k + z²/2) / (n + z²), here with k = 8 of n = 10 at z = 1.96."""
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (527, 1000), (1, 1)])
def test_exact_bounds_leave_alpha_outside(correct, n):
    low, high = exact_bounds(correct, n, 0.05)
    assert 0 <= low <= correct / n <= high <= 1
    if correct > 0:
        assert stats.binom.sf(correct - 1, n, low) == pytest.approx(0.05, rel=1e-6)
    if correct < n:
        assert stats.binom.cdf(correct, n, high) == pytest.approx(0.05, rel=1e-6)


def test_the_published_gate_example():
    """Robust accuracy of at least 50 % needs 52.7 % observed on 1,000 images."""
    assert exact_bounds(527, 1000)[0] >= 0.5 > exact_bounds(525, 1000)[0]


def test_mcnemar_is_the_one_sided_sign_test():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 0) == pytest.approx(0.5**5)
    assert mcnemar(3, 3) > 0.5


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_against_scipy(lost, gained):
    changed = lost + gained
    exact = stats.binomtest(lost, changed, alternative="greater").pvalue if changed else 1
    assert mcnemar(lost, gained) == pytest.approx(exact, rel=1e-9)
    mid = exact - stats.binom.pmf(lost, changed, 0.5) / 2
    assert mcnemar(lost, gained, mid_p=True) == pytest.approx(mid, rel=1e-6)
    assert mcnemar(lost, gained, mid_p=True) + mcnemar(gained, lost, mid_p=True) == pytest.approx(1)


def test_published_mid_p_values():
    """The example of Fagerland, Lydersen and Laake (2013), 1 against 7 of 21 pairs: exact 0.070, mid-p 0.039."""
    assert 2 * mcnemar(7, 1) == pytest.approx(0.0703, abs=5e-5)
    assert 2 * mcnemar(7, 1, mid_p=True) == pytest.approx(0.0391, abs=5e-5)


# Drops.


def by_simulation(lost, gained, n, drop, draws=400_000):
    """drop_p_value as its docstring tells it, one binomial number at a time: (as much lost, as little lost)."""
    for_good = np.random.default_rng(0).binomial(n, drop, draws)
    much = little = 0.0
    for number, times in zip(*np.unique(for_good, return_counts=True), strict=True):
        rest = lost - int(number)
        much += times * (1.0 if rest <= 0 else mcnemar(rest, gained, mid_p=number == 0))
        little += times * (mcnemar(gained, rest) if rest >= 0 else 0.0)
    return much / draws, little / draws


@pytest.mark.parametrize(
    ("lost", "gained", "n", "drop"), [(12, 3, 200, 0.02), (5, 0, 50, 0.05), (30, 22, 1000, 0.002), (1, 4, 100, 0.01)]
)
def test_the_drops_p_value_is_mcnemars_on_what_is_not_lost_for_good(lost, gained, n, drop):
    much, little = by_simulation(lost, gained, n, drop)
    assert drop_p_value(lost, gained, n, drop) == pytest.approx(much, abs=2e-3)
    assert drop_p_value(gained, lost, n, -drop) == pytest.approx(
        min(little, mcnemar(gained, lost, mid_p=True)), abs=2e-3
    )


@given(st.integers(1, 5000))
def test_where_nothing_changed_the_bound_is_the_exact_one(n):
    """(1 - high)^n = 0.05, the rule of three."""
    low, high = drop_bounds(0, 0, n)
    assert high == pytest.approx(exact_bounds(0, n)[1], abs=1e-7) == pytest.approx(-low)
    assert high == pytest.approx(1 - 0.05 ** (1 / n), abs=1e-7)
    assert high <= 3 / n


@given(paired_counts())
def test_where_nothing_is_gained_the_bounds_are_those_of_a_proportion(counts):
    """The upper one is the exact one; the lower one allows for as many lost by chance."""
    lost, _, n = counts
    low, high = drop_bounds(lost, 0, n)
    assert high == pytest.approx(exact_bounds(lost, n)[1], abs=1e-7)
    assert low <= exact_bounds(lost, n)[0] + 1e-7


@settings(deadline=None)
@given(paired_counts(), st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.2]))
def test_drop_bounds_agree_with_the_tests(counts, alpha):
    lost, gained, n = counts
    low, high = drop_bounds(lost, gained, n, alpha)
    assert -1 <= low <= (lost - gained) / n <= high <= 1
    assert (low > 0) == (mcnemar(lost, gained, mid_p=True) < alpha)
    assert (high < 0) == (mcnemar(gained, lost, mid_p=True) < alpha)
    back = drop_bounds(gained, lost, n, alpha)
    assert (low, high) == (pytest.approx(-back[1]), pytest.approx(-back[0]))
    for limit in (-0.2, -0.01, 0.01, 0.03, 0.5):
        if abs(low - limit) > 1e-8:
            assert (low > limit) == (drop_p_value(lost, gained, n, limit) < alpha)
        if abs(high - limit) > 1e-8:
            assert (high < limit) == (drop_p_value(gained, lost, n, -limit) < alpha)


@settings(deadline=None)
@given(paired_counts(least=2), st.floats(-1, 1), st.floats(-1, 1))
def test_drop_p_values_move_one_way(counts, one, other):
    lost, gained, n = counts
    least, most = sorted((one, other))
    p = drop_p_value(lost, gained, n, least)
    assert 0 <= p <= drop_p_value(lost, gained, n, most) + 1e-12 <= 1 + 1e-9
    if lost + gained < n:
        assert drop_p_value(lost + 1, gained, n, least) <= p + 1e-12
        assert drop_p_value(lost, gained + 1, n, least) >= p - 1e-12


def test_drop_bounds_rise_with_lost_and_fall_with_gained():
    n = 60
    bounds = {(lost, gained): drop_bounds(lost, gained, n) for lost in range(10) for gained in range(10)}
    for (lost, gained), each in bounds.items():
        for more, sign in (((lost + 1, gained), 1), ((lost, gained + 1), -1)):
            for side in (0, 1):
                assert sign * (bounds.get(more, each)[side] - each[side]) >= -1e-8


def test_a_drop_below_zero_is_never_easier_to_believe_than_none():
    """Where mid-p says that something was lost, that something was gained is out of the question too."""
    lost, gained = 9, 3
    assert mcnemar(lost, gained, mid_p=True) < 0.05 < mcnemar(lost, gained)
    assert drop_p_value(lost, gained, 1000, -1e-9) == mcnemar(lost, gained, mid_p=True)


@pytest.mark.parametrize("limit", [5e-324, 1e-308, 1e-12])
def test_the_smallest_limits_are_those_of_no_drop(limit):
    for sign in (1, -1):
        assert drop_p_value(9, 3, 1000, sign * limit) == pytest.approx(mcnemar(9, 3, mid_p=True))


@pytest.mark.parametrize("counts", [(-1, 0, 10), (0, -1, 10), (6, 5, 10), (0, 0, 0)])
def test_counts_of_no_samples_are_refused(counts):
    with pytest.raises(ValueError, match="impossible"):
        drop_bounds(*counts)


def decisions(n, limit, alpha):
    """Whether each (lost, gained) fails and passes; no more than 60 of n change sides."""
    grid = [(lost, gained) for lost in range(41) for gained in range(min(41, n - lost + 1))]
    fails = np.array([drop_p_value(lost, gained, n, limit) < alpha for lost, gained in grid])
    passes = np.array([drop_p_value(gained, lost, n, -limit) < alpha for lost, gained in grid])
    return np.array(grid), fails, passes


@pytest.mark.parametrize("n", [50, 100, 400])
@pytest.mark.parametrize("limit", [0.0, 0.01, 0.03])
def test_the_exact_error_of_a_drop_stays_below_alpha(n, limit):
    """Summed over all counts, with the truth at the limit and up to 10 more samples changing sides."""
    grid, fails, passes = decisions(n, limit, 0.05)
    for extra in (0, 0.2, 0.5, 1, 2, 4, 7, 10):
        lose, gain = limit + extra / (2 * n), extra / (2 * n)
        chance = stats.multinomial.pmf(np.c_[grid, n - grid.sum(axis=1)], n, [lose, gain, 1 - lose - gain])
        assert chance.sum() > 1 - 1e-4
        assert chance[fails].sum() <= 0.05
        assert chance[passes].sum() <= 0.05


# Several.


def test_holm_by_hand():
    """Holm (1979): the smallest times k, the next times k - 1, never below the one before, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8), st.sampled_from([0.01, 0.05, 0.5]))
def test_holm_rejects_one_after_the_other(p_values, alpha):
    adjusted = holm(p_values)
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if (len(p_values) - rank) * p_values[i] >= alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(adjusted) if p < alpha} == rejected
    assert all(p <= q or math.isclose(p, q) for p, q in zip(p_values, adjusted, strict=True))


# What the gate decides, simulated.


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("gate_statistics")


def not_above(rate, draws, alpha=0.05):
    """Whether so high a rate is what chance makes of alpha, but once in ten thousand times."""
    return stats.binom.sf(round(rate * draws) - 1, draws, alpha) > 1e-4


def held(rows, draws):
    for row in rows:
        for key in ("wrong_pass", "wrong_fail", "any_wrong_fail", "wrong"):
            assert not_above(row.get(key, 0), draws), row
        assert max(row.get("exact_wrong_pass", 0), row.get("exact_wrong_fail", 0)) <= 0.05, row
        for key in ("pass", "fail"):
            if (exact := row.get(f"exact_wrong_{key}")) is not None:
                assert row[f"wrong_{key}"] == pytest.approx(exact, abs=5 * math.sqrt(0.05 / draws)), row


def test_gates_err_seldom_in_a_short_simulation(bench, monkeypatch):
    monkeypatch.setattr(bench, "SIZES", (100, 1000))
    monkeypatch.setattr(bench, "DISCORDANCES", (0.03, 0.1))
    rng = np.random.default_rng(0)
    held(bench.floors(10_000, rng), 10_000)
    held(bench.drops(10_000, rng), 10_000)
    seen = bench.drop_rates(1000, 0.0, 0.02, 0.06, 10_000, rng)
    assert seen["fail"] >= 0.8
    assert seen["exact_fail"] >= 0.8
    assert seen["pass"] < 0.001


@pytest.mark.soak
def test_gates_err_seldom(bench):
    draws, rng = 10_000, np.random.default_rng(1)
    parts = (bench.floors, bench.drops, bench.power, bench.holm, bench.sequential)
    found = {part.__name__: part(draws, rng) for part in parts}
    for name in ("floors", "drops", "holm", "sequential"):
        held(found[name], draws)
    [seen] = [row for row in found["power"] if (row["n"], row["limit"]) == (1000, 0.0)]
    assert seen["fail"] >= 0.8
    assert seen["exact_fail"] >= 0.8
    for row in found["sequential"]:
        if row["population"] == 10_000 and abs(row["correct"] - row["limit"] * 10_000) > 400:
            assert row["mean_share"] <= 0.2, row
    assert bench.tables(found).count("\n|") > 40
