"""A small search over settings: every combination is trained, and the hold-out says which is best."""
from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from robustbench_local.augmentation import Augmentation
from robustbench_local.checkpoint import CARD, LAST, METRICS, WEIGHTS, last_of
from robustbench_local.defending import TEACHER, harden, require_free
from robustbench_local.epochs import EpochReport, best
from robustbench_local.errors import UserError, nearest
from robustbench_local.files import write_atomically
from robustbench_local.processes import gather, rank_and_world
from robustbench_local.recipes import Recipe, resolve_recipe
from robustbench_local.result import Part
from robustbench_local.training_display import EpochTable
from robustbench_local.training_state import STATE

TRIALS, TABLE = "search", "search.json"
MOST = 64


class Trial(Part):
    """One combination: what was set, and the epoch of it that stood best on the hold-out."""

    settings: dict[str, str]
    chosen: EpochReport


class Search(Part):
    """The content of `search.json`, best trial first."""

    trials: list[Trial]


def combinations(searches: Sequence[str]) -> list[dict[str, str]]:
    """`("lr=0.1,0.2", "epochs=5")` -> every combination.

    Raises UserError for another form and for what is no setting.
    """
    axes: dict[str, list[str]] = {}
    for text in searches:
        key, equals, values = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not values.strip():
            raise UserError(f"--search {text!r} is written KEY=VALUE,VALUE, such as lr=0.05,0.1")
        if key not in Recipe.model_fields or key in ("seed", "suite", "data", "eval_data", "eval_samples", "holdout"):
            hint = nearest(key, Recipe.model_fields)
            raise UserError(f"--search: {key.replace('_', '-')!r} cannot be searched.{hint}")
        if key in axes:
            raise UserError(f"--search gives {key.replace('_', '-')} twice: write all its values after one")
        axes[key] = [value.strip() for value in values.split(";" if key in ("method", "augment") else ",")]
    made = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if len(made) > MOST:
        raise UserError(f"--search asks for {len(made)} trainings: at most {MOST} at once")
    return made


def search(
    recipe: Recipe, searches: Sequence[str], output: Path, settings: dict[str, Any], *, screen: Console
) -> tuple[Recipe, dict[str, Any]]:
    """Train every combination in a folder of its own; the best one's training becomes that of `output`.

    Gives the winning recipe, and settings with which `harden` finds it done. The test images are not looked at; trials
    that an earlier, interrupted search has finished are not repeated. Raises UserError for searches that make no sense.
    """
    made = combinations(searches)
    recipes = [resolve_recipe(None, {**recipe.model_dump(exclude_defaults=True), **each}) for each in made]
    for asked in recipes:  # what is wrong with the last one is not to be found after hours
        asked.objective(), asked.weight_perturbation(), asked.threat_model(), Augmentation.parse(asked.augment)
    if not settings["resume"]:
        require_free(output)
    trials: list[tuple[Trial, Recipe, Path]] = []
    for number, (each, asked) in enumerate(zip(made, recipes, strict=True), start=1):
        told = ", ".join(f"{key.replace('_', '-')}={value}" for key, value in each.items())
        screen.print(f"trial {number} of {len(made)}: {told}", style="bold", markup=False, soft_wrap=True)
        folder = output / TRIALS / str(number)
        with EpochTable(screen) as table:
            hardened = harden(
                asked, folder, observer=table, **{**settings, "resume": (folder / STATE).exists(), "trained_by": None}
            )
        chosen = best(hardened.reports)
        assert chosen is not None
        trials.append((Trial(settings=each, chosen=chosen), asked, folder))
    trials.sort(key=lambda trial: trial[0].chosen.rank, reverse=True)
    _, chosen_recipe, folder = trials[0]
    if rank_and_world()[0] == 0:
        table_of = Search(trials=[trial for trial, _, _ in trials])
        write_atomically(output / TABLE, table_of.model_dump_json(indent=2) + "\n")
        for name in (WEIGHTS, CARD, METRICS, LAST, last_of(Path(CARD)).name, STATE):
            if (folder / name).exists():
                shutil.copyfile(folder / name, output / name)
        if (folder / TEACHER).exists():
            shutil.copytree(folder / TEACHER, output / TEACHER, dirs_exist_ok=True)
    gather([])  # nobody reads what the first process has not yet copied
    for trial, _, _ in trials:
        said = ", ".join(f"{key.replace('_', '-')}={value}" for key, value in trial.settings.items())
        first = trial.chosen.robust_accuracy or trial.chosen.noisy_accuracy or trial.chosen.clean_accuracy
        screen.print(f"{first.value:6.1%} on the hold-out   {said}", markup=False, soft_wrap=True)
    return chosen_recipe, {**settings, "resume": True, "trained_by": None}
