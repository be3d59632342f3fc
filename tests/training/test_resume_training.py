"""A training that is interrupted anywhere and resumed ends to the bit like one that was not."""

from __future__ import annotations

import multiprocessing
import signal

import pytest
import torch
from small_trainings import BATCHES, Stop, Training, harden_until, network, same

import robustbench_local.training.loop as loop
from robustbench_local.errors import UserError
from robustbench_local.training.recipe import resolve_recipe
from robustbench_local.training.run import run_training
from robustbench_local.training.settings import RuntimeSettings
from robustbench_local.training.snapshot import TrainingState
from robustbench_local.training.task import TrainingTask

EPOCHS = 3
KINDS = {
    "plain": {},
    "average": {"average": 0.9},
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "cosine": {"schedule": "cosine", "warmup": 0.3},
    "piecewise": {"schedule": "piecewise"},
    "constant": {"schedule": "constant", "eps_warmup": 0.5, "clip_norm": 0.5},
    "accumulate": {"accumulate": 2, "augment": "crop=1,flip", "label_smoothing": 0.1},
    "trades+awp": {"method": "trades:steps=1+awp"},
    "free": {"method": "free:replays=2"},
    "freeze": {"freeze_epochs": 2, "average": 0.9},
    "bf16": {"precision": "bf16"},
}


def training(kind: str) -> Training:
    return Training(epochs=EPOCHS, train_with={"head": ("5.weight", "5.bias")}, **KINDS[kind])


def interrupted(kind: str, batches: int, path) -> TrainingState:
    """What lies on the disk when the training was interrupted after so many batches."""
    begun = training(kind)
    with pytest.raises(KeyboardInterrupt):
        begun.run(observer=Stop(batches))
    begun.saved[-1].write(path, {"about": kind})
    snapshot, about = TrainingState.read(path)
    assert about == {"about": kind}
    return snapshot


def require_same(resumed: Training, whole: Training):
    assert resumed.told == whole.told
    assert same(resumed.model, whole.model)
    assert same(resumed.kept[-1][1], whole.kept[-1][1])


