"""Defaults that depend on the method and on where training starts; a setting of the recipe always wins."""

from __future__ import annotations

from typing import Any

from robustbench_local.defenses import Objective
from robustbench_local.training.recipe import Recipe

FINE_TUNING: dict[str, Any] = {"lr": 0.01, "schedule": "cosine", "clip_norm": 1.0}
"""Large steps from trained weights would destroy them first."""
ROBUST_TEACHER = "digits-cnn-robust"
"""The bundled classifier that is robust, to L∞ perturbations of the digits."""


def with_defaults(recipe: Recipe, objective: Objective) -> tuple[Recipe, list[str]]:
    """The recipe with these defaults for what it does not set, and a sentence about each choice."""
    update: dict[str, Any] = {}
    notes: list[str] = []
    if recipe.model is not None or recipe.pretrained:
        fine_tuning = _unset(recipe, FINE_TUNING)
        if fine_tuning:
            update |= fine_tuning
            notes.append(f"fine-tuning trained weights, so {_listed(fine_tuning)} by default")
    own = {name: value for name, value in _unset(recipe, objective.training_defaults()).items() if name not in update}
    if own:
        update |= own
        notes.append(f"the method is {objective.name}, so {_listed(own)} by default")
    needs_one = objective.needs_teacher and recipe.teacher is None and objective.own_teacher() is None
    if needs_one and recipe.data == "digits" and recipe.norm == "linf":
        update["teacher"] = ROBUST_TEACHER
        notes.append(f"the teacher is the bundled {ROBUST_TEACHER}; --teacher names another")
    return recipe.model_copy(update=update), notes


def _unset(recipe: Recipe, defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in defaults.items() if name not in recipe.model_fields_set}


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"--{name.replace('_', '-')} is {value}" for name, value in settings.items())
