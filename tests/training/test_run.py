"""`robust defend` and `robust train` from the command to the files they leave behind."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_commands import ended
from fault_injections import killed_in_the_second_epoch

from robustbench_local.cli import cli, main
from robustbench_local.data import load_dataset
from robustbench_local.errors import UserError
from robustbench_local.models import build_architecture, fingerprint, load_classifier
from robustbench_local.results.schema import Result
from robustbench_local.training.model_card import read_card
from robustbench_local.training.recipe import resolve_recipe
from robustbench_local.training.run import run_training
from robustbench_local.training.settings import RuntimeSettings
from robustbench_local.training.step import TrainingStep

QUICK = ("--samples", "200", "--batch-size", "32", "--device", "cpu", "--suite", "fast")
FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def defend(*arguments) -> None:
    cli(["defend", *map(str, arguments)], standalone_mode=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One quick run, looked at by several tests."""
    folder = tmp_path_factory.mktemp("run") / "quick"
    defend("--method", "pgd-at:steps=2,epochs=3", *QUICK, "--output", folder)
    return folder


def names(folder):
    """The files that are there whatever is installed and however training went."""
    return {file.name for file in folder.iterdir() if file.name != "curves.png" and not file.name.startswith("last")}


FILES = {"metrics.jsonl", "model.json", "model.safetensors", "result.json", "result.samples.jsonl"}


def test_the_folder_holds_checkpoint_metrics_and_result(folder):
    assert names(folder) == FILES
    card = read_card((folder / "model.json").read_bytes())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["epoch"] for line in lines if line["chosen"]][-1] == card.chosen.epoch
    assert (card.architecture, card.num_classes, card.input_shape) == ("digits-cnn", 10, (1, 8, 8))
    assert (card.data.training, card.data.holdout, len(card.data.sha256)) == (180, 20, 64)
    assert card.recipe.method == "pgd-at:steps=2"
    assert card.recipe.epochs == 3
    assert card.trained_by is None
    assert card.class_names == [str(digit) for digit in range(10)]

    result = Result.model_validate_json((folder / "result.json").read_bytes())
    assert result.data.split == "test"
    assert result.data.n == 360
    assert result.protocol.name == "fast"
    assert card.evaluation.robust_accuracy == result.robust_accuracy


def test_the_checkpoint_is_loaded_by_its_architecture(folder):
    classifier = load_classifier(str(folder / "model.safetensors"), arch="digits-cnn")
    result = json.loads((folder / "result.json").read_text())
    assert fingerprint(classifier) == result["model"]["sha256"]
    digits = load_dataset("digits", split="test")
    predictions = classifier(digits.images(range(360))).argmax(1)
    assert int((predictions == digits.labels).sum()) == result["clean_accuracy"]["correct"]


