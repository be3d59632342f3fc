"""Watchers: catastrophic and robust overfitting, and a network that answers one class for everything."""

from __future__ import annotations

import pytest
import torch
from small_trainings import CPU, Training, parts, same
from torch import nn

import robustbench_local.training.loop as loop
from robustbench_local.attacks import ThreatModel
from robustbench_local.defenses import FGSMRS, NFGSM, PGDAT, TRADES, FreeAT
from robustbench_local.errors import Diverged
from robustbench_local.models import build_architecture
from robustbench_local.results.schema import Accuracy
from robustbench_local.training.initialization import seeded
from robustbench_local.training.metrics import EpochReport, TrainingObserver, best, is_catastrophic, overfitting


def report(epoch, robust, fgsm=None, *, clean=0.9, chosen=False, undone=False, n=1000):
    def accuracy(value):
        return None if value is None else Accuracy.of(round(value * n), n)

    return EpochReport(
        epoch=epoch,
        loss=1.0,
        parts={},
        learning_rate=0.1,
        clean_accuracy=accuracy(clean),
        robust_accuracy=accuracy(robust),
        fgsm_accuracy=accuracy(robust if fgsm is None else fgsm),
        images_per_second=1,
        seconds=1,
        chosen=chosen,
        undone=undone,
    )


@pytest.mark.parametrize(
    ("robust", "fgsm", "catastrophic"),
    [
        (0.40, 0.50, False),
        (0.0, 0.85, True),
        (0.29, 0.50, True),
        (0.31, 0.50, False),
        (0.30, 0.45, False),  # both have fallen: bad, but not catastrophic
        (0.32, 0.51, False),
        (0.33, 0.525, False),
        (0.315, 0.51, True),
        (0.31, 0.505, True),
    ],
)
def test_catastrophic_overfitting_is_a_gap_or_a_fall_while_fgsm_rises(robust, fgsm, catastrophic):
    earlier = [report(1, 0.3, 0.45, chosen=True), report(2, 0.40, 0.505, chosen=True)]
    if (robust, fgsm) == (0.32, 0.51):
        earlier = earlier[:1]
    assert is_catastrophic(report(3, robust, fgsm), earlier) is catastrophic


def test_without_measurements_nothing_is_catastrophic():
    assert not is_catastrophic(report(1, None), [])
    assert not is_catastrophic(report(1, 0.1), [report(0 + 1, None)])


def test_every_single_step_method_has_a_safer_one_and_that_ends_somewhere():
    assert FGSMRS().fallback() == FreeAT().fallback() == NFGSM()
    assert TRADES().fallback() is None
    assert NFGSM().fallback() == PGDAT(steps=2)
    assert PGDAT(steps=2).fallback() == PGDAT(steps=10)
    assert PGDAT(steps=10).fallback() is None


@pytest.fixture
def falling(monkeypatch):
    """The second report is taken for catastrophic."""
    monkeypatch.setattr(loop, "is_catastrophic", lambda report, earlier: len(earlier) == 1)


