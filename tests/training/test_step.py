"""One step of training: schedules, accumulation, freezing, arithmetic, and gradients that are no numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from small_trainings import BATCHES, CPU, THREAT, Training, network, parts, same
from torch import nn

from robustbench_local.data.loader import Batch, BatchLoader
from robustbench_local.defenses import PGDAT, Standard
from robustbench_local.errors import UserError
from robustbench_local.training.recipe import Recipe
from robustbench_local.training.step import MAX_SKIPPED_BATCHES, TrainingStep
from robustbench_local.training.task import TrainingTask

STEPS = 40


def lesson(objective=None, model=None, steps=STEPS, **settings) -> TrainingStep:
    recipe = Recipe(**{"lr": 0.1, "batch_size": 32, **settings})
    task = TrainingTask(model or network(), objective or Standard(), THREAT, recipe, head=("5.weight", "5.bias"))
    return TrainingStep(task, steps=steps)


def batch(count=32) -> Batch:
    return next(iter(BatchLoader(parts()[0], CPU).batches([torch.arange(count)])))


def rates(**settings):
    """The learning rate that each step is taken with."""
    taught, given = lesson(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), **settings), batch(4)
    seen = []
    for number in range(STEPS):
        seen.append(taught.learning_rate)
        taught.train_batch(given, 1, number + 1)
    return seen


def test_schedules_at_known_steps():
    assert rates(schedule="constant") == pytest.approx([0.1] * STEPS)
    cosine = rates(schedule="cosine")
    assert [cosine[step] for step in (0, 10, 20, 30)] == pytest.approx(
        [0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.05 * (1 - math.sqrt(0.5))]
    )
    piecewise = rates(schedule="piecewise")
    assert piecewise == pytest.approx([0.1] * 20 + [0.01] * 10 + [0.001] * 10)
    onecycle = rates(schedule="onecycle")
    assert onecycle[0] == pytest.approx(0.1 / 25)
    assert max(onecycle) == pytest.approx(0.1)
    assert 10 <= onecycle.index(max(onecycle)) <= 12
    assert onecycle[-1] < 1e-4
    warm = rates(schedule="constant", warmup=0.2)
    assert warm[:9] == pytest.approx([0.1 * (step + 1) / 9 for step in range(9)])
    assert warm[9:] == pytest.approx([0.1] * 31)


class Seen(PGDAT):
    """Remembers what radius it was given."""

    def examples(self, learner, images, labels, keys):
        radii.append(learner.threat_model.eps)
        return super().examples(learner, images, labels, keys)


radii: list[float] = []


def test_eps_rises_in_equal_steps_to_the_whole():
    radii.clear()
    taught = lesson(Seen(steps=1), steps=10, eps_warmup=0.5)
    for number in range(10):
        taught.train_batch(batch(), 1, number + 1)
    assert radii == pytest.approx([0.1 * share / 6 for share in (1, 2, 3, 4, 5)] + [0.1] * 5)
    radii.clear()
    lesson(Seen(steps=1)).train_batch(batch(), 1, 1)
    assert radii == [0.1]


@pytest.mark.parametrize("objective", [Standard(), PGDAT(steps=2)])
@pytest.mark.parametrize("count", [2, 4])
def test_accumulated_parts_are_the_whole_batch_without_batch_norm(objective, count):
    one, several = (
        lesson(objective, network(norm=False, dropout=0.0), accumulate=parts, augment="crop=1") for parts in (1, count)
    )
    for number in range(3):
        together, apart = (each.train_batch(batch(), 1, number + 1) for each in (one, several))
        assert together == pytest.approx(apart, rel=1e-5)
    for ours, theirs in zip(one.network.parameters(), several.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_step_reads_from_the_device_once(monkeypatch):
    """Whatever Python is told of a tensor, a GPU has to finish all its work for."""
    taught, given = lesson(PGDAT(steps=2), accumulate=2, clip_norm=1.0), batch()
    read = []

    def noted(name):
        ask = getattr(torch.Tensor, name)

        def asked(tensor):
            read.append(name)
            return ask(tensor)

        return asked

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, noted(name))
    losses = taught.train_batch(given, 1, 1)
    assert read == ["tolist"]
    assert losses.keys() == {"loss", "adversarial"}
    assert losses["loss"] == losses["adversarial"] > 1


def test_a_step_is_that_of_plain_torch():
    """SGD with momentum by hand: the loss of the whole batch, nothing else in the way."""
    taught = lesson(model=network(dropout=0.0), schedule="constant", label_smoothing=0.1)
    plain = network(dropout=0.0)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for number in range(3):
        given = batch()
        losses = taught.train_batch(given, 1, number + 1)
        loss = F.cross_entropy(plain(given.images), given.labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert losses["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(taught.network.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_adamw_takes_steps_of_the_learning_rate():
    taught = lesson(optimizer="adamw", lr=0.01, weight_decay=0, schedule="constant")
    before = [value.detach().clone() for value in taught.network.parameters()]
    taught.train_batch(batch(), 1, 1)
    after = [value.detach() for value in taught.network.parameters()]
    moved = torch.cat([(new - old).abs().flatten() for new, old in zip(after, before, strict=True)])
    assert moved.max() <= 0.01 * 1.001
    assert moved.median() == pytest.approx(0.01, rel=0.01), "Adam's first step"


def test_gradients_are_not_followed_further_than_clip_norm():
    def length(clip_norm):
        taught = lesson(model=network(dropout=0.0), schedule="constant", clip_norm=clip_norm, weight_decay=0)
        before = [value.detach().clone() for value in taught.network.parameters()]
        taught.train_batch(batch(), 1, 1)
        moved = [new.detach() - old for new, old in zip(taught.network.parameters(), before, strict=True)]
        return float(torch.cat([each.flatten() for each in moved]).norm()) / (0.1 * 1.9)  # nesterov's first step

    free = length(0)
    assert free > 0.5
    assert length(0.25) == pytest.approx(0.25, rel=1e-3)
    assert length(100) == pytest.approx(free)


def test_only_the_last_layer_learns_in_frozen_epochs_and_batch_norm_stands_still():
    training = Training(epochs=3, freeze_epochs=2, method="standard", train_with={"head": ("5.weight", "5.bias")})
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    training.run()
    _, frozen = training.kept[1]
    body = [name for name in before if not name.startswith("5.")]
    assert "1.running_mean" in body
    assert "1.num_batches_tracked" in body
    assert all(torch.equal(frozen[name], before[name]) for name in body)
    assert not torch.equal(frozen["5.weight"], before["5.weight"])
    assert not any(torch.equal(training.kept[2][1][name], frozen[name]) for name in before), "then all of it learns"


def test_bf16_learns_about_as_well_and_the_weights_stay_float32():
    full, half = (Training(epochs=8, lr=0.2, precision=precision).run() for precision in ("fp32", "bf16"))
    assert all(value.dtype == torch.float32 for value in half.model.parameters())
    assert not same(full.model, half.model), "or bf16 was not used"
    assert half.reports[-1].loss == pytest.approx(full.reports[-1].loss, rel=0.15)
    assert abs(full.reports[-1].clean_accuracy.value - half.reports[-1].clean_accuracy.value) <= 0.15


@dataclass(frozen=True)
class Bursting(Standard):
    """A loss that is no number in some batches."""

    bad: tuple[int, ...] = ()
    value: float = math.nan
    calls: list[int] = field(default_factory=lambda: [0])

    def loss(self, learner, examples):
        self.calls[0] += 1
        loss = learner.model(examples.images).square().mean()
        return (loss * self.value if self.calls[0] in self.bad else loss), {"clean": loss.detach()}


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_loss_that_is_no_number_changes_nothing_and_is_counted(value):
    taught = lesson(Bursting(bad=(3,), value=value), average=0.9)
    for number in (1, 2):
        assert "skipped" not in taught.train_batch(batch(), 1, number)
    before = {name: tensor.clone() for name, tensor in taught.network.state_dict().items()}
    assert taught.train_batch(batch(), 1, 3, settle=True) == {"skipped": 1.0}
    assert same(before, taught.network)
    assert taught.done == 3
    assert taught.train_batch(batch(), 1, 4).keys() == {"loss", "clean"}
    done = Training(objective=Bursting(bad=(3, 4, 9), value=value)).run()
    assert [report.skipped for report in done.reports] == [2, 1]
    assert done.reports[0].warnings == ["2 batches had no finite gradient and were skipped"]
    assert all(math.isfinite(report.loss) for report in done.reports)


def test_activations_that_overflow_once_do_not_spoil_batch_norm():
    class Overflowing(nn.Module):
        calls = 0

        def forward(self, images):
            self.calls += self.training
            return images * math.inf if self.training and self.calls == 2 else images

    taught = lesson(model=nn.Sequential(Overflowing(), *network()), average=0.9)
    losses = [taught.train_batch(batch(), 1, number + 1, settle=True) for number in range(4)]
    assert [list(each) == ["skipped"] for each in losses] == [False, True, False, False]
    assert all(value.isfinite().all() for value in taught.network.state_dict().values())
    assert all(value.isfinite().all() for value in taught.validated_network.state_dict().values())


def test_several_in_a_row_end_the_training_with_epoch_and_batch_named_and_the_weights_intact():
    first = BATCHES + 2
    training = Training(objective=Bursting(bad=range(first, 99)), epochs=3)
    sentence = rf"the loss was nan in epoch 3, batch 1, and .* {MAX_SKIPPED_BATCHES} batches in a row"
    with pytest.raises(UserError, match=sentence) as told:
        training.run()
    assert "\n" not in str(told.value)
    assert all(parameter.isfinite().all() for parameter in training.model.parameters())
    assert len(training.saved) == 3, "the start and two epochs"


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_an_epoch_of_nothing_but_skipped_batches_can_be_written_and_gone_on_from(tmp_path):
    from robustbench_local.training.snapshot import TrainingState

    training = Training(objective=Bursting(bad=range(1, 5)), data=parts(160), epochs=2).run()
    assert [report.skipped for report in training.reports] == [4, 0]
    assert BATCHES == 5
    training.saved[1].write(tmp_path / "state", {})
    snapshot, _ = TrainingState.read(tmp_path / "state")
    snapshot.facts["method"] = "standard"
    resumed = Training(objective=Bursting(), data=parts(160), epochs=2).run(resume=snapshot)
    assert [report.epoch for report in resumed.reports] == [1, 2]
    line = training.reports[0].model_dump_json()
    assert '"loss":null' in line
    assert math.isnan(type(training.reports[0]).model_validate_json(line).loss)
