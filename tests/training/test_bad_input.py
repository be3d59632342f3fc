"""What a user can get wrong in `robust defend`: one sentence, exit code 2, and nothing is left behind."""

from __future__ import annotations

import sys
import urllib.error

import numpy as np
import pytest
import torch

from robustbench_local.cli import main
from robustbench_local.models import build_architecture, load_classifier

FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, {classes}){tail})
"""

FAILING = (
    FACTORY.format(classes=10, tail=", Last()")
    + """
class Fail(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("CUDA error: misaligned address")

class Last(nn.Module):
    def forward(self, logits):
        return Fail.apply(logits)
"""
)


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """The one sentence that the command ends in."""

    def run(*arguments, command="defend", output=("--output", "out"), left=(), lines=1):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["robust", command, "--device", "cpu", *map(str, [*arguments, *output])])
        with pytest.raises(SystemExit) as ended:
            main()
        error = capsys.readouterr().err
        assert ended.value.code == 2, error
        assert "Traceback" not in error
        assert "epoch   1" not in error
        assert sorted(path.name for path in tmp_path.glob("out/*")) == list(left)
        said = [line for line in error.strip().splitlines() if line.startswith("robust: ")]
        assert len(said) == 1, error
        assert error.strip().splitlines()[-lines] == said[0], error
        return said[0]

    return run


@pytest.fixture
def npz(tmp_path):
    def write(labels, images=None):
        given = np.random.default_rng(0).random((len(labels), 1, 8, 8), np.float32) if images is None else images
        np.savez(tmp_path / "mine.npz", images=given, labels=np.asarray(labels))
        return "--data", f"npz:{tmp_path / 'mine.npz'}", "--eps", "0.1"

    return write


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--method", "pgd_at"), "[unknown-method]"),
        (("--method", "pgd_at"), "Did you mean 'pgd-at'"),
        (("--method", "awp"), "[add-on-without-method]"),
        (("--method", "trades+mart"), "[unknown-add-on]"),
        (("--method", "trades+awp+awp"), "[add-on-twice]"),
        (("--method", "trades+awp:gamma=0"), "gamma is 0"),
        (("--method", "trades+"), "--method"),
        (("--method", "pgd-at:steps=-1"), "steps is -1"),
        (("--method", "trades:beta=-1"), "beta is -1"),
        (("--method", "free:replays=1"), "replays is 1"),
        (("--method", "pgd-at:steps=2.5"), "whole number"),
        (("--method", "rslad", "--norm", "l2", "--eps", "0.5"), "[teacher-missing]"),
        (("--eps", "0"), "[eps-is-zero]"),
        (("--eps", "-1/255"), "-1/255"),
        (("--eps", "8"), "8/255"),
        (("--suite", "fats"), "unknown suite 'fats'"),
        (("--arch", "digits-cn"), "'digits-cn'"),
        (("--arch", "cnn-small", "--normalize", "imagenet"), "digits"),
        (("--config", "digits-robust"), "[unknown-recipe]"),
        (("--samples", "99999"), "1,437"),
        (("--samples", "30", "--batch-size", "64"), "[fewer-images-than-a-batch]"),
        (("--batch-size", "32", "--accumulate", "5"), "[batch-not-divisible]"),
        (("--batch-size", "0"), "batch-size is '0'"),
        (("--augment", "crops=4"), "there is no 'crops'"),
        (("--augment", "crop"), "crop needs a number"),
        (("--search", "learning=0.1"), "[setting-not-searchable]"),
        (("--search", "lr"), "[bad-search]"),
        (("--device", "abacus"), "abacus"),
        (("--epochs", "0"), "epochs is '0'"),
        (("--average", "1"), "average is '1'"),
        (("--checkpoint", "w.pt"), "w.pt"),
        (("--pretrained",), "[no-published-weights]"),
    ],
)
def test_bad_settings_are_one_sentence(arguments, sentence, refused):
    assert sentence in refused(*arguments)


def test_resuming_needs_to_know_what(refused):
    assert "[resume-without-output]" in refused("--resume", output=())


def test_a_checkpoint_of_another_architecture_or_class_count(refused, tmp_path):
    torch.save(build_architecture("digits-cnn", num_classes=7, in_channels=1).state_dict(), tmp_path / "seven.pt")
    assert "[label-beyond-classes]" in refused("seven.pt", "--arch", "digits-cnn")
    listed = refused("seven.pt", "--arch", "cnn-medium", lines=12)  # a list of names follows
    assert "does not fit the model (MediumCNN)" in listed
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    assert "bad.pt" in refused("bad.pt", "--arch", "digits-cnn")


def test_published_weights_without_a_network(refused, npz, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    data = npz([0, 1] * 10, np.zeros((20, 3, 8, 8), np.float32))
    assert "could not be fetched" in refused(*data, "--arch", "torchvision/alexnet", "--pretrained")
    assert "could not be fetched" in refused(*data, "--arch", "torchvision/alexnet", "--pretrained", command="train")


def test_data_that_cannot_teach_anything(refused, npz):
    assert "[one-class-in-data]" in refused(*npz([1] * 40))
    assert "[fewer-images-than-a-batch]" in refused(*npz([0, 1] * 20))
    assert "must be in [0, 1]" in refused(*npz([0, 1] * 20, np.full((40, 1, 8, 8), 9, np.float32)))
    assert "hold-out of" in refused(*npz([0, 1]), "--batch-size", "2")


def test_models_that_do_not_fit_the_data(refused, tmp_path):
    for settings, sentence in (
        ({"classes": 7}, "label 9"),
        ({"classes": 7}, "[label-beyond-classes]"),
        ({"tail": ", nn.Softmax(1)"}, "[softmax-instead-of-logits]"),
        ({"tail": ", nn.Linear(3, 10)"}, "[images-do-not-fit]"),
        ({"classes": 1}, "[one-output-per-image]"),
        ({"classes": 1, "tail": ", nn.Flatten(0)"}, "[one-output-per-image]"),
    ):
        (tmp_path / "net.py").write_text(FACTORY.format(**{"classes": 10, "tail": "", **settings}))
        assert sentence in refused(f"{tmp_path / 'net.py'}:make")


def test_a_backward_that_fails(refused, tmp_path):
    (tmp_path / "net.py").write_text(FAILING)
    sentence = refused(f"{tmp_path / 'net.py'}:make", "--samples", "300", left=("training.safetensors",))
    assert "RuntimeError: CUDA error: misaligned address" in sentence
    assert "[model-failed]" in sentence


def test_teachers_that_do_not_fit_the_student(refused, tmp_path):
    (tmp_path / "net.py").write_text(FACTORY.format(classes=12, tail=""))
    teacher = f"{tmp_path / 'net.py'}:make"
    assert "[teacher-of-other-classes]" in refused("--method", "rslad", "--teacher", teacher)
    (tmp_path / "net.py").write_text(FACTORY.format(classes=3, tail=""))
    message = refused("--method", "rslad", "--teacher", teacher)
    assert "the teacher" in message
    assert "has 3 classes" in message
    assert "no-such" in refused("--method", "hat", "--teacher", "no-such")


def test_a_program_that_cannot_be_trained(refused, tmp_path):
    example, rows = (torch.zeros(2, 1, 8, 8),), torch.export.Dim("rows")
    program = torch.export.export(load_classifier("digits-cnn").module, example, dynamic_shapes=({0: rows},))
    torch.export.save(program, tmp_path / "net.pt2")
    assert "[exported-program]" in refused("net.pt2")


def test_an_output_that_cannot_be_written_is_found_before_training(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(output=("--output", "file/out"))


def test_a_damaged_training_is_not_gone_on_with(refused, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "training.safetensors").write_bytes(b"cut off")
    name = ["training.safetensors"]
    assert "[bad-training-state]" in refused("--resume", left=name)
    assert "[output-is-interrupted-training]" in refused(left=name)
