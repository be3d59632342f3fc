import pytest
from scipy import stats

from robustbench_local.statistics import exact_bounds, mcnemar, wilson


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
