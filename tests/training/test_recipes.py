"""The bundled checkpoints are what their recipes make."""

from __future__ import annotations

import importlib.resources

import pytest

from robustbench_local.attacks import PGD, ThreatModel
from robustbench_local.data import load_dataset
from robustbench_local.evaluation.run import evaluate
from robustbench_local.models import load_classifier
from robustbench_local.training.model_card import ModelCard, read_card
from robustbench_local.training.recipe import resolve_recipe
from robustbench_local.training.run import run_training
from robustbench_local.training.settings import RuntimeSettings

BUNDLED = ("digits-cnn", "digits-cnn-robust")
TWO_POINTS = 0.02


def card(name: str) -> ModelCard:
    folder = importlib.resources.files("robustbench_local.models.bundled")
    return read_card(folder.joinpath(f"{name}.json").read_bytes())


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_checkpoint_names_its_recipe_and_stands_up_to_what_it_states(name):
    stated = card(name)
    assert stated.trained_by == name
    assert stated.recipe == resolve_recipe(name, {})
    digits, judge = load_dataset("digits", split="test"), {"suite": stated.recipe.suite, "device": "cpu"}
    result = evaluate(load_classifier(name), digits, stated.recipe.threat_model(), **judge).result
    assert result.protocol == stated.evaluation.protocol
    assert result.clean_accuracy == stated.evaluation.clean_accuracy
    # Which of two nearly equal logits is larger may depend on the machine.
    assert abs(result.robust_accuracy.correct - stated.evaluation.robust_accuracy.correct) <= 2


def test_the_robust_one_is_much_more_robust_and_no_less_accurate():
    plain, robust = (card(name).evaluation for name in BUNDLED)
    assert plain.clean_accuracy.value >= 0.975
    assert robust.clean_accuracy.value >= plain.clean_accuracy.value - 0.05
    assert robust.robust_accuracy.value >= plain.robust_accuracy.value + 0.30


@pytest.mark.parametrize("name", ["digits-cnn", pytest.param("digits-cnn-robust", marks=pytest.mark.soak)])
def test_retraining_gives_the_stated_accuracies_within_two_points(name, tmp_path):
    stated = card(name).evaluation
    recipe = resolve_recipe(name, {})
    hardened = run_training(recipe, tmp_path / "again", trained_by=name, runtime=RuntimeSettings(device="cpu"))
    result = hardened.evaluate_checkpoints().result
    assert abs(result.clean_accuracy.value - stated.clean_accuracy.value) <= TWO_POINTS
    assert abs(result.robust_accuracy.value - stated.robust_accuracy.value) <= TWO_POINTS

    classifier = load_classifier(str(tmp_path / "again" / "model.safetensors"), arch="digits-cnn")
    longer = evaluate(
        classifier,
        load_dataset("digits", split="test"),
        ThreatModel("linf", "0.1"),
        device="cpu",
        attacks=[PGD(steps=100, loss="margin", restarts=2)],
    )
    assert abs(longer.robust_accuracy.value - stated.robust_accuracy.value) <= TWO_POINTS
