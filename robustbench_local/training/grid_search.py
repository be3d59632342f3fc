"""A small search over settings: every combination is trained, and the hold-out says which is best."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from robustbench_local.display.training import EpochTable
from robustbench_local.errors import Diverged, UserError, nearest
from robustbench_local.io.atomic_write import write_atomically
from robustbench_local.results.schema import StrictModel
from robustbench_local.runtime.distributed import gather, rank_and_world
from robustbench_local.training.metrics import EpochReport, best
from robustbench_local.training.model_card import CARD, LAST, METRICS, WEIGHTS, last_of
from robustbench_local.training.recipe import Recipe, resolve_recipe
from robustbench_local.training.run import TEACHER, TRIALS, check_output_is_new, run_training
from robustbench_local.training.setup import prepare
from robustbench_local.training.snapshot import STATE

TABLE = "search.json"
FAILED = "failed.txt"
"""A trial's recipe, and why it came to nothing; a search that goes on does not try it again."""
MOST = 64
FIXED = ("seed", "suite", "data", "eval_data", "samples", "eval_samples", "holdout", "resize", "norm", "eps")
"""Settings whose values cannot be compared: the hold-out, or what it is attacked with, would be another."""
LEARNING = {
    "lr",
    "momentum",
    "weight_decay",
    "epochs",
    "freeze_epochs",
    "optimizer",
    "schedule",
    "warmup",
    "eps_warmup",
    "clip_norm",
    "label_smoothing",
    "average",
}
"""Settings that fit all data and models alike."""


class Trial(StrictModel):
    """One combination: what was set, and the epoch of it that stood best on the hold-out, or why there is none."""

    settings: dict[str, str]
    chosen: EpochReport | None
    failed: str | None = None

    @property
    def rank(self) -> tuple[bool, tuple[float, float]]:
        """Orders trials: what has failed behind all others."""
        return (True, self.chosen.rank) if self.chosen is not None else (False, (0.0, 0.0))

    @property
    def description(self) -> str:
        return ", ".join(f"{key.replace('_', '-')}={value}" for key, value in self.settings.items())


class Search(StrictModel):
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
        if key not in Recipe.model_fields or key in FIXED:
            hint = nearest(key, Recipe.model_fields)
            raise UserError(f"--search: {key.replace('_', '-')!r} cannot be searched.{hint}")
        if key in axes:
            raise UserError(f"--search gives {key.replace('_', '-')} twice: write all its values after one")
        axes[key] = [value.strip() for value in values.split(";" if key in ("method", "augment") else ",")]
        if len(set(axes[key])) < len(axes[key]):
            raise UserError(f"--search {text!r} gives a value twice: leave one of them out")
    made = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if len(made) > MOST:
        raise UserError(f"--search asks for {len(made)} trainings: at most {MOST} at once")
    return made


def grid_search(
    recipe: Recipe, searches: Sequence[str], output: Path, settings: dict[str, Any], *, screen: Console
) -> tuple[Recipe, dict[str, Any]]:
    """Train every combination in a folder of its own; the best one's training becomes that of `output`.

    Gives the winning recipe, and settings with which `harden` finds it done. The test images are not looked at; trials
    that an earlier, interrupted search has finished are not repeated. A trial that diverges is noted as failed. Raises
    UserError for searches that make no sense, and where every trial has failed.
    """
    made = combinations(searches)
    recipes = [resolve_recipe(None, {**recipe.model_dump(exclude_defaults=True), **each}) for each in made]
    if settings["resume"] and (output / STATE).exists() and (output / TABLE).exists():
        winner = _taken_over(output, made)
        return recipes[made.index(winner.settings)], {**settings, "trained_by": None}
    if not settings["resume"]:
        check_output_is_new(output)
    _require_sense(recipes, settings)
    trials: list[Trial] = []
    for number, (each, asked) in enumerate(zip(made, recipes, strict=True), start=1):
        trial = Trial(settings=each, chosen=None)
        screen.print(f"trial {number} of {len(made)}: {trial.description}", style="bold", markup=False, soft_wrap=True)
        trials.append(_tried(trial, asked, output / TRIALS / str(number), settings, screen))
    order = sorted(range(len(made)), key=lambda position: trials[position].rank, reverse=True)
    for position in order:
        trial = trials[position]
        screen.print(f"{_figure(trial)}   {trial.description}", markup=False, soft_wrap=True)
    if trials[order[0]].chosen is None:
        raise UserError(f"every training of the search has failed, the first because {trials[0].failed}")
    if rank_and_world()[0] == 0:
        _take_over(output / TRIALS / str(order[0] + 1), output)
        # Written last, it says that the winner has been taken over.
        table = Search(trials=[trials[position] for position in order])
        write_atomically(output / TABLE, table.model_dump_json(indent=2) + "\n")
        for path in (output / TRIALS).glob(f"*/{STATE}"):
            path.unlink()
    gather([])  # nobody reads what the first process has not yet copied
    return recipes[order[0]], {**settings, "resume": True, "trained_by": None}


