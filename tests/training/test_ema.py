"""The average of the weights over training, whose batch norm has statistics of its own."""

from __future__ import annotations

import pytest
import torch
from small_trainings import THREAT, Training, network, parts, same
from torch import nn

from robustbench_local.attacks import PGD, run
from robustbench_local.training.ema import SETTLING, WeightEMA


def test_the_average_is_the_formulas():
    """W ← d w + (1 - d) θ with d = min(decay, (1 + n) / (10 + n))."""
    model = nn.Linear(3, 2)
    average = WeightEMA(model, 0.5)
    expected = model.weight.detach().clone()
    for update in range(1, 15):
        with torch.no_grad():
            model.weight.add_(update)
        average.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(average.network.weight, expected)
    assert average.updates == 14
    assert not average.network.weight.requires_grad
    assert model.weight.requires_grad


def test_batch_norm_learns_the_averaged_networks_own_statistics_and_dropout_stays_off():
    model = network(dropout=0.5)
    average = WeightEMA(model, 0.9)
    with torch.no_grad():
        average.network[0].weight.mul_(3)
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    images = parts()[0].images(range(64))
    for _ in range(SETTLING):
        average.refresh_batch_norm(images)
    activations = average.network[0](images)
    torch.testing.assert_close(average.network[1].running_mean, activations.mean((0, 2, 3)), rtol=0.02, atol=1e-3)
    variances = activations.transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(average.network[1].running_var, variances, rtol=0.05, atol=1e-3)
    assert not any(part.training for part in average.network.modules())
    assert same(before, model)
    assert torch.equal(random, torch.get_rng_state())


def test_the_averaged_network_is_the_one_that_is_judged_and_kept():
    training = Training(epochs=6, lr=0.2, average=0.9).run()
    plain = Training(epochs=6, lr=0.2).run()
    assert same(plain.model, training.model), "averaging changes nothing of training itself"
    kept = network()
    kept.load_state_dict(training.kept[-1][1])
    assert not same(kept, training.model)
    held, kept = training.data[1], kept.eval()
    images = held.images(range(40))
    points = run(PGD(steps=10, loss="margin"), kept, THREAT, images, held.labels, seed=0, indices=held.indices)
    report = training.reports[-1]
    assert report.clean_accuracy.correct == int((kept(images).argmax(1) == held.labels).sum())
    assert report.robust_accuracy.correct == int(
        ((kept(images).argmax(1) == held.labels) & (kept(points).argmax(1) == held.labels)).sum()
    )


def test_weights_are_averaged_over_the_steps_of_training():
    """After the fact, from the weights that every step has left."""
    import robustbench_local.training.ema as averaging

    seen = []

    class Watched(averaging.WeightEMA):
        def update(self, model):
            seen.append(model[5].weight.detach().clone())
            super().update(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robustbench_local.training.step.WeightEMA", Watched)
        training = Training(average=0.8).run()
    expected = network()[5].weight.detach()
    for update, weight in enumerate(seen, start=1):
        decay = min(0.8, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * weight
    assert len(seen) == 10
    torch.testing.assert_close(training.kept[-1][1]["5.weight"], expected)


def test_only_the_last_batches_of_an_epoch_settle_batch_norm(monkeypatch):
    monkeypatch.setattr("robustbench_local.training.loop.SETTLING", 2)
    training = Training(average=0.9).run()
    assert training.kept[-1][1]["1.num_batches_tracked"] == 2 * 2
    assert training.model[1].num_batches_tracked == 2 * 5


def test_the_averages_batch_norm_stands_still_too_while_only_the_last_layer_learns():
    head = {"head": ("5.weight", "5.bias")}
    training = Training(average=0.9, freeze_epochs=1, train_with=head).run()
    before = network().state_dict()
    frozen = training.kept[0][1]
    assert all(torch.equal(frozen[name], before[name]) for name in before if name.startswith("1."))
    # Averages of equal numbers are equal but for rounding.
    torch.testing.assert_close(frozen["0.weight"], before["0.weight"])
    assert not torch.equal(frozen["5.weight"], before["5.weight"])
    assert training.kept[1][1]["1.num_batches_tracked"] == 5