INTERRUPTIONS = ((BATCHES + 3, 600), (BATCHES + 3, 0), (2, 0), (2 * BATCHES, 0), (EPOCHS * BATCHES, 0))
"""After so many batches, where the state is saved every so many seconds."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interruptions", [INTERRUPTIONS[1:2], pytest.param(INTERRUPTIONS, marks=pytest.mark.soak)])
def test_resumed_trainings_end_like_uninterrupted_ones(kind, interruptions, tmp_path, monkeypatch):
    require_resumable(kind, interruptions, tmp_path, monkeypatch)


def test_a_resumed_training_ends_like_an_uninterrupted_one_wherever_it_was_interrupted(tmp_path, monkeypatch):
    require_resumable("freeze", INTERRUPTIONS, tmp_path, monkeypatch)


def require_resumable(kind, interruptions, tmp_path, monkeypatch):
    whole = training(kind).run()
    for batches, seconds in interruptions:
        monkeypatch.setattr(loop, "SAVE_SECONDS", seconds)
        snapshot = interrupted(kind, batches, tmp_path / "state")
        # Saved is every batch but the last of an epoch, after which there is the epoch's own.
        expected = (batches - 1) % BATCHES if seconds == 0 else 0
        assert snapshot.facts["batch"] == expected
        assert len(snapshot.facts["reports"]) == (batches - 1) // BATCHES
        torch.manual_seed(batches)
        resumed = training(kind)
        resumed.model = network(seed=9)
        require_same(resumed.run(resume=snapshot), whole)


def test_every_step_can_be_the_one_where_it_is_interrupted(tmp_path, monkeypatch):
    whole = training("average").run()
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    for batches in range(1, 2 * BATCHES + 2):
        require_same(training("average").run(resume=interrupted("average", batches, tmp_path / "state")), whole)


def test_a_training_may_be_interrupted_again_and_again(tmp_path, monkeypatch):
    whole, snapshot = training("average").run(), None
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    for _ in range(EPOCHS * BATCHES + EPOCHS):
        each = training("average")
        try:
            each.run(resume=snapshot, observer=Stop(2))
            break
        except KeyboardInterrupt:
            each.saved[-1].write(tmp_path / "state", {})
            snapshot, _ = TrainingState.read(tmp_path / "state")
    require_same(each, whole)


def test_streamed_images_leave_dropout_its_random_numbers(tmp_path, monkeypatch):
    whole = training("plain").run()
    monkeypatch.setattr("robustbench_local.data.loader.RESIDENT_BYTES", 0)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    more = {"workers": 0}
    assert same(training("plain").run(**more).model, whole.model), "as from memory"
    begun = training("plain")
    with pytest.raises(KeyboardInterrupt):
        begun.run(observer=Stop(BATCHES + 3), **more)
    require_same(training("plain").run(resume=begun.saved[-1], **more), whole)


@pytest.fixture
def falling(monkeypatch):
    """The second epoch of fgsm-rs is taken for catastrophic overfitting, the fourth report too."""
    monkeypatch.setattr(loop, "is_catastrophic", lambda report, earlier: len(earlier) in (1, 3))
    return lambda: Training(epochs=4, method="fgsm-rs", average=0.9)


def test_a_training_that_was_rolled_back_is_resumed_like_any_other(falling, tmp_path, monkeypatch):
    whole = falling().run()
    assert [(report.epoch, report.undone) for report in whole.reports] == [
        (1, False),
        (2, True),
        (2, False),
        (3, True),
        (3, False),
        (4, False),
    ]
    assert [report.method for report in whole.reports] == [
        "fgsm-rs",
        "fgsm-rs",
        "n-fgsm",
        "n-fgsm",
        "pgd-at:steps=2",
        "pgd-at:steps=2",
    ]
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    for batches in (3, BATCHES + 2, 2 * BATCHES, 2 * BATCHES + 2, 3 * BATCHES + 4, 5 * BATCHES, 5 * BATCHES + 1):
        begun = falling()
        with pytest.raises(KeyboardInterrupt):
            begun.run(observer=Stop(batches))
        begun.saved[-1].write(tmp_path / "state", {})
        snapshot, _ = TrainingState.read(tmp_path / "state")
        assert snapshot.rollback is not None
        require_same(falling().run(resume=snapshot), whole)


def test_the_healthy_snapshot_stays_what_it_was_and_holds_no_other(falling):
    training = falling()
    seen = []

    def watch(snapshot):
        if snapshot.rollback is not None:
            assert snapshot.rollback.rollback is None, "or every epoch of the training would stay in memory"
            tensors = {name: tensor.clone() for name, tensor in snapshot.rollback.tensors.items()}
            seen.append((snapshot.rollback, tensors))
        training.saved.append(snapshot)

    task = TrainingTask(training.model, training.objective, training.threat_model, training.recipe)
    loop.train(task, *training.data, callbacks=loop.TrainingCallbacks(save_state=watch))
    assert len(seen) >= 5
    for snapshot, tensors in seen:
        assert all(torch.equal(snapshot.tensors[name], tensor) for name, tensor in tensors.items())


def test_going_on_from_a_snapshot_does_not_change_it(tmp_path):
    for kind in ("plain", "adamw"):
        begun = training(kind)
        with pytest.raises(KeyboardInterrupt):
            begun.run(observer=Stop(BATCHES + 2))
        snapshot = begun.saved[-1]
        first, again = training(kind).run(resume=snapshot), training(kind).run(resume=snapshot)
        require_same(first, again)


def test_a_finished_training_has_nothing_left_to_do(tmp_path):
    whole = training("plain").run()
    before = {name: value.clone() for name, value in whole.model.state_dict().items()}
    again = training("plain").run(resume=whole.saved[-1])
    assert again.told == whole.told
    assert same(again.model, before)
    assert not again.saved


def test_the_snapshot_of_another_network_is_refused():
    snapshot = training("plain").run().saved[-1]
    for model in (network(norm=False), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))):
        with pytest.raises(UserError, match="used another network") as caught:
            Training(model, epochs=EPOCHS).run(resume=snapshot)
        assert "\n" not in str(caught.value)


def test_a_state_without_the_fields_of_today_is_resumed_all_the_same(tmp_path):
    """A report of an earlier version says nothing of the only predicted class."""
    whole = training("plain").run()
    state = interrupted("plain", 2 * BATCHES, tmp_path / "state")
    for report in state.facts["reports"]:
        del report["only_class"]
    require_same(training("plain").run(resume=state), whole)


def test_a_state_of_other_defaults_is_refused_in_one_sentence(tmp_path):
    """Fine-tuning with the learning rate that was the default before."""
    quick = {"model": "digits-cnn", "method": "standard", "samples": "100", "batch_size": "32", "epochs": "1"}
    recipe = resolve_recipe(None, {**quick, "lr": "0.1", "schedule": "onecycle"})
    run_training(recipe, tmp_path / "out", runtime=RuntimeSettings(device="cpu"))
    with pytest.raises(UserError, match="its lr, schedule differ") as caught:
        run_training(resolve_recipe(None, quick), tmp_path / "out", runtime=RuntimeSettings(device="cpu"), resume=True)
    assert caught.value.slug == "another-training"


def test_a_state_whose_recipe_lacks_a_newer_setting_is_resumed(tmp_path, monkeypatch):
    """`checkpoint_key` is younger than states that are still in somebody's directory."""
    quick = {"arch": "cnn-small", "method": "standard", "samples": "100", "batch_size": "32", "epochs": "1"}
    recipe, cpu = resolve_recipe(None, quick), RuntimeSettings(device="cpu")
    write = TrainingState.write

    def write_as_before(state, path, about):
        older = {name: value for name, value in about["recipe"].items() if name != "checkpoint_key"}
        write(state, path, {**about, "recipe": older})

    monkeypatch.setattr(TrainingState, "write", write_as_before)
    run_training(recipe, tmp_path / "out", runtime=cpu)
    run_training(recipe, tmp_path / "out", runtime=cpu, resume=True)
    other = resolve_recipe(None, {**quick, "checkpoint_key": "ema"})
    with pytest.raises(UserError, match="its checkpoint-key differs"):
        run_training(other, tmp_path / "out", runtime=cpu, resume=True)


