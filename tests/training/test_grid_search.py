"""`--search`: every combination is trained, the hold-out chooses, and the winner becomes the training of the folder."""

from __future__ import annotations

import json
import re

import click
import pytest

from robustbench_local.cli import cli
from robustbench_local.errors import UserError
from robustbench_local.training import grid_search as searching
from robustbench_local.training.grid_search import SearchSettings, combinations, grid_search
from robustbench_local.training.model_card import read_card
from robustbench_local.training.recipe import Recipe, with_settings
from robustbench_local.training.settings import RuntimeSettings

QUICK = (
    "--samples",
    "150",
    "--batch-size",
    "32",
    "--device",
    "cpu",
    "--arch",
    "cnn-small",
    "--suite",
    "fast",
    "--eval-samples",
    "30",
)
SETTINGS = SearchSettings(RuntimeSettings(device="cpu"))


def defend(*arguments):
    cli(["defend", *map(str, arguments)], standalone_mode=False)


def test_all_combinations_are_made():
    assert combinations(["lr=0.1, 0.2", "batch-size=32,64"]) == [
        {"lr": "0.1", "batch_size": "32"},
        {"lr": "0.1", "batch_size": "64"},
        {"lr": "0.2", "batch_size": "32"},
        {"lr": "0.2", "batch_size": "64"},
    ]
    assert combinations(["method=trades:beta=6,steps=7;pgd-at", "augment=crop=4,flip;none"])[0] == {
        "method": "trades:beta=6,steps=7",
        "augment": "crop=4,flip",
    }


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["lrr=0.1"], "'lrr' cannot be searched.*Did you mean 'lr'"),
        (["seed=1,2"], "'seed' cannot be searched"),
        (["suite=fast"], "'suite' cannot be searched"),
        (["lr"], "KEY=VALUE,VALUE"),
        (["lr="], "KEY=VALUE,VALUE"),
        (["lr=0.1", "lr=0.2"], "gives lr twice"),
        (["lr=0.1,0.1"], "gives a value twice"),
        (["eps=0.1,0.2"], "'eps' cannot"),
        (["lr=" + ",".join(map(str, range(65)))], "65 trainings, but at most 64"),
    ],
)
def test_searches_that_make_no_sense_are_one_sentence(texts, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        combinations(texts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("method=pgd-at:steps=1;pgdat", "unknown method 'pgdat'"),
        ("lr=0.1,fast", "lr is 'fast'"),
        ("augment=flip;flop", "no 'flop'"),
        ("arch=cnn-small,cnn-smal", "unknown architecture 'cnn-smal'"),
        ("batch-size=32,5000", "fewer than one batch of 5000"),
        ("method=pgd-at;standard", "cannot be compared"),
        ("teacher=digits-cnn", "pgd-at does not use a teacher"),
    ],
)
def test_what_is_wrong_with_the_last_combination_is_found_before_the_first(text, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "run_training", None)
    with pytest.raises(UserError, match=sentence):
        grid_search(Recipe(), [text], tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "out"
    defend(*QUICK, "--method", "standard", "--epochs", "3", "--search", "lr=1e-6,0.2", "--output", folder)
    return folder


def test_the_winner_becomes_the_training_of_the_folder(searched):
    table = json.loads((searched / "search.json").read_text())["trials"]
    assert [trial["settings"] for trial in table] == [{"lr": "0.2"}, {"lr": "1e-6"}]
    best, worst = (trial["chosen"]["clean_accuracy"]["value"] for trial in table)
    assert best > worst
    card = read_card((searched / "model.json").read_bytes())
    assert card.recipe.lr == 0.2
    assert card.chosen.clean_accuracy.value == best
    assert card.evaluation is not None
    trial = searched / "search" / "2"
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (searched / name).read_bytes() == (trial / name).read_bytes()
    assert not (trial / "result.json").exists(), "the test images have judged nothing but the winner"
    assert (searched / "result.json").exists()
    assert not (searched / "training.safetensors").exists()


def test_a_finished_folder_is_not_searched_over(searched):
    before = (searched / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="already holds"):
        defend(*QUICK, "--method", "standard", "--epochs", "3", "--search", "lr=1e-6,0.1", "--output", searched)
    assert (searched / "model.safetensors").read_bytes() == before


def test_an_interrupted_search_does_not_repeat_what_is_done(tmp_path, monkeypatch):
    asked = ("--method", "standard", "--epochs", "2", "--search", "lr=0.1,0.2", "--output", tmp_path / "out")
    train, begun = searching.run_training, []

    def second(recipe, *arguments, **settings):
        begun.append(recipe.lr)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return train(recipe, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(searching, "run_training", second)
        with pytest.raises(click.Abort):  # what click makes of the interruption
            defend(*QUICK, *asked)
    stamp = (tmp_path / "out" / "search" / "1" / "metrics.jsonl").stat().st_mtime_ns
    defend(*QUICK, *asked)
    assert (tmp_path / "out" / "search" / "1" / "metrics.jsonl").stat().st_mtime_ns == stamp
    assert (tmp_path / "out" / "result.json").exists()


def test_the_winners_teacher_is_not_trained_again(tmp_path):
    quick = Recipe(samples=150, batch_size=32, arch="cnn-small", method="hat:steps=1", epochs=1)
    winner = grid_search(quick, ["lr=0.05"], tmp_path / "out", SETTINGS)
    searching.run_training(winner, tmp_path / "out", SETTINGS.runtime, resume=True)
    one, other = (folder / "teacher" for folder in (tmp_path / "out", tmp_path / "out" / "search" / "1"))
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes(), "seconds would differ"


def test_explicit_settings_stay_explicit_in_every_trial():
    """A value that is the usual default is still the user's choice, also where fine-tuning has another."""
    recipe = with_settings(Recipe(model="digits-cnn", lr=0.1), {"epochs": "2"})
    assert recipe.model_fields_set == {"model", "lr", "epochs"}
    assert with_settings(recipe, {"method": "trades:momentum=0.5"}).momentum == 0.5


def test_a_trial_that_diverges_does_not_end_the_search(tmp_path, capsys):
    asked = ("--method", "standard", "--epochs", "1", "--search", "lr=1e30,0.1", "--output", tmp_path / "out")
    defend(*QUICK, *asked)
    best, other = json.loads((tmp_path / "out" / "search.json").read_text())["trials"]
    assert best["settings"] == {"lr": "0.1"}
    assert best["failed"] is None
    assert other["chosen"] is None
    assert "NaN or infinite logits" in other["failed"]
    assert not list((tmp_path / "out").glob("**/training.safetensors")), "neither the winner's nor the others'"
    assert re.search("^failed {19}lr=1e30$", capsys.readouterr().err, re.MULTILINE)


def test_a_search_fails_where_all_trials_do(tmp_path):
    asked = ("--method", "standard", "--epochs", "1", "--search", "lr=1e30,1e31", "--output", tmp_path / "out")
    with pytest.raises(UserError, match="every training of the search has failed"):
        defend(*QUICK, *asked)
    assert not (tmp_path / "out" / "search.json").exists()


def test_a_search_goes_on_with_the_evaluation_of_its_winner(tmp_path, monkeypatch):
    asked = ("--method", "standard", "--epochs", "1", "--search", "lr=0.1,0.2", "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(
            "robustbench_local.training.run.evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(click.Abort):
            defend(*QUICK, *asked)
    assert not list((tmp_path / "out").glob("search/*/training.safetensors"))
    with pytest.raises(UserError, match="another --search"):
        defend(*QUICK, *asked[:-3], "lr=0.1,0.3", *asked[-2:], "--resume")
    defend(*QUICK, *asked, "--resume")
    assert (tmp_path / "out" / "result.json").exists()
