"""The training loop: repeatable, blind to the hold-out, gentle with what it is given."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from robustbench_local.attacks import ThreatModel
from robustbench_local.data import load_dataset
from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.defenses import PGDAT, Standard
from robustbench_local.errors import UserError
from robustbench_local.holdout import cut_holdout
from robustbench_local.recipes import Recipe
from robustbench_local.training import Source, TrainingObserver, seeded, train

CPU = torch.device("cpu")
THREAT = ThreatModel("linf", "0.1")


def network(seed: int = 0) -> nn.Module:
    with seeded(seed, CPU):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(36, 10)
        )


@pytest.fixture(scope="module")
def parts():
    digits = load_dataset("digits", split="train").subset(range(400))
    training, holdout = cut_holdout(digits.labels, 0.2, seed=0)
    return digits.subset(training), digits.subset(holdout)


def trained(parts, objective=None, **settings):
    recipe = Recipe(**{"epochs": 2, "batch_size": 32, "lr": 0.05, **settings})
    model = network(recipe.seed)
    reports = train(model, *parts, objective or PGDAT(steps=2), THREAT, recipe)
    return model, reports


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_random_numbers_alone(parts):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, _ = trained(parts)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    two, _ = trained(parts)
    other, _ = trained(parts, seed=1)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    assert not torch.equal(one[-1].weight, other[-1].weight)


def test_hold_out_and_training_are_disjoint_and_keep_the_classes_shares():
    labels = load_dataset("digits", split="train").labels
    training, holdout = cut_holdout(labels, 0.1, seed=0)
    assert len(holdout) == 144
    assert torch.equal(torch.cat([training, holdout]).sort().values, torch.arange(len(labels)))
    shares = labels[holdout].bincount(minlength=10) - 0.1 * labels.bincount(minlength=10)
    assert shares.abs().max() <= 1
    assert not torch.equal(cut_holdout(labels, 0.1, seed=1)[1], holdout)


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_hold_out_that_leaves_nothing_is_refused(share):
    with pytest.raises(UserError, match="cannot be cut"):
        cut_holdout(torch.arange(20) % 2, share, seed=0)


def test_training_sees_every_image_once_an_epoch_and_none_of_the_hold_out(parts):
    training, holdout = parts
    seen = [batch.indices for batch in Source(training, CPU).shuffled(32, torch.Generator().manual_seed(0))]
    assert all(len(indices) == 32 for indices in seen) and len(seen) == 10
    flat = torch.cat(seen)
    assert len(flat.unique()) == len(flat) and not set(flat.tolist()) & set(holdout.indices.tolist())
    assert set(flat.tolist()) <= set(training.indices.tolist())


def test_weights_do_not_depend_on_the_hold_out(parts):
    training, holdout = parts
    one, _ = trained(parts)
    other, _ = trained((training, holdout.subset(range(7))))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_streamed_and_resident_images_are_the_same(parts, monkeypatch):
    positions = torch.tensor([3, 0, 17])
    resident = Source(parts[0], CPU).load(positions)
    monkeypatch.setattr("robustbench_local.training.RESIDENT_BYTES", 0)
    streamed = Source(parts[0], CPU).load(positions)
    assert torch.equal(resident.images, streamed.images) and torch.equal(resident.labels, parts[0].labels[positions])


def test_reports_say_which_epoch_was_best(parts):
    told = []

    class Ear(TrainingObserver):
        def begin(self, epochs, images):
            told.append((epochs, images))

        def epoch(self, report):
            told.append(report.epoch)

    kept = []
    recipe = Recipe(epochs=4, batch_size=32, lr=0.05)
    reports = train(network(), *parts, PGDAT(steps=2), THREAT, recipe, keep=kept.append, observer=Ear())
    assert told == [(4, 320), 1, 2, 3, 4] and kept == reports
    best = max(report.rank for report in reports)
    assert [report for report in reports if report.chosen][-1].rank == best
    assert reports[0].chosen and all(report.robust_accuracy.n == 80 for report in reports)
    assert all(report.robust_accuracy.value <= report.clean_accuracy.value for report in reports)


def test_standard_training_is_judged_by_clean_accuracy(parts):
    _, reports = trained(parts, Standard(), epochs=6)
    assert all(report.robust_accuracy is None for report in reports)
    assert reports[-1].clean_accuracy.value > 0.6 > reports[0].clean_accuracy.value
    assert reports[-1].loss < reports[0].loss and reports[0].parts == {"clean": pytest.approx(reports[0].loss)}


def test_a_loss_that_is_not_finite_stops_with_epoch_and_batch_and_the_weights_as_they_were(parts):
    class Bursting:
        name, judged_by, calls = "bursting", "clean", 0

        def loss(self, model, images, labels, threat_model, keys):
            self.calls += 1
            loss = model(images).sum()
            return (loss * float("nan") if self.calls == 13 else loss * 0), {}

    model = network()
    with pytest.raises(UserError, match="nan in epoch 2, batch 3"):
        train(model, *parts, Bursting(), THREAT, Recipe(epochs=3, batch_size=32))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_fewer_images_than_a_batch_are_refused(parts):
    with pytest.raises(UserError, match="fewer than one batch of 512"):
        trained(parts, batch_size=512)


def test_training_works_on_colour_images_of_any_size():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = (torch.rand(60, 3, 5, 7, generator=generator) + labels.view(-1, 1, 1, 1)) / 3
    whole = ArrayDataset(images, labels)
    training, holdout = cut_holdout(labels, 0.2, seed=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(105, 3))
    threat_model = ThreatModel("l2", "0.5")
    recipe = Recipe(epochs=20, batch_size=16, lr=0.2)
    reports = train(model, whole.subset(training), whole.subset(holdout), PGDAT(steps=3), threat_model, recipe)
    assert reports[-1].robust_accuracy.value > 0.9