def test_training_goes_on_from_a_model_and_leaves_its_file_as_it_was(folder, tmp_path):
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    defend(weights, "--arch", "digits-cnn", *QUICK, "--lr", "1e-9", "--epochs", "1", "--output", tmp_path / "more")
    assert weights.read_bytes() == before
    start = load_classifier(str(weights), arch="digits-cnn")
    end = load_classifier(str(tmp_path / "more" / "model.safetensors"), arch="digits-cnn")
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(tensor, end.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_a_checkpoint_carries_its_normalisation(tmp_path):
    defend("--arch", "digits-cnn", "--normalize", "mnist", "--epochs", "1", *QUICK, "--output", tmp_path / "out")
    classifier = load_classifier(str(tmp_path / "out" / "model.safetensors"), arch="digits-cnn")
    assert classifier.normalization["mean"] == pytest.approx([0.1307])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    digits = load_dataset("digits", split="test")
    predictions = classifier(digits.images(range(360))).argmax(1)
    assert int((predictions == digits.labels).sum()) == result["clean_accuracy"]["correct"]


def test_a_taken_folder_is_left_alone(folder):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"already holds model\.safetensors"):
        defend(*QUICK, "--output", folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_set_that_is_taken_whole_is_judged_by_its_hold_out_or_another_set(tmp_path):
    digits = load_dataset("digits", split="train").subset(range(300))
    images = (digits.images(range(300)) * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "mine.npz", images=images, labels=digits.labels.numpy())
    base = (
        "--data",
        f"npz:{tmp_path / 'mine.npz'}",
        "--eps",
        "0.1",
        "--epochs",
        "1",
        "--method",
        "standard",
        "--batch-size",
        "32",
        "--device",
        "cpu",
        "--suite",
        "fast",
    )
    defend(*base, "--output", tmp_path / "alone")
    card = read_card((tmp_path / "alone" / "model.json").read_bytes())
    assert (card.evaluation.data, card.evaluation.split) == ("npz:mine.npz", "holdout")
    assert card.evaluation.clean_accuracy.n == card.data.holdout == 30
    defend(*base, "--eval-data", "digits", "--output", tmp_path / "judged")
    card = read_card((tmp_path / "judged" / "model.json").read_bytes())
    assert (card.evaluation.data, card.evaluation.clean_accuracy.n) == ("digits", 360)


def test_a_callers_factory_is_trained(tmp_path):
    (tmp_path / "net.py").write_text(FACTORY)
    defend(f"{tmp_path / 'net.py'}:make", *QUICK, "--epochs", "1", "--output", tmp_path / "out")
    assert read_card((tmp_path / "out" / "model.json").read_bytes()).architecture.endswith("net.py:make")


def test_the_card_says_with_what_it_was_made(folder):
    card = read_card((folder / "model.json").read_bytes())
    assert card.versions.keys() == {"robustbench_local", "python", "torch", "torchvision", "numpy", "safetensors"}
    assert torch.__version__.startswith(card.versions["torch"])
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    if asked.returncode == 0:
        assert card.commit.rstrip("+") == asked.stdout.strip()
    assert (card.recipe.eps, card.recipe.arch) == ("0.1", "digits-cnn"), "defaults are spelled out"


def commands(monkeypatch, *arguments):
    """The exit code of the whole command line."""
    monkeypatch.setattr(sys, "argv", ["robust", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


SMALL = (
    "defend",
    "--arch",
    "cnn-small",
    "--method",
    "pgd-at:steps=1",
    "--samples",
    "120",
    "--batch-size",
    "32",
    "--epochs",
    "3",
    "--device",
    "cpu",
    "--suite",
    "fast",
    "--eval-samples",
    "40",
)


def test_an_interrupted_command_says_how_to_go_on_and_does(tmp_path, monkeypatch, capsys):
    def interrupted(lesson, batch, epoch, number, **settings):
        if epoch == 2:
            raise KeyboardInterrupt
        return learn(lesson, batch, epoch, number, **settings)

    learn, out = TrainingStep.train_batch, tmp_path / "out"
    assert commands(monkeypatch, *SMALL, "--output", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "train_batch", interrupted)
        assert commands(monkeypatch, *SMALL, "--output", out) == 130
    assert f"--output {out} --resume" in " ".join(capsys.readouterr().err.split())
    assert read_card((out / "model.json").read_bytes()).chosen.epoch == 1
    load_classifier(str(out))
    assert commands(monkeypatch, *SMALL, "--output", out) == 2
    assert "[output-is-interrupted-training]" in capsys.readouterr().err
    assert commands(monkeypatch, *SMALL, "--output", out, "--lr", "0.2", "--seed", "1", "--resume") == 2
    assert "is another training (its lr, seed differ)" in capsys.readouterr().err
    assert commands(monkeypatch, *SMALL, "--output", out, "--resume") == 0
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert names(out) == names(tmp_path / "whole") == FILES
    assert commands(monkeypatch, *SMALL, "--output", out, "--resume") == 2
    assert "[training-is-finished]" in capsys.readouterr().err


def test_a_command_killed_in_the_middle_of_an_epoch_is_resumed_to_the_bit(tmp_path, monkeypatch):
    more = ("--average", "0.9", "--optimizer", "adamw", "--lr", "0.01", "--augment", "crop=1")
    command = ended(tmp_path, *SMALL, *more, "--output", tmp_path / "out", prepare=[killed_in_the_second_epoch])
    assert command.process.exitcode == -signal.SIGKILL
    assert (tmp_path / "out" / "training.safetensors").exists()
    assert not (tmp_path / "out" / "result.json").exists()
    assert commands(monkeypatch, *SMALL, *more, "--output", tmp_path / "out", "--resume") == 0
    assert commands(monkeypatch, *SMALL, *more, "--output", tmp_path / "whole") == 0
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    def told(folder):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if "second" not in name} for line in lines]

    assert told(out) == told(whole)
    assert len(told(out)) == 3
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_an_evaluation_that_was_interrupted_after_training_goes_on(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(
            "robustbench_local.training.run.evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        assert commands(monkeypatch, *SMALL, "--output", tmp_path / "out") == 130
    stamp = (tmp_path / "out" / "model.safetensors").read_bytes()
    monkeypatch.setattr(TrainingStep, "train_batch", None)  # nothing is learnt any more
    assert commands(monkeypatch, *SMALL, "--output", tmp_path / "out", "--resume") == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == stamp
    assert names(tmp_path / "out") == FILES


def worse(monkeypatch, epoch):
    """From that epoch on the judge finds nothing robust."""
    import robustbench_local.training.loop as loop

    judge, calls = loop.validate, []

    def judged(*arguments, **settings):
        calls.append(1)
        found = judge(*arguments, **settings)
        none = type(found.clean).of(0, found.clean.n)
        return type(found)(**{**found.__dict__, "robust": none, "clean": none}) if len(calls) >= epoch else found

    monkeypatch.setattr(loop, "validate", judged)


def test_the_last_epochs_weights_are_kept_and_judged_where_others_were_chosen(tmp_path, monkeypatch, capsys):
    worse(monkeypatch, 3)
    assert commands(monkeypatch, *SMALL, "--output", tmp_path / "out") == 0
    out = tmp_path / "out"
    card, last = (read_card((out / name).read_bytes()) for name in ("model.json", "last.json"))
    assert card.chosen.epoch < 3
    assert last.chosen.epoch == 3
    assert not last.chosen.chosen
    results = [json.loads((out / name).read_text()) for name in ("result.json", "last-result.json")]
    assert card.evaluation.clean_accuracy.correct == results[0]["clean_accuracy"]["correct"]
    assert card.last_evaluation.robust_accuracy.correct == results[1]["robust_accuracy"]["correct"]
    made = [load_classifier(str(out / name), arch="cnn-small") for name in ("model.safetensors", "last.safetensors")]
    assert [fingerprint(each) for each in made] == [result["model"]["sha256"] for result in results]
    assert fingerprint(made[0]) != fingerprint(made[1])
    assert "the last epoch on the same images: clean" in " ".join(capsys.readouterr().err.split())


def test_where_the_last_epoch_was_chosen_there_is_no_other(folder, tmp_path, monkeypatch):
    import robustbench_local.training.loop as loop

    judge = loop.validate
    same = []

    def judged(*arguments, **settings):
        same.append(judge(*arguments, **settings))
        return same[0]

    monkeypatch.setattr(loop, "validate", judged)
    assert commands(monkeypatch, *SMALL, "--output", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} - {"curves.png"} == FILES, "of equals the later"
    assert read_card((tmp_path / "out" / "model.json").read_bytes()).chosen.epoch == 3


def test_robust_train_is_standard_training_and_takes_no_method(tmp_path, monkeypatch, capsys):
    # A network that has learned something: of one that has not, every check warns, and all adaptive attacks follow.
    small = ("--samples", "600", "--batch-size", "32", "--epochs", "2", "--device", "cpu", "--suite", "fast")
    assert commands(monkeypatch, "train", *small, "--eval-samples", "40", "--output", tmp_path / "out") == 0
    card = read_card((tmp_path / "out" / "model.json").read_bytes())
    assert card.recipe.method == "standard"
    assert card.chosen.robust_accuracy is None
    assert names(tmp_path / "out") == FILES
    assert "curves: " in " ".join(capsys.readouterr().err.split())
    assert commands(monkeypatch, "train", "--method", "pgd-at") == 2


def test_a_loss_that_explodes_keeps_the_last_good_checkpoint(tmp_path):
    recipe = resolve_recipe(None, {"lr": "1e30", "samples": "200", "batch_size": "32", "method": "standard"})
    with pytest.raises(UserError, match=r"the loss was (nan|inf) in epoch \d+, batch \d+|NaN or infinite logits"):
        run_training(recipe, tmp_path / "out", runtime=RuntimeSettings(device="cpu"))
    for file in (tmp_path / "out").glob("model.safetensors"):
        load_classifier(str(file), arch="digits-cnn")


def test_the_callers_classifier_and_random_numbers_are_left_alone(tmp_path, monkeypatch):
    classifier = load_classifier("digits-cnn")
    monkeypatch.setattr("robustbench_local.training.initialization.load_classifier", lambda *_, **__: classifier)
    weights = fingerprint(classifier)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    settings = {"samples": "200", "batch_size": "32", "epochs": "1", "suite": "fast"}
    recipe = resolve_recipe(None, {"model": "mine", **settings})
    hardened = run_training(recipe, tmp_path / "out", runtime=RuntimeSettings(device="cpu"))
    hardened.evaluate_checkpoints()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert fingerprint(classifier) == weights
    assert not classifier.module.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in classifier.parameters())


def test_the_same_seed_writes_the_same_file(tmp_path):
    quick = {"samples": "100", "batch_size": "32", "arch": "cnn-small", "method": "pgd-at:steps=1", "epochs": "1"}
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        recipe = resolve_recipe(None, {**quick, "seed": seed})
        run_training(recipe, tmp_path / name, runtime=RuntimeSettings(device="cpu"))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_evaluating_a_run_changes_neither_the_run_nor_its_network(tmp_path):
    quick = {"samples": "100", "batch_size": "32", "arch": "cnn-small", "method": "standard", "epochs": "2"}
    recipe = resolve_recipe(None, {**quick, "suite": "fast", "eval_samples": "20"})
    run = run_training(recipe, tmp_path / "out", runtime=RuntimeSettings(device="cpu"))
    card, weights = run.card, {name: value.clone() for name, value in run.start.network.state_dict().items()}
    evaluated = run.evaluate_checkpoints()
    assert run.card is card
    assert card.evaluation is None
    assert all(torch.equal(value, weights[name]) for name, value in run.start.network.state_dict().items())
    assert evaluated.card.evaluation.clean_accuracy == evaluated.result.clean_accuracy
    assert evaluated.card == read_card((tmp_path / "out" / "model.json").read_bytes())
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.card = evaluated.card


def test_architectures_are_built_for_the_classes_of_the_data():
    assert build_architecture("digits-cnn", num_classes=3, in_channels=1)(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
