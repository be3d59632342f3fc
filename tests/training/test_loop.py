"""The training loop: repeatable, blind to the hold-out, gentle with what it is given."""

from __future__ import annotations

import pytest
import torch
from small_trainings import THREAT, Training, network, parts, same
from torch import nn

from robustbench_local.attacks import PGD, ThreatModel, run
from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.data.holdout import cut_holdout
from robustbench_local.errors import UserError
from robustbench_local.training.metrics import TrainingObserver


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = Training().run()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    two, other = Training().run(), Training(seed=1).run()
    assert same(one.model, two.model)
    assert one.told == two.told
    assert not same(one.model, other.model)


def test_weights_do_not_depend_on_the_hold_out():
    training, holdout = parts()
    one, other = Training().run(), Training(data=(training, holdout.subset(range(7)))).run()
    assert same(one.model, other.model)


def test_reports_say_which_epoch_was_best():
    told = []

    class Ear(TrainingObserver):
        def begin(self, epochs, images, done=0):
            told.append((epochs, images, done))

        def advance(self, images, loss):
            told.append(images)

        def epoch(self, report):
            told.append(f"epoch {report.epoch}")

    training = Training(epochs=3).run(observer=Ear())
    assert told == [(3, 160, 0), *([32] * 5 + ["epoch 1"]), *([32] * 5 + ["epoch 2"]), *([32] * 5 + ["epoch 3"])]
    reports = training.reports
    assert [len(kept) for kept, _ in training.kept] == [1, 2, 3]
    assert training.kept[-1][0] == reports
    best = max(report.rank for report in reports)
    assert [report for report in reports if report.chosen][-1].rank == best
    assert reports[0].chosen
    assert all(report.robust_accuracy.n == 40 for report in reports)
    assert all(r.robust_accuracy.value <= r.fgsm_accuracy.value <= r.clean_accuracy.value for r in reports)
    assert all(report.method == "pgd-at:steps=2" and report.parts.keys() == {"adversarial"} for report in reports)
    assert same(training.kept[-1][1], training.model), "without an average the network itself is judged"


def test_what_is_said_of_the_last_epoch_is_so():
    training = Training(epochs=6, method="standard", lr=0.2).run()
    held = training.data[1]
    model = training.model.eval()
    images = held.images(range(40))
    assert training.reports[-1].clean_accuracy.correct == int((model(images).argmax(1) == held.labels).sum())
    assert training.reports[-1].robust_accuracy is None
    robust = Training(epochs=6, lr=0.2).run()
    model = robust.model.eval()
    points = run(PGD(steps=10, loss="margin"), model, THREAT, images, held.labels, seed=0, indices=held.indices)
    standing = (model(images).argmax(1) == held.labels) & (model(points).argmax(1) == held.labels)
    assert robust.reports[-1].robust_accuracy.correct == int(standing.sum()) > 0


def test_methods_for_smoothing_are_judged_under_noise():
    training = Training(epochs=8, method="gaussian:sigma=0.3", lr=0.1).run()
    report = training.reports[-1]
    assert report.robust_accuracy is None
    assert report.noisy_accuracy.n == 40
    assert report.noisy_accuracy.value > 0.5
    assert report.rank[0] == report.noisy_accuracy.value


def test_standard_training_learns():
    reports = Training(method="standard", epochs=8, lr=0.1).run().reports
    assert reports[-1].clean_accuracy.value > 0.6 > reports[0].clean_accuracy.value
    assert reports[-1].loss < reports[0].loss
    assert reports[0].parts == {"clean": pytest.approx(reports[0].loss)}


def test_the_caller_gets_the_network_back_with_its_parameters_free_to_be_trained():
    model = network()
    model[0].bias.requires_grad_(False)
    before = model[0].bias.clone()
    Training(model, epochs=1).run()
    assert torch.equal(model[0].bias, before), "what was frozen is not trained"
    assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["0.bias"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch_size": 512}, "160 images are left to train on, fewer than one batch of 512"),
        ({"accumulate": 3}, "a batch of 32 cannot be divided into equal parts .* --accumulate 3.* multiple of 3"),
    ],
)
def test_batches_that_cannot_be_had_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Training(**settings).run()


def test_training_works_on_colour_images_of_any_size():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = (torch.rand(60, 3, 5, 7, generator=generator) + labels.view(-1, 1, 1, 1)) / 3
    whole = ArrayDataset(images, labels)
    training, holdout = cut_holdout(labels, 0.2, seed=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(105, 3))
    data = whole.subset(training), whole.subset(holdout)
    done = Training(
        model, data, threat_model=ThreatModel("l2", "0.5"), epochs=20, batch_size=16, lr=0.2, method="pgd-at:steps=3"
    ).run()
    assert done.reports[-1].robust_accuracy.value > 0.9


@pytest.mark.parametrize(
    "method",
    [
        "standard",
        "pgd-at:steps=1",
        "trades:steps=2",
        "mart:steps=2",
        "fgsm-rs",
        "n-fgsm",
        "free:replays=2",
        "gaussian",
        "smooth-adv:steps=1",
        "trades:steps=1+awp",
        "free:replays=2+awp",
        "pgd-at:steps=1+awp:gamma=0.01,warmup=1",
    ],
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate": 2, "average": 0.9, "freeze_epochs": 1, "precision": "bf16", "optimizer": "adamw", "lr": 0.001}],
)
def test_every_method_goes_through_the_loop(method, settings):
    head = ("5.weight", "5.bias") if settings else ()
    done = Training(method=method, train_with={"head": head}, data=parts(80), **settings).run()
    assert len(done.reports) == 2
    assert all(report.skipped == 0 for report in done.reports)
    assert all(value.isfinite().all() for value in done.kept[-1][1].values())
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in done.model.parameters())
