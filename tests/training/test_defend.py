"""`robust defend` from the command to the files it leaves behind."""
from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from robustbench_local.checkpoint import read_card
from robustbench_local.cli import cli, main
from robustbench_local.data import load_dataset
from robustbench_local.defending import harden
from robustbench_local.errors import UserError
from robustbench_local.models import build_architecture, fingerprint, load_classifier
from robustbench_local.recipes import resolve_recipe
from robustbench_local.result import Result
from robustbench_local.training import Lesson

QUICK = ("--samples", "200", "--batch-size", "32", "--device", "cpu")
FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, {classes}){tail})
"""


def defend(*arguments) -> None:
    cli(["defend", *map(str, arguments)], standalone_mode=False)


@pytest.fixture
def factory(tmp_path):
    def write(classes=10, tail=""):
        (tmp_path / "net.py").write_text(FACTORY.format(classes=classes, tail=tail))
        return f"{tmp_path / 'net.py'}:make"

    return write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One quick run, looked at by several tests."""
    folder = tmp_path_factory.mktemp("run") / "quick"
    defend("--method", "pgd-at:steps=2,epochs=3", *QUICK, "--output", folder)
    return folder


def test_the_folder_holds_checkpoint_metrics_and_result(folder):
    assert sorted(file.name for file in folder.iterdir()) == [
        "metrics.jsonl", "model.json", "model.safetensors", "result.json", "result.samples.jsonl"
    ]
    card = read_card((folder / "model.json").read_bytes())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["epoch"] for line in lines if line["chosen"]][-1] == card.chosen.epoch
    assert (card.architecture, card.num_classes, card.input_shape) == ("digits-cnn", 10, (1, 8, 8))
    assert (card.data.training, card.data.holdout, len(card.data.sha256)) == (180, 20, 64)
    assert card.recipe.method == "pgd-at:steps=2" and card.recipe.epochs == 3 and card.trained_by is None
    assert card.class_names == [str(digit) for digit in range(10)]

    result = Result.model_validate_json((folder / "result.json").read_bytes())
    assert result.data.split == "test" and result.data.n == 360 and result.protocol.name == "fast"
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


def test_a_program_that_cannot_be_trained_is_refused(tmp_path):
    example, rows = (torch.zeros(2, 1, 8, 8),), torch.export.Dim("rows")
    program = torch.export.export(load_classifier("digits-cnn").module, example, dynamic_shapes=({0: rows},))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(UserError, match=r"net\.pt2 is an exported program"):
        defend(tmp_path / "net.pt2", *QUICK, "--output", tmp_path / "out")


