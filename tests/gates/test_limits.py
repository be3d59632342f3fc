import pytest
from scipy import stats

from robustbench_local.gates.limits import Drop, Floor, failing
from robustbench_local.statistics.intervals import drop_bounds, exact_bounds, holm, mcnemar


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (1, 1), (0, 1)])
def test_floors_at_the_ends_of_the_scale(correct, n):
    assert Floor("r", "a", correct, n, 0.0, n).passes(0.05)
    assert not Floor("r", "a", correct, n, 1.0, n).passes(0.05)
    assert Floor("r", "a", correct, n, 1.0, n).fails(0.05) == (exact_bounds(correct, n)[1] < 1)
    assert not Floor("r", "a", correct, n, 0.0, n).fails(0.05)


def test_as_many_samples_as_are_named_do_decide():
    for limit in (Floor("r", "a", 515, 1000, 0.5, 1000), Drop("r", "a", 20, 5, 1000, 0.01, 1000)):
        enough = limit.samples_to_decide(0.05, 1, 10**7)
        larger, smaller = limit.with_sample_size(enough), limit.with_sample_size(round(0.9 * enough))
        assert larger.passes(0.05) or larger.fails(0.05)
        assert not smaller.passes(0.05)
        assert not smaller.fails(0.05)


def test_a_fail_among_many_limits_takes_more_samples():
    floor = Floor("r", "a", 473, 1000, 0.5, 1000)
    assert floor.samples_to_decide(0.05, 1, 10**7) == 1000 < floor.samples_to_decide(0.05, 20, 10**7)
    assert floor.with_sample_size(floor.samples_to_decide(0.05, 20, 10**7)).fails(0.05 / 20)


@pytest.mark.parametrize("gained", [0, 1, 5, 20])
def test_without_any_drop_allowed_the_fail_is_mcnemars(gained):
    for lost in range(60):
        assert Drop("r", "a", lost, gained, 500, 0.0, 500).fails(0.05) == (mcnemar(lost, gained, mid_p=True) < 0.05)


@pytest.mark.parametrize("limit", [0.0, 0.01, 0.05, 0.3, 1.0])
@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (3, 0), (0, 3), (12, 5), (40, 10), (100, 0)])
def test_drops_are_decided_as_their_bounds_say(lost, gained, limit):
    low, high = drop_bounds(lost, gained, 100, 0.05)
    drop = Drop("r", "a", lost, gained, 100, limit, 100)
    assert (drop.passes(0.05), drop.fails(0.05)) == (high <= limit, low > limit)


def test_holm_is_that_of_the_p_values():
    counts = [440, 465, 470, 473, 480, 500]
    floors = [Floor("r", "a", correct, 1000, 0.5, 1000) for correct in counts]
    adjusted = holm([float(stats.binom.cdf(correct, 1000, 0.5)) for correct in counts])
    assert failing(floors, 0.05) == [p < 0.05 for p in adjusted] != [floor.fails(0.05) for floor in floors]
    assert failing([], 0.05) == []
