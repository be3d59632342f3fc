"""A small grid search over settings: every combination is trained, and the hold-out chooses the best."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from robustbench_local.errors import Diverged, UserError, nearest
from robustbench_local.io.atomic_write import write_atomically
from robustbench_local.results.schema import StrictModel
from robustbench_local.runtime.distributed import gather, rank_and_world
from robustbench_local.training.metrics import EpochReport, TrainingObserver, best
from robustbench_local.training.model_card import CARD, LAST, METRICS, WEIGHTS, last_of
from robustbench_local.training.recipe import Recipe, with_settings
from robustbench_local.training.run import TEACHER, TRIALS, check_output_is_new, run_training
from robustbench_local.training.settings import RuntimeSettings
from robustbench_local.training.setup import prepare
from robustbench_local.training.snapshot import STATE

TABLE = "search.json"
FAILED = "failed.txt"
"""A trial's recipe, and why it failed; a resumed search does not repeat it."""
MOST = 64
FIXED = ("seed", "suite", "data", "eval_data", "samples", "eval_samples", "holdout", "resize", "norm", "eps")
"""Settings whose values cannot be compared: hold-out or threat model would differ."""
INDEPENDENT_OF_DATA = {
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
"""Settings that fit all data and models, so that one set-up checks all their values."""


class Trial(StrictModel):
    """One combination: its settings, and its best epoch on the hold-out or why it failed."""

    settings: dict[str, str]
    chosen: EpochReport | None
    failed: str | None = None

    @property
    def rank(self) -> tuple[bool, tuple[float, float]]:
        """Orders trials; failed ones come behind all others."""
        return (True, self.chosen.rank) if self.chosen is not None else (False, (0.0, 0.0))

    @property
    def description(self) -> str:
        """The settings as the command line gives them."""
        return ", ".join(f"{key.replace('_', '-')}={value}" for key, value in self.settings.items())


class Search(StrictModel):
    """The content of `search.json`, best trial first."""

    trials: list[Trial]


class SearchObserver:
    """Receives the progress of a grid search and ignores it. A display overrides what it shows."""

    def trial(self, number: int, trials: int, trial: Trial) -> AbstractContextManager[TrainingObserver]:  # noqa: ARG002
        """A trial starts; the context's value observes its training. number: from 1."""
        return nullcontext(TrainingObserver())

    def failed(self, trial: Trial) -> None:
        """A trial has failed; the others continue."""

    def ranked(self, trials: Sequence[Trial]) -> None:
        """All trials are done. trials: best first."""


@dataclass(frozen=True)
class SearchSettings:
    """What a grid search and its trainings share. resume: continue the interrupted search of the directory."""

    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    resume: bool = False


def combinations(axes: Sequence[str]) -> list[dict[str, str]]:
    """`("lr=0.1,0.2", "epochs=5")` -> every combination; values of method and augment are separated by semicolons.

    Raises UserError for another form, for what is not a setting, and for more than 64 combinations.
    """
    values_of: dict[str, list[str]] = {}
    for text in axes:
        key, equals, values = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not values.strip():
            raise UserError(f"--search {text!r} is written KEY=VALUE,VALUE, such as lr=0.05,0.1", slug="bad-search")
        if key not in Recipe.model_fields or key in FIXED:
            hint = nearest(key, Recipe.model_fields)
            raise UserError(
                f"--search: {key.replace('_', '-')!r} cannot be searched.{hint}", slug="setting-not-searchable"
            )
        if key in values_of:
            raise UserError(
                f"--search gives {key.replace('_', '-')} twice: write all its values after one",
                slug="duplicate-setting",
            )
        values_of[key] = [value.strip() for value in values.split(";" if key in ("method", "augment") else ",")]
        if len(set(values_of[key])) < len(values_of[key]):
            raise UserError(f"--search {text!r} gives a value twice: leave one of them out", slug="duplicate-value")
    grid = [dict(zip(values_of, values, strict=True)) for values in itertools.product(*values_of.values())]
    if len(grid) > MOST:
        raise UserError(
            f"--search gives {len(grid)} trainings, but at most {MOST} are allowed", slug="search-too-large"
        )
    return grid


def grid_search(
    recipe: Recipe,
    axes: Sequence[str],
    output: Path,
    settings: SearchSettings | None = None,
    *,
    observer: SearchObserver | None = None,
) -> Recipe:
    """Train every combination in a subdirectory of its own; the best one's training becomes that of `output`.

    Returns the winning recipe, whose training in `output` is to be resumed for its evaluation. The test images are not
    used. Trials that an earlier, interrupted search has finished are not repeated. A trial that diverges counts as
    failed. Raises UserError for bad axes, and where every trial has failed.
    """
    settings, observer = settings or SearchSettings(), observer or SearchObserver()
    grid = combinations(axes)
    recipes = [with_settings(recipe, each) for each in grid]
    if settings.resume and (output / STATE).exists() and (output / TABLE).exists():
        return recipes[grid.index(_earlier_winner(output, grid).settings)]
    if not settings.resume:
        check_output_is_new(output)
    _check_recipes(recipes, settings.runtime)
    trials: list[Trial] = []
    for number, (values, candidate) in enumerate(zip(grid, recipes, strict=True), start=1):
        trial, folder = Trial(settings=values, chosen=None), output / TRIALS / str(number)
        with observer.trial(number, len(grid), trial) as training_observer:
            trial = _run_trial(trial, candidate, folder, settings, training_observer)
        if trial.failed is not None:
            observer.failed(trial)
        trials.append(trial)
    order = sorted(range(len(grid)), key=lambda position: trials[position].rank, reverse=True)
    observer.ranked([trials[position] for position in order])
    if trials[order[0]].chosen is None:
        raise UserError(
            f"every training of the search has failed, the first because {trials[0].failed}", slug="every-trial-failed"
        )
    if rank_and_world()[0] == 0:
        _adopt_winner(output, order[0] + 1, [trials[position] for position in order])
    gather([])  # no process reads what the first one has not yet copied
    return recipes[order[0]]


def _check_recipes(recipes: Sequence[Recipe], runtime: RuntimeSettings) -> None:
    """Raises UserError for a mistake in any trial, before hours of training the others."""
    metrics = {recipe.objective().validation_metric for recipe in recipes}
    if len(metrics) > 1:
        raise UserError(
            f"--search: the methods are validated by different accuracies ({', '.join(sorted(metrics))}), which cannot "
            "be compared: search among methods of one kind",
            slug="metrics-not-comparable",
        )
    for recipe in {recipe.model_dump_json(exclude=INDEPENDENT_OF_DATA): recipe for recipe in recipes}.values():
        prepare(recipe, runtime)


def _run_trial(
    trial: Trial, recipe: Recipe, folder: Path, settings: SearchSettings, observer: TrainingObserver
) -> Trial:
    """The trial with its best epoch, or with why it failed."""
    if (folder / FAILED).exists():
        earlier, _, reason = (folder / FAILED).read_text(encoding="utf-8").strip().partition("\n")
        if earlier == recipe.model_dump_json():
            return trial.model_copy(update={"failed": reason})
    try:
        run = run_training(recipe, folder, settings.runtime, resume=(folder / STATE).exists(), observer=observer)
    except Diverged as error:
        if rank_and_world()[0] == 0:
            write_atomically(folder / FAILED, f"{recipe.model_dump_json()}\n{error}\n")
        return trial.model_copy(update={"failed": str(error)})
    return trial.model_copy(update={"chosen": best(run.reports)})


def _adopt_winner(output: Path, number: int, trials: list[Trial]) -> None:
    """Copy the winner's training into the directory, and write the table. trials: best first."""
    winner = output / TRIALS / str(number)
    for name in (WEIGHTS, CARD, METRICS, LAST, last_of(Path(CARD)).name, STATE):
        if (winner / name).exists():
            shutil.copyfile(winner / name, output / name)
    if (winner / TEACHER).exists():
        shutil.copytree(winner / TEACHER, output / TEACHER, dirs_exist_ok=True)
    # Written last, the table says that the winner is complete.
    write_atomically(output / TABLE, Search(trials=trials).model_dump_json(indent=2) + "\n")
    for path in (output / TRIALS).glob(f"*/{STATE}"):
        path.unlink()


def _earlier_winner(output: Path, grid: Sequence[dict[str, str]]) -> Trial:
    """The winner of the search that filled the directory. Raises UserError where that was another search."""
    try:
        trials = Search.model_validate_json((output / TABLE).read_bytes()).trials
    except (OSError, ValidationError):
        raise UserError(f"{output / TABLE} cannot be read: name another --output", slug="bad-search-table") from None
    if any(trial.settings not in grid for trial in trials) or len(trials) != len(grid):
        raise UserError(
            f"{output} belongs to another --search: give the same one, or name another --output", slug="another-search"
        )
    return trials[0]
