import torch
from scipy import stats

from robustbench_local.attacks.randomness import fold_in, hash_indices, normal, sample_keys, uniform


def test_numbers_never_change():
    keys = sample_keys(0, torch.tensor([0, 1, 12345]), "pgd", 0)
    assert keys.tolist() == GOLDEN_KEYS
    assert uniform(keys[:1], (3,)).tolist() == GOLDEN_UNIFORM


def test_splitmix_is_the_published_one():
    """Seed 1234567 gives these first outputs in every SplitMix64 (a bijection of golden-ratio steps)."""
    from robustbench_local.attacks.randomness import GOLDEN_GAMMA, splitmix64

    state = torch.tensor([1234567], dtype=torch.int64) + torch.arange(1, 4) * GOLDEN_GAMMA
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [value % 2**64 for value in splitmix64(state).tolist()] == expected


def test_a_sample_draws_the_same_in_any_batch():
    together = uniform(sample_keys(3, torch.arange(50), "pgd", 2), (3, 4, 4))
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    apart = torch.cat([uniform(sample_keys(3, index[None], "pgd", 2), (3, 4, 4)) for index in shuffled])
    assert torch.equal(together[shuffled], apart)


def test_seed_sample_attack_restart_and_draw_all_matter():
    keys = [
        sample_keys(seed, torch.tensor([sample]), attack, restart)
        for seed, sample, attack, restart in [
            (0, 0, "pgd", 0),
            (1, 0, "pgd", 0),
            (0, 1, "pgd", 0),
            (0, 0, "fgsm", 0),
            (0, 0, "pgd", 1),
        ]
    ]
    draws = [uniform(key, (1000,)) for key in keys] + [uniform(keys[0], (1000,), draw=1)]
    correlations = torch.corrcoef(torch.cat(draws)).fill_diagonal_(0)
    assert correlations.abs().max() < 0.15


def test_uniform_and_normal_have_their_distributions():
    keys = sample_keys(7, torch.arange(200), "test", 0)
    draws = uniform(keys, (500,)).flatten()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws.double(), "uniform").pvalue > 0.001
    assert stats.kstest(uniform(keys, (1,)).flatten().double(), "uniform").pvalue > 0.001, "the first draw of each"
    assert stats.kstest(normal(keys, (500,)).flatten().double(), "norm").pvalue > 0.001


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    normal(sample_keys(0, torch.arange(3), "pgd", 0), (4,))
    assert torch.equal(before, torch.get_rng_state())


def test_hashes_of_neighbours_differ_in_half_their_bits():
    hashes = hash_indices(0, torch.arange(1000))
    flips = [bin((a ^ b) % 2**64).count("1") for a, b in zip(hashes.tolist(), hashes[1:].tolist(), strict=False)]
    assert 31 < sum(flips) / len(flips) < 33


def test_every_step_of_every_row_has_numbers_of_its_own():
    keys, steps = sample_keys(0, torch.arange(40), "square", 0), torch.arange(40)
    own = torch.stack([fold_in(keys, torch.full_like(keys, step)) for step in steps.tolist()], 1)
    assert torch.equal(fold_in(keys, steps), own.diagonal()), "by its own step, whatever the steps of the others"
    assert len(own.unique()) == own.numel()
    draws = uniform(own.flatten(), (8,)).view(40, 40, 8)
    assert stats.kstest(draws.flatten().double(), "uniform").pvalue > 0.001
    series = torch.cat([draws[:, :-1].flatten()[None], draws[:, 1:].flatten()[None]])
    assert torch.corrcoef(series)[0, 1].abs() < 0.04, "one step tells nothing of the next"
    assert not torch.equal(uniform(keys, (8,)), draws[:, 0])


GOLDEN_KEYS = [5945167548857499674, 3695144750497203269, -9019356798429853000]
GOLDEN_UNIFORM = [[0.05182647705078125, 0.3437786102294922, 0.7623622417449951]]
