"""What people get wrong with `robust defend` and `robust train`: found before training, in one sentence that helps."""

from __future__ import annotations

import fcntl
import os

import numpy as np
import pytest
from PIL import Image

QUICK = (
    "--samples",
    "100",
    "--batch-size",
    "16",
    "--epochs",
    "1",
    "--suite",
    "fast",
    "--eval-samples",
    "10",
    "--arch",
    "cnn-small",
    "--device",
    "cpu",
)


@pytest.fixture
def refused(robust, tmp_path):
    """The sentence that the command ends in; the folder that it was to fill is not there."""

    def run(*arguments, command="defend", output="out"):
        ended = robust(command, *arguments, "--output", output)
        assert ended.code == 2, ended.err
        assert "Traceback" not in ended.err
        assert "epoch   1" not in ended.err
        assert not (tmp_path / "out").exists()
        said = [line for line in ended.err.splitlines() if line.startswith(("robust: ", "Error: "))]
        assert len(said) == 1, ended.err
        return said[0]

    return run


@pytest.fixture
def npz(tmp_path):
    def write(name, classes=3, channels=1, count=40):
        images = np.random.default_rng(0).random((count, channels, 8, 8), np.float32)
        np.savez(tmp_path / name, images=images, labels=np.arange(count) % classes)
        return f"npz:{tmp_path / name}"

    return write


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--eval-samples", "99999"), "[too-few-samples]"),
        (("--suite", "autoattack", "--norm", "l1", "--eps", "1"), "choose --suite standard"),
        (("--method", "pgd-at", "--teacher", "digits-cnn"), "[method-without-teacher]"),
        (("--method", "rslad", "--norm", "l2", "--eps", "1"), "[teacher-missing]"),
        (("--method", "PGD-AT"), "Did you mean 'pgd-at'"),
        (("--batch-size", "500"), "[fewer-images-than-a-batch]"),
        (("--accumulate", "3"), "for 1 process and"),
        (("--data", "digit"), "there is no dataset 'digit'"),
        (("--norm", "L2"), "give --eps, such as 0.5"),
        (("--eps", ""), "--eps is empty"),
        (("--method", ""), "--method is empty"),
        (("--arch", ""), "--arch is empty"),
        (("--epochs", "1.5"), "must be a whole number"),
        (("--seed", "9" * 30), "less than 2^63"),
        (("--augment", "crop=0.5"), "must be a whole number"),
        (("--holdout", "0.999"), "another --holdout"),
        (("--momentum", "1"), "momentum is '1'"),
        (("--clip-norm", "-1"), "clip-norm is '-1'"),
        (("--clip-norm", "nan"), "clip-norm is 'nan'"),
        (("--search", "eps=0.1,0.2"), "'eps' cannot be searched"),
    ],
)
def test_it_is_said_before_training(arguments, sentence, refused):
    assert sentence in refused(*QUICK, *arguments)


def test_a_model_brings_its_own_weights(refused):
    assert "[pretrained-with-model]" in refused("digits-cnn", "--pretrained", "--device", "cpu")


def test_a_seed_of_a_file_that_no_generator_takes(refused, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"seed: {10**30}")
    assert "less than 2^63" in refused("--config", tmp_path / "mine.yaml")


def test_evaluation_data_that_do_not_fit_are_found_before_training(refused, npz, tmp_path):
    def told(other):
        return refused(*QUICK[2:], "--eps", "0.1", "--data", npz("mine.npz"), "--eval-data", other, command="train")

    assert "label 5, but cnn-small has 3 classes" in told(npz("more.npz", classes=6))
    assert "images of 3 channels" in told(npz("colour.npz", channels=3))
    assert "label 9" in told("digits")
    for name in ("a", "b", "c"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("L", (32, 32)).save(tmp_path / "pictures" / name / "1.png")
    assert "cannot take the 1×32×32 images" in told(f"imagefolder:{tmp_path / 'pictures'}")


def test_an_output_that_is_no_folder(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--output file is a file" in refused(*QUICK, output="file")
    assert "cannot write" in refused(*QUICK, output="file/inner")


def test_training_from_clean_images_has_no_teacher(robust):
    assert "--teacher" not in robust("train", "--help").out
    assert "--teacher" in robust("defend", "--help").out


@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_a_folder_in_which_another_training_runs(robust, tmp_path, more):
    (tmp_path / "out").mkdir()
    handle = os.open(tmp_path / "out", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        ended = robust("defend", *QUICK, "--output", "out", *more)
    finally:
        os.close(handle)
    assert ended.code == 2
    assert "another training is running in out" in ended.err
    assert not list((tmp_path / "out").iterdir())
    assert robust("defend", *QUICK, "--output", "out", *more).code == 0


def test_a_training_that_ends_in_no_numbers_says_how_to_fix_it(robust, tmp_path):
    ended = robust("train", *QUICK, "--lr", "1e30", "--output", "out")
    assert ended.code == 2
    assert "[logits-not-finite]" in ended.err
    assert not (tmp_path / "out").exists(), "what is left could not be gone on with"


def test_a_first_batch_without_a_gradient_is_no_warning_of_torchs(robust, recwarn):
    ended = robust("defend", *QUICK, "--method", "trades:beta=1e40,steps=1", "--output", "out")
    assert ended.code == 2
    assert "[gradient-not-finite]" in ended.err
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]


def test_momentum_and_clipping_are_in_the_recipe(robust, tmp_path):
    ended = robust("train", *QUICK, "--momentum", "0", "--clip-norm", "1/2", "--norm", "LINF", "--output", "out")
    assert ended.code == 0, ended.err
    card = (tmp_path / "out" / "model.json").read_text()
    assert '"momentum": 0.0' in card
    assert '"clip_norm": 0.5' in card