QUICK = {
    "method": "pgd-at:steps=1",
    "arch": "cnn-small",
    "samples": "120",
    "batch_size": "32",
    "epochs": "3",
    "average": "0.9",
    "eval_samples": "40",
    "suite": "fast",
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    run_training(resolve_recipe(None, QUICK), folder, runtime=RuntimeSettings(device="cpu"))
    return folder


CLEAN = multiprocessing.get_context("forkserver") if "forkserver" in multiprocessing.get_all_start_methods() else None
"""Children of a process that has computed nothing: torch's gradients do not survive a fork of one that has."""


def killed(place, last, output):
    """The signal that ended a process in which the last-th call of a function is its last."""
    CLEAN.set_forkserver_preload(["robustbench_local.training.run", "small_trainings"])
    child = CLEAN.Process(target=harden_until, args=(place, last, QUICK, output))
    child.start()
    child.join()
    return child.exitcode


@pytest.mark.skipif(CLEAN is None, reason="needs fork and POSIX signals")
@pytest.mark.parametrize(
    ("place", "moments"),
    [
        ("robustbench_local.training.step:TrainingStep.train_batch", (5,)),
        ("robustbench_local.training.run:write_atomically", (2,)),
        ("robustbench_local.training.run:write_weights", (2,)),
        ("robustbench_local.training.run:write_card", (2,)),
        ("robustbench_local.training.snapshot:TrainingState.write", (4,)),
        ("os:fsync", (9,)),
        *(
            pytest.param(*each, marks=pytest.mark.soak)
            for each in (
                ("robustbench_local.training.step:TrainingStep.train_batch", (2, 8)),
                ("robustbench_local.training.run:write_atomically", (1, 3)),
                ("robustbench_local.training.run:write_weights", (1,)),
                ("robustbench_local.training.run:write_card", (1,)),
                ("robustbench_local.training.snapshot:TrainingState.write", (1, 5)),
                ("os:fsync", (1, 5, 13)),
                ("robustbench_local.training.loop:validate", (1, 3)),
            )
        ),
    ],
)
def test_a_process_killed_anywhere_is_resumed_to_the_same_files(place, moments, uninterrupted, tmp_path):
    for moment in moments:
        output = tmp_path / f"out{moment}"
        assert killed(place, moment, output) == -signal.SIGKILL
        run_training(resolve_recipe(None, QUICK), output, runtime=RuntimeSettings(device="cpu"), resume=True)
        require_same_files(output, uninterrupted)


def require_same_files(output, whole):
    def told(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [
            loop.EpochReport.model_validate_json(line).model_dump(exclude={"seconds", "images_per_second"})
            for line in lines
        ]

    assert told(output) == told(whole)
    for name in ("model.safetensors", "last.safetensors"):
        assert (output / name).exists() == (whole / name).exists()
        assert not (whole / name).exists() or (output / name).read_bytes() == (whole / name).read_bytes()