def test_catastrophic_overfitting_is_undone_and_training_goes_on_with_n_fgsm(falling):
    heard = []

    class Ear(TrainingObserver):
        def epoch(self, report):
            heard.append((report.epoch, report.undone))

    training = Training(method="fgsm-rs", epochs=3).run(observer=Ear())
    assert heard == [(1, False), (2, True), (2, False), (3, False)]
    assert [report.method for report in training.reports] == ["fgsm-rs", "fgsm-rs", "n-fgsm", "n-fgsm"]
    told = training.reports[1]
    assert told.warnings == [
        "catastrophic overfitting: the weights are back at epoch 1, and training continues with n-fgsm"
    ]
    assert not told.chosen
    # The weights are those after the first epoch again, and so is everything else.
    assert same(training.kept[0][1], training.kept[1][1])
    assert training.reports[1].learning_rate == training.reports[2].learning_rate
    only = Training(method="fgsm-rs", epochs=3)
    only.objective = FGSMRS()
    assert same(training.kept[0][1], only.run().kept[0][1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_after_a_roll_back_training_is_that_of_the_safer_method_from_there(precision, falling):
    settings = {"method": "fgsm-rs", "epochs": 2, "precision": precision}
    whole = Training(**settings).run()
    after_one = whole.saved[1]
    first = after_one.facts["reports"][0]
    undone = {**first, "epoch": 2, "undone": True, "chosen": False}
    facts = {**after_one.facts, "method": "n-fgsm", "reports": [first, undone]}
    assert after_one.facts["reports"] == [first]
    again = Training(**settings).run(resume=loop.TrainingState(after_one.tensors, facts))
    assert same(whole.model, again.model)


def test_an_undone_epoch_does_not_stand_in_the_way_of_those_after_it(monkeypatch):
    """It may have looked good; its weights are gone all the same."""
    monkeypatch.setattr(loop, "is_catastrophic", lambda report, earlier: not earlier)
    judge, calls = loop.validate, []

    def flattering(*arguments, **settings):
        calls.append(1)
        judged = judge(*arguments, **settings)
        return (
            judged
            if len(calls) > 1
            else type(judged)(**{**judged.__dict__, "clean": Accuracy.of(40, 40), "robust": Accuracy.of(40, 40)})
        )

    monkeypatch.setattr(loop, "validate", flattering)
    reports = Training(method="fgsm-rs").run().reports
    assert reports[0].undone
    assert not reports[0].chosen
    assert reports[1].chosen
    assert best(reports) is not None


def test_a_method_without_a_safer_one_goes_on(falling):
    assert [report.undone for report in Training(method="trades:steps=1").run().reports] == [False, False]


def test_real_catastrophic_overfitting_is_seen_and_undone():
    """A radius that this small network cannot be robust at, so that it learns to fool the single step instead."""
    with seeded(0, CPU):
        model = build_architecture("digits-cnn", num_classes=10, in_channels=1)
    settings = {"method": "fgsm-rs", "epochs": 12, "lr": 0.1}
    reports = Training(model, parts(600), threat_model=ThreatModel("linf", "0.2"), **settings).run().reports
    undone = [report for report in reports if report.undone]
    assert undone[0].method == "fgsm-rs"
    assert reports[-1].method != "fgsm-rs"
    assert undone[0].fgsm_accuracy.value - undone[0].robust_accuracy.value > 0.1
    assert reports[-1].robust_accuracy.value > undone[0].robust_accuracy.value + 0.05


def test_robust_overfitting_is_told_with_its_gap():
    rising = [report(1, 0.40, chosen=True), report(2, 0.50, chosen=True)]
    assert overfitting([*rising, report(3, 0.485)]) is None, "two points may be chance"
    told = overfitting([*rising, report(3, 0.40)])
    assert "10.0 points less robust than epoch 2" in told
    assert "--average" in told
    assert "\n" not in told
    few = [report(1, 0.5, chosen=True, n=40), report(2, 0.40, n=40)]
    assert overfitting(few) is None, "of 40 images four may be chance"
    assert overfitting([report(1, None, chosen=True)]) is None


def test_the_end_of_training_tells_it(monkeypatch):
    heard = []

    class Ear(TrainingObserver):
        def warn(self, text):
            heard.append(text)

    monkeypatch.setattr(loop, "overfitting", lambda reports: f"of {len(reports)} epochs")
    Training().run(observer=Ear())
    assert heard == ["of 2 epochs"]


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 100.0, *[0.0] * 8]))

    def forward(self, images):
        return self.logits.expand(len(images), -1) + 0 * images.flatten(1).sum(1, keepdim=True)


def test_one_class_for_everything_is_told_and_after_five_epochs_the_end():
    training = Training(Constant(), method="standard", epochs=9, lr=1e-6)
    with pytest.raises(Diverged, match=r"for 5 epochs .* now 1: lower --lr.*--eps-warmup") as caught:
        training.run()
    assert caught.value.slug == "one-class-predicted"
    assert "\n" not in str(caught.value)
    assert len(training.kept) == 5
    assert training.kept[-1][0][-1].warnings == ["the prediction for every hold-out image is class 1"]
    reports = Training(Constant(), method="standard", epochs=4, lr=1e-6).run().reports
    assert len(reports) == 4, "a few epochs of it are forgiven"
