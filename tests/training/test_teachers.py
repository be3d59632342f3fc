"""Methods that learn from a teacher: one that is given, or one that is trained first."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from robustbench_local.attacks.attack import spec_text
from robustbench_local.data import load_dataset
from robustbench_local.defenses import HAT, RSLAD, DefensiveDistillation
from robustbench_local.errors import UserError
from robustbench_local.models import fingerprint, load_classifier
from robustbench_local.training.metrics import TrainingObserver
from robustbench_local.training.model_card import read_card
from robustbench_local.training.recipe import resolve_recipe
from robustbench_local.training.run import run_training
from robustbench_local.training.settings import RuntimeSettings
from robustbench_local.training.step import TrainingStep

CPU_RUNTIME = RuntimeSettings(device="cpu")
QUICK = {"arch": "cnn-small", "samples": "120", "batch_size": "32", "epochs": "2", "lr": "0.05"}


def recipe(method, **more):
    return resolve_recipe(None, {**QUICK, "method": method, **more})


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers") / "out"
    run_training(recipe("defensive-distillation:temperature=10"), folder, runtime=CPU_RUNTIME)
    return folder


def test_the_teacher_is_trained_first_in_a_folder_of_its_own(distilled):
    card = read_card((distilled / "teacher" / "model.json").read_bytes())
    teacher = DefensiveDistillation(temperature=10.0).own_teacher()
    assert card.recipe.method == spec_text(teacher) == "standard:temperature=10.0"
    own = read_card((distilled / "model.json").read_bytes()).recipe
    assert card.recipe == own.model_copy(update={"method": card.recipe.method})
    assert not (distilled / "teacher" / "training.safetensors").exists(), "it is finished"
    assert not (distilled / "teacher" / "result.json").exists(), "the test images are the student's judges"
    assert fingerprint(load_classifier(str(distilled / "teacher"))) != fingerprint(load_classifier(str(distilled)))
    assert HAT().own_teacher().name == "standard"
    assert RSLAD().own_teacher() is None


def test_a_teacher_that_is_given_is_asked_and_left_as_it_is(tmp_path, monkeypatch):
    asked = []
    teacher = load_classifier("digits-cnn-robust")
    before = fingerprint(teacher)
    monkeypatch.setattr("robustbench_local.training.setup.load_classifier", lambda *_, **__: teacher)
    learn = TrainingStep.train_batch

    def learnt(lesson, *arguments, **settings):
        asked.append(lesson._task.teacher)
        return learn(lesson, *arguments, **settings)

    monkeypatch.setattr(TrainingStep, "train_batch", learnt)
    run_training(recipe("rslad:steps=1", teacher="digits-cnn-robust"), tmp_path / "out", runtime=CPU_RUNTIME)
    assert asked
    assert all(each is teacher for each in asked)
    assert not (tmp_path / "out" / "teacher").exists()
    assert fingerprint(teacher) == before
    assert not any(value.requires_grad for value in teacher.parameters())


def test_rslad_without_a_teacher_takes_the_bundled_robust_network_on_digits_and_says_so(tmp_path):
    notes = []

    class Ear(TrainingObserver):
        def note(self, text):
            notes.append(text)

    run = run_training(recipe("rslad:steps=1"), tmp_path / "out", CPU_RUNTIME, observer=Ear())
    assert run.card.recipe.teacher == "digits-cnn-robust"
    assert any("digits-cnn-robust" in note for note in notes)
    assert not (tmp_path / "out" / "teacher").exists()


@pytest.mark.parametrize("settings", [{"norm": "l2", "eps": "1"}, {"norm": "l1", "eps": "2"}, {"data": "mine"}])
def test_rslad_without_a_teacher_is_refused_where_the_bundled_one_does_not_fit(settings, tmp_path):
    if "data" in settings:
        digits = load_dataset("digits", split="train")
        np.savez(tmp_path / "mine.npz", images=digits.images(range(200)).numpy(), labels=digits.labels[:200].numpy())
        settings = {"data": f"npz:{tmp_path / 'mine.npz'}", "eps": "0.1"}
    with pytest.raises(UserError, match="--teacher") as caught:
        run_training(recipe("rslad", **settings), tmp_path / "out", CPU_RUNTIME)
    assert caught.value.slug == "teacher-missing"
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("moment", [2, 5, 8, 11])
def test_an_interruption_in_either_training_changes_nothing(moment, distilled, tmp_path, monkeypatch):
    learn, calls = TrainingStep.train_batch, []

    def interrupted(lesson, *arguments, **settings):
        calls.append(1)
        if len(calls) == moment:
            raise KeyboardInterrupt
        return learn(lesson, *arguments, **settings)

    asked, out = recipe("defensive-distillation:temperature=10"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "train_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_training(asked, out, runtime=CPU_RUNTIME)
    run_training(asked, out, runtime=CPU_RUNTIME, resume=True)
    for name in ("model.safetensors", "teacher/model.safetensors"):
        assert (out / name).read_bytes() == (distilled / name).read_bytes()


def test_a_teacher_killed_after_its_first_checkpoint_is_not_taken_for_finished(tmp_path, monkeypatch):
    """Between the first epoch's checkpoint and the state that says how far training is."""
    from robustbench_local.training.snapshot import TrainingState

    write, calls = TrainingState.write, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    asked, out = recipe("hat:steps=1"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_training(asked, out, runtime=CPU_RUNTIME)
    assert (out / "teacher" / "model.json").exists()
    run_training(asked, out, runtime=CPU_RUNTIME, resume=True)
    lines = (out / "teacher" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_the_students_weights_come_from_the_teachers_answers(distilled, tmp_path):
    """Another teacher, another student."""
    asked = recipe("defensive-distillation:temperature=10", teacher="digits-cnn")
    run_training(asked, tmp_path / "out", runtime=CPU_RUNTIME)
    one, other = (load_classifier(str(folder)).module.linear2.weight for folder in (tmp_path / "out", distilled))
    assert not torch.equal(one, other)