def _require_sense(recipes: Sequence[Recipe], settings: dict[str, Any]) -> None:
    """What is wrong with the last trial is not to be found after hours of the others. Raises UserError for it."""
    judged_by = {asked.objective().validation_metric for asked in recipes}
    if len(judged_by) > 1:
        raise UserError(
            f"--search: the methods are judged by different accuracies ({', '.join(sorted(judged_by))}), which "
            "cannot be compared: search among methods of one kind"
        )
    where = {name: settings[name] for name in ("device", "data_dir", "download") if name in settings}
    for asked in {asked.model_dump_json(exclude=LEARNING): asked for asked in recipes}.values():
        prepare(asked, **where)


def _tried(trial: Trial, asked: Recipe, folder: Path, settings: dict[str, Any], screen: Console) -> Trial:
    """The trial with its best epoch, or with why it failed."""
    if (folder / FAILED).exists():
        of, _, failed = (folder / FAILED).read_text(encoding="utf-8").strip().partition("\n")
        if of == asked.model_dump_json():
            return trial.model_copy(update={"failed": failed})
    try:
        with EpochTable(screen) as table:
            hardened = run_training(
                asked, folder, observer=table, **{**settings, "resume": (folder / STATE).exists(), "trained_by": None}
            )
    except Diverged as error:
        if rank_and_world()[0] == 0:
            write_atomically(folder / FAILED, f"{asked.model_dump_json()}\n{error}\n")
        screen.print(f"failed: {error}", style="yellow", markup=False, soft_wrap=True)
        return trial.model_copy(update={"failed": str(error)})
    return trial.model_copy(update={"chosen": best(hardened.reports)})


def _figure(trial: Trial) -> str:
    if trial.chosen is None:
        return f"{'failed':22}"
    first = trial.chosen.robust_accuracy or trial.chosen.noisy_accuracy or trial.chosen.clean_accuracy
    return f"{first.value:6.1%} on the hold-out"


def _take_over(trial: Path, output: Path) -> None:
    """The trial's training becomes that of the folder."""
    for name in (WEIGHTS, CARD, METRICS, LAST, last_of(Path(CARD)).name, STATE):
        if (trial / name).exists():
            shutil.copyfile(trial / name, output / name)
    if (trial / TEACHER).exists():
        shutil.copytree(trial / TEACHER, output / TEACHER, dirs_exist_ok=True)


def _taken_over(output: Path, made: Sequence[dict[str, str]]) -> Trial:
    """The winner of the search that has made the folder. Raises UserError where that was another search."""
    try:
        trials = Search.model_validate_json((output / TABLE).read_bytes()).trials
    except (OSError, ValidationError):
        raise UserError(f"{output / TABLE} cannot be read: name another --output") from None
    if any(trial.settings not in made for trial in trials) or len(trials) != len(made):
        raise UserError(f"{output} is of another --search: give the same one, or name another --output")
    return trials[0]
