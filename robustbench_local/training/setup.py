"""What is settled before the first step of a training: data, start, teacher – and everything that can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.attack import Model
from robustbench_local.data import load_dataset, stratified_subset
from robustbench_local.data.augmentation import Augmentation
from robustbench_local.data.dataset import Dataset
from robustbench_local.data.holdout import cut_holdout
from robustbench_local.defenses import OBJECTIVES, Objective
from robustbench_local.engine.protocol import require_goes_with, resolve_suite
from robustbench_local.errors import UserError
from robustbench_local.models import load_classifier
from robustbench_local.runtime.distributed import device_for
from robustbench_local.training.initialization import (
    InitialModel,
    check_fits,
    from_checkpoint,
    from_scratch,
    require_seen,
    resize_of,
)
from robustbench_local.training.loop import require_batches
from robustbench_local.training.recipe import Recipe


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that a training needs. recipe: with the defaults that data and start have settled. whole: what is cut
    into training and holdout. judged: the images of the final evaluation. teacher: the one that was named.
    """

    recipe: Recipe
    objective: Objective
    threat_model: ThreatModel
    start: InitialModel
    classes: int
    all_data: Dataset
    training: Dataset
    holdout: Dataset
    eval_data: Dataset
    teacher: Model | None
    device: torch.device


def prepare(
    recipe: Recipe, *, device: str | None = None, data_dir: Path | None = None, download: bool = False
) -> TrainingSetup:
    """Read what the recipe names; nothing is written. Raises UserError for everything that can be wrong with it."""
    objective, threat_model = recipe.objective(), recipe.threat_model()
    recipe.add_ons(), Augmentation.parse(recipe.augment)
    require_goes_with(resolve_suite(recipe.suite)[0], threat_model)
    where = device_for(device)
    start = from_checkpoint(recipe) if recipe.model else None
    resize, names = (start.resize, start.class_names) if start else (resize_of(recipe), None)

    def load(data: str, split: str) -> Dataset:
        return load_dataset(data, split=split, data_dir=data_dir, download=download, resize=resize, class_names=names)

    all_data = load(recipe.data, "train")
    start = start or from_scratch(recipe, all_data)
    # The checkpoint's recipe says in full what was done, so that no later default can change what it means.
    recipe = recipe.model_copy(
        update={"eps": threat_model.eps_text, "arch": recipe.arch if recipe.model else start.architecture}
    )
    start.network.to(where)
    classes = check_fits(start.network, recipe.model or start.architecture, all_data)
    names = names or all_data.class_names
    if recipe.samples is not None:
        all_data = all_data.subset(stratified_subset(all_data.labels, recipe.samples, recipe.seed))
    parts = cut_holdout(all_data.labels, recipe.holdout, recipe.seed, groups=all_data.groups)
    training, holdout = (all_data.subset(part) for part in parts)
    require_batches(len(training), recipe)
    eval_data = _judged_by(recipe, holdout, load)
    if recipe.eval_data is not None:
        require_seen(start.network, start.architecture, eval_data, trained_on=all_data)
    if recipe.eval_samples is not None and recipe.eval_samples > len(eval_data):
        raise UserError(
            f"--eval-samples asks for {recipe.eval_samples:,} images, but {eval_data.name} has {len(eval_data):,} to "
            "evaluate on: ask for fewer, or leave it out"
        )
    teacher = _named_teacher(recipe, objective, all_data, classes, where)
    return TrainingSetup(
        recipe, objective, threat_model, start, classes, all_data, training, holdout, eval_data, teacher, where
    )


def _judged_by(recipe: Recipe, holdout: Dataset, load: Callable[[str, str], Dataset]) -> Dataset:
    """The data set of the final evaluation."""
    if recipe.eval_data is not None:
        return load(recipe.eval_data, "test")
    if holdout.split != "all":
        return load(recipe.data, "test")
    # A set that is taken whole has no test split. Its hold-out was at least not trained on, and is named as what it is.
    holdout.split = "holdout"
    return holdout


def _named_teacher(
    recipe: Recipe, objective: Objective, all_data: Dataset, classes: int, where: torch.device
) -> Model | None:
    """The classifier that the recipe wants learnt from; None where there is none, or the method trains its own.

    Raises UserError where the method learns from no teacher, or needs one that is not named, and for one that does not
    know the student's classes or cannot take its images.
    """
    if not objective.needs_teacher:
        if recipe.teacher is not None:
            taught = ", ".join(name for name, kind in OBJECTIVES.items() if kind.needs_teacher)
            raise UserError(
                f"{objective.name} learns from no teacher, but --teacher {recipe.teacher} names one: leave it out, or "
                f"take a method that has one ({taught})"
            )
        return None
    if recipe.teacher is None:
        if objective.own_teacher() is None:
            raise UserError(
                f"{objective.name} learns from a robust teacher: name one with --teacher, such as a folder of runs/"
            )
        return None
    model = load_classifier(recipe.teacher)
    name = f"the teacher {recipe.teacher}"
    known = check_fits(model.to(where), name, all_data)
    if known != classes:
        raise UserError(f"{name} knows {known} classes, but the student {classes}: give a teacher of the same")
    return model
