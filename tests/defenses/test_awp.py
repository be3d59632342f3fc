"""Adversarial weight perturbation: where weights stand inside, and that they come back bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from robustbench_local.defenses import AWP


@pytest.fixture
def slope(network, batch):
    """A network, its loss, its trained weights and their gradients."""
    model = network().eval()
    images, labels, _ = batch()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss():
        return F.cross_entropy(model(images), labels)

    return model, loss, weights, list(torch.autograd.grad(loss(), weights))


def copies(weights):
    return [weight.detach().clone() for weight in weights]


def test_weights_stand_where_the_authors_proxy_puts_them(slope, batch):
    model, _, weights, gradients = slope
    images, labels, _ = batch()
    proxy = copy.deepcopy(model)
    optimizer = torch.optim.SGD([parameter for parameter in proxy.parameters() if parameter.requires_grad], lr=0.01)
    (-F.cross_entropy(proxy(images), labels)).backward()
    optimizer.step()
    expected = {}
    for (name, old), new in zip(model.named_parameters(), proxy.parameters(), strict=True):
        moved = (new - old).detach()
        wide = old.dim() > 1
        expected[name] = old.detach() + 0.02 * old.norm() / (moved.norm() + 1e-20) * moved if wide else old.clone()
    with AWP(gamma=0.02).perturb(weights, lambda: gradients):
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)


def test_a_layer_moves_gamma_of_its_own_norm_uphill_and_biases_do_not(slope):
    _, loss, weights, gradients = slope
    before, low = copies(weights), loss()
    with AWP(gamma=0.05).perturb(weights, lambda: gradients):
        assert loss() > low
        for weight, old, gradient in zip(weights, before, gradients, strict=True):
            step = weight.detach() - old
            assert step.norm().item() == pytest.approx(0.05 * old.norm().item() if old.dim() > 1 else 0, rel=1e-4)
            if old.dim() > 1:
                assert F.cosine_similarity(step.flatten(), gradient.flatten(), dim=0) > 0.9999


def test_the_step_has_no_part_in_the_gradient_and_the_network_stays_trainable(slope):
    _, loss, weights, gradients = slope
    with AWP().perturb(weights, lambda: gradients):
        loss().backward()
    assert all(weight.grad is not None and weight.is_leaf and weight.requires_grad for weight in weights)


@pytest.mark.parametrize("fails", [False, True])
def test_weights_come_back_bit_for_bit_also_when_the_body_fails(slope, fails):
    _, _, weights, gradients = slope
    before = copies(weights)
    for _ in range(5):
        try:
            with AWP(gamma=0.3).perturb(weights, lambda: gradients):
                assert not torch.equal(weights[2], before[2])
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert fails
        assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


def test_the_length_of_the_gradient_plays_no_part(slope):
    _, _, weights, gradients = slope
    with AWP().perturb(weights, lambda: gradients):
        once = copies(weights)
    with AWP().perturb(weights, lambda: [1e6 * gradient for gradient in gradients]):
        for weight, other in zip(weights, once, strict=True):
            torch.testing.assert_close(weight.detach(), other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e-30, 1e30])
def test_a_gradient_without_a_length_moves_nothing_far(slope, value):
    """Weights that are no numbers would get into batch norm's running statistics and stay there."""
    _, _, weights, gradients = slope
    before = copies(weights)
    damaged = [torch.full_like(gradient, value) for gradient in gradients]
    with AWP(gamma=0.05).perturb(weights, lambda: damaged):
        for weight, old in zip(weights, before, strict=True):
            assert (weight - old).norm() <= 0.0501 * old.norm()
            assert weight.isfinite().all()


def test_one_entry_that_is_no_number_leaves_the_others_their_step(slope):
    _, _, weights, gradients = slope
    before = copies(weights)
    gradients[2] = gradients[2].clone()
    gradients[2][0, 0] = float("nan")
    with AWP().perturb(weights, lambda: gradients):
        assert weights[2].isfinite().all()
        assert weights[2][0, 0] == before[2][0, 0]
        assert (weights[2][1:] != before[2][1:]).any()


@pytest.mark.parametrize(
    ("settings", "sentence"), [({"gamma": 0}, "gamma is 0, but must be above 0"), ({"warmup": -1}, "warmup is -1, but")]
)
def test_impossible_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        AWP(**settings)
