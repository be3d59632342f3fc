"""Defaults that depend on the method and on the initial model: every method trains with nothing but its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from small_trainings import Training

from robustbench_local.data import load_dataset
from robustbench_local.defenses import OBJECTIVES, PGDAT, DefensiveDistillation, Gaussian, Objective, Standard
from robustbench_local.evaluation.run import evaluate
from robustbench_local.models import load_classifier
from robustbench_local.training.defaults import FINE_TUNING, with_defaults
from robustbench_local.training.metrics import TrainingObserver
from robustbench_local.training.recipe import Recipe, resolve_recipe
from robustbench_local.training.run import run_training
from robustbench_local.training.settings import RuntimeSettings
from robustbench_local.training.setup import prepare

CPU_RUNTIME = RuntimeSettings(device="cpu")
CHANCE = 0.1
RECIPES = (None, "digits-cnn", "digits-cnn-robust")
"""Recipes for the data that are always there."""


@pytest.mark.parametrize("method", OBJECTIVES)
def test_every_method_learns_the_digits_with_nothing_but_its_name(method, tmp_path):
    """Six epochs are enough: what diverges by default predicts one class for five of them."""
    run = run_training(resolve_recipe(None, {"method": method, "epochs": "6"}), tmp_path / "out", CPU_RUNTIME)
    report = run.card.chosen
    assert report.clean_accuracy.value > 5 * CHANCE
    measured = report.robust_accuracy or report.noisy_accuracy or report.clean_accuracy
    assert measured.value > 2 * CHANCE


@pytest.mark.soak
@pytest.mark.parametrize("config", RECIPES)
@pytest.mark.parametrize("method", OBJECTIVES)
def test_every_method_trains_with_every_recipe(method, config, tmp_path):
    run = run_training(resolve_recipe(config, {"method": method}), tmp_path / "out", CPU_RUNTIME)
    result = run.evaluate_checkpoints().result
    assert result.clean_accuracy.value > 0.9
    if run.card.chosen.robust_accuracy is not None:
        undefended = evaluate(
            load_classifier("digits-cnn"), load_dataset("digits"), run.threat_model, suite="standard", device="cpu"
        )
        assert result.robust_accuracy.value > undefended.result.robust_accuracy.value + 0.1


@pytest.mark.parametrize("method", ["trades", "pgd-at"])
def test_fine_tuning_a_trained_model_by_default_keeps_its_clean_accuracy(method, tmp_path):
    settings = {"model": "digits-cnn", "method": method, "epochs": "5", "suite": "fast"}
    run = run_training(resolve_recipe(None, settings), tmp_path / "out", CPU_RUNTIME)
    card = load_classifier("digits-cnn"), load_dataset("digits")
    before = evaluate(*card, run.threat_model, suite="fast", device="cpu", diagnostics=False).result
    after = run.evaluate_checkpoints().result
    assert after.clean_accuracy.value > before.clean_accuracy.value - 0.03
    assert after.robust_accuracy.value > before.robust_accuracy.value + 0.05


def filled(objective: Objective | None = None, **settings):
    recipe = resolve_recipe(None, settings)
    return with_defaults(recipe, objective or recipe.objective())


def test_fine_tuning_defaults_are_recorded_and_said():
    for settings in ({"model": "digits-cnn"}, {"arch": "torchvision/resnet18", "pretrained": True}):
        recipe, notes = filled(**settings)
        assert {name: getattr(recipe, name) for name in FINE_TUNING} == FINE_TUNING
        assert len(notes) == 1
        assert all(str(value) in notes[0] for value in FINE_TUNING.values())
    assert filled() == (resolve_recipe(None, {}), [])


def test_what_a_recipe_sets_wins_over_defaults_even_where_it_sets_the_usual_value():
    recipe, notes = filled(model="digits-cnn", lr="0.1", schedule="onecycle", clip_norm="0")
    assert (recipe.lr, recipe.schedule, recipe.clip_norm, notes) == (0.1, "onecycle", 0.0, [])
    recipe, _ = filled(model="digits-cnn", lr="0.05")
    assert (recipe.lr, recipe.schedule) == (0.05, "cosine")
    recipe, notes = filled(method="defensive-distillation", clip_norm="0")
    assert (recipe.clip_norm, notes) == (0.0, [])
    assert filled(method="pgd-at:lr=0.1", model="digits-cnn")[0].lr == 0.1


def test_defaults_of_the_temperature_are_those_of_every_method_that_has_one():
    for objective in (DefensiveDistillation(), Standard(temperature=20), DefensiveDistillation(temperature=5)):
        assert filled(objective)[0].clip_norm == 1.0
    for objective in (Standard(), DefensiveDistillation(temperature=1), PGDAT()):
        assert filled(objective)[0].clip_norm == 0.0


def test_the_notes_reach_the_observer_and_the_values_the_card(tmp_path):
    notes = []

    class Ear(TrainingObserver):
        def note(self, text):
            notes.append(text)

    quick = {"method": "standard", "samples": 100, "batch_size": 32, "epochs": 1}
    run = run_training(Recipe(**quick, model="digits-cnn"), tmp_path / "out", CPU_RUNTIME, observer=Ear())
    assert run.card.recipe.lr == FINE_TUNING["lr"]
    assert len(notes) == 1


def test_the_weights_that_a_training_starts_from_are_named(tmp_path):
    """A checkpoint may hold several sets of weights, so a training says which it continues, as an evaluation does."""
    weights = load_classifier("digits-cnn").module.state_dict()
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "net.pt")
    recipe = Recipe(model=str(tmp_path / "net.pt"), arch="digits-cnn")
    assert any("'state_dict'" in note for note in prepare(recipe, CPU_RUNTIME).notes)
    assert prepare(Recipe(arch="digits-cnn"), CPU_RUNTIME).notes == ()


@dataclass(frozen=True)
class Blurred(Standard):
    """A method of one's own that is validated under noise."""

    name: ClassVar[str] = "blurred"
    validation_metric: ClassVar[str] = "noisy"
    sigma: float = 0.1


@dataclass(frozen=True)
class Scaled(Standard):
    """Another one, whose noise has no field of that name."""

    name: ClassVar[str] = "scaled"
    validation_metric: ClassVar[str] = "noisy"

    def validation_noise(self):
        return 0.1


@dataclass(frozen=True)
class Nameless(Standard):
    name: ClassVar[str] = "nameless"
    validation_metric: ClassVar[str] = "noisy"


@pytest.mark.parametrize("objective", [Blurred(), Scaled()])
def test_a_noise_validated_method_of_ones_own_has_its_accuracy_under_noise(objective):
    report = Training(objective=objective, epochs=8, lr=0.1).run().reports[-1]
    assert report.robust_accuracy is None
    assert report.noisy_accuracy.value > 0.5
    assert report.rank[0] == report.noisy_accuracy.value


def test_a_noise_validated_method_without_noise_says_what_is_missing():
    with pytest.raises(TypeError, match=r"nameless .* sigma"):
        Training(objective=Nameless(), epochs=1).run()
    assert Gaussian(sigma=0.3).validation_noise() == 0.3