def test_a_taken_folder_is_left_alone(folder):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"already holds model\.safetensors"):
        defend(*QUICK, "--output", folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_set_that_is_taken_whole_is_judged_by_its_hold_out_or_another_set(tmp_path):
    digits = load_dataset("digits", split="train").subset(range(300))
    images = (digits.images(range(300)) * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "mine.npz", images=images, labels=digits.labels.numpy())
    base = ("--data", f"npz:{tmp_path / 'mine.npz'}", "--eps", "0.1", "--epochs", "1", "--method", "standard",
            "--batch-size", "32", "--device", "cpu")
    defend(*base, "--output", tmp_path / "alone")
    card = read_card((tmp_path / "alone" / "model.json").read_bytes())
    assert (card.evaluation.data, card.evaluation.split) == ("npz:mine.npz", "holdout")
    assert card.evaluation.clean_accuracy.n == card.data.holdout == 30
    defend(*base, "--eval-data", "digits", "--output", tmp_path / "judged")
    card = read_card((tmp_path / "judged" / "model.json").read_bytes())
    assert (card.evaluation.data, card.evaluation.clean_accuracy.n) == ("digits", 360)


def test_a_callers_factory_is_trained(factory, tmp_path):
    defend(factory(), *QUICK, "--epochs", "1", "--output", tmp_path / "out")
    assert read_card((tmp_path / "out" / "model.json").read_bytes()).architecture.endswith("net.py:make")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--method", "pgd_at"), "unknown method 'pgd_at'.*Did you mean 'pgd-at'"),
        (("--eps", "0"), "eps is 0"),
        (("--eps", "-1/255"), "eps is '?-1/255"),
        (("--eps", "8"), "8/255"),
        (("--method", "pgd-at:steps=-1"), "steps is -1"),
        (("--suite", "fats"), "unknown suite 'fats'.*fast"),
        (("--arch", "digits-cn"), "unknown architecture 'digits-cn'.*digits-cnn"),
        (("--arch", "cnn-small", "--normalize", "imagenet"), "digits"),
        (("--config", "digits-robust"), "neither a file nor a shipped recipe"),
        (("--samples", "99999"), "holds only 1,437"),
        (("--samples", "30", "--batch-size", "64"), "fewer than one batch of 64"),
        (("--device", "abacus"), "abacus"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_checkpoint(arguments, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence) as caught:
        defend(*arguments, "--output", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path).glob("out/*"))


def test_models_that_do_not_fit_the_data_are_refused(factory, tmp_path):
    for settings, sentence in (
        ({"classes": 7}, "label 9, but .* knows 7 classes"),
        ({"tail": ", nn.Softmax(1)"}, "ends in a softmax"),
    ):
        with pytest.raises(UserError, match=sentence):
            defend(factory(**settings), *QUICK, "--output", tmp_path / "out")
    np.savez(tmp_path / "one.npz", images=np.zeros((40, 8, 8), np.float32), labels=np.ones(40, int))
    with pytest.raises(UserError, match=r"every image of npz:one\.npz is of class 1"):
        defend("--data", f"npz:{tmp_path / 'one.npz'}", "--eps", "0.1", "--output", tmp_path / "out")
    np.savez(tmp_path / "grey.npz", images=np.full((40, 8, 8), 9, np.float32), labels=np.arange(40) % 2)
    with pytest.raises(UserError, match=r"must be in \[0, 1\]"):
        defend("--data", f"npz:{tmp_path / 'grey.npz'}", "--eps", "0.1", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_found_before_training(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["robust", "defend", *QUICK, "--output", str(tmp_path / "file" / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "cannot write" in error and "Traceback" not in error and "epoch" not in error


def test_an_interrupted_training_keeps_its_best_checkpoint(tmp_path, monkeypatch, capsys):
    def interrupted(lesson, batch, epoch, number):
        if epoch == 2:
            raise KeyboardInterrupt
        return learn(lesson, batch, epoch, number)

    learn = Lesson.learn
    monkeypatch.setattr(Lesson, "learn", interrupted)
    monkeypatch.setattr(sys, "argv", ["robust", "defend", *QUICK, "--epochs", "3", "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130 and "best checkpoint so far" in capsys.readouterr().err
    assert read_card((tmp_path / "out" / "model.json").read_bytes()).chosen.epoch == 1
    load_classifier(str(tmp_path / "out" / "model.safetensors"), arch="digits-cnn")


def test_a_loss_that_explodes_keeps_the_last_good_checkpoint(tmp_path):
    recipe = resolve_recipe(None, {"lr": "1e30", "samples": "200", "batch_size": "32", "method": "standard"})
    with pytest.raises(UserError, match=r"the loss became (nan|inf) in epoch \d+, batch \d+"):
        harden(recipe, tmp_path / "out", device="cpu")
    for file in (tmp_path / "out").glob("*.safetensors"):
        load_classifier(str(file), arch="digits-cnn")


def test_the_callers_classifier_and_random_numbers_are_left_alone(tmp_path, monkeypatch):
    classifier = load_classifier("digits-cnn")
    monkeypatch.setattr("robustbench_local.starting.load_classifier", lambda *_, **__: classifier)
    weights = fingerprint(classifier)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    recipe = resolve_recipe(None, {"model": "mine", "samples": "200", "batch_size": "32", "epochs": "1"})
    hardened = harden(recipe, tmp_path / "out", device="cpu")
    hardened.judge()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert fingerprint(classifier) == weights and not classifier.module.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in classifier.parameters())


def test_the_same_seed_writes_the_same_file(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        defend(*QUICK, "--epochs", "1", "--seed", seed, "--method", "pgd-at:steps=1", "--output", tmp_path / name)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_architectures_are_built_for_the_classes_of_the_data():
    assert build_architecture("digits-cnn", num_classes=3, in_channels=1)(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
