"""The seeded subset: proportions, determinism, and golden draws that must hold on every machine for ever."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustbench_local.data import stratified_subset
from robustbench_local.errors import UserError


@st.composite
def requests(draw):
    labels = draw(st.lists(st.integers(0, 6), min_size=1, max_size=120))
    return torch.tensor(labels), draw(st.integers(1, len(labels))), draw(st.integers(-(2**70), 2**70))


@given(requests())
def test_it_is_sorted_unique_of_the_right_size_and_in_proportion(request):
    labels, samples, seed = request
    chosen = stratified_subset(labels, samples, seed)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == samples
    assert int(chosen[0]) >= 0
    assert int(chosen[-1]) < len(labels)
    for label in labels.unique():
        exact = Fraction(samples * int((labels == label).sum()), len(labels))
        assert abs(int((labels[chosen] == label).sum()) - exact) < 1
    assert torch.equal(chosen, stratified_subset(labels, samples, seed))


def test_the_global_generators_are_neither_read_nor_moved():
    labels = torch.arange(50) % 5
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = stratified_subset(labels, 20, 0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, stratified_subset(labels, 20, 0))


def test_seeds_differ():
    labels = torch.arange(1000) % 10
    draws = {tuple(stratified_subset(labels, 100, seed).tolist()) for seed in range(20)}
    assert len(draws) == 20


def test_every_sample_is_drawn_about_equally_often():
    labels = torch.arange(40) % 4
    times = torch.zeros(40)
    for seed in range(800):
        times[stratified_subset(labels, 8, seed)] += 1
    # Binomial(800, 0.2): mean 160, standard deviation 11.3; five of them either way.
    assert times.min() > 103
    assert times.max() < 217


def test_fewer_samples_than_classes_favour_no_class():
    labels = torch.arange(30) % 10
    seen = torch.zeros(10)
    for seed in range(400):
        seen[labels[stratified_subset(labels, 3, seed)]] += 1
    # Binomial(400, 0.3): mean 120, standard deviation 9.2; five of them either way.
    assert seen.min() > 74
    assert seen.max() < 166


def test_all_samples_are_all_samples():
    assert stratified_subset(torch.tensor([3, 3, 1]), 3, 9).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("samples", "slug"), [(0, "samples-below-one"), (-5, "samples-below-one"), (4, "samples-exceed-dataset")]
)
def test_impossible_sizes_are_refused(samples, slug):
    with pytest.raises(UserError, match=str(samples)) as caught:
        stratified_subset(torch.tensor([0, 1, 2]), samples, 0)
    assert caught.value.slug == slug


@pytest.mark.parametrize(
    ("seed", "golden"),
    [
        (0, [12, 19, 38, 39, 47, 51, 67, 80, 88, 99]),
        (1, [2, 19, 25, 31, 38, 56, 72, 79, 84, 91]),
        (12345678901234567890, [6, 8, 20, 31, 46, 58, 64, 65, 87, 94]),
    ],
)
def test_golden_draws(seed, golden):
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    assert stratified_subset(labels, 10, seed).tolist() == golden
