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
    Start,
    fresh_start,
    loaded_start,
    require_fit,
    require_seen,
    resize_of,
)
from robustbench_local.training.loop import require_batches
from robustbench_local.training.recipe import Recipe


@dataclass(frozen=True)
class Prepared:
    """Everything that a training needs. recipe: with the defaults that data and start have settled. whole: what is cut
    into training and holdout. judged: the images of the final evaluation. teacher: the one that was named."""

    recipe: Recipe
    objective: Objective
    threat_model: ThreatModel
    start: Start
    classes: int
    whole: Dataset
    training: Dataset
    holdout: Dataset
    judged: Dataset
    teacher: Model | None
    device: torch.device


def prepare(
    recipe: Recipe, *, device: str | None = None, data_dir: Path | None = None, download: bool = False
) -> Prepared:
    """Read what the recipe names; nothing is written. Raises UserError for everything that can be wrong with it."""
    objective, threat_model = recipe.objective(), recipe.threat_model()
    recipe.weight_perturbation(), Augmentation.parse(recipe.augment)
    require_goes_with(resolve_suite(recipe.suite)[0], threat_model)
    where = device_for(device)
    start = loaded_start(recipe) if recipe.model else None
    resize, names = (start.resize, start.class_names) if start else (resize_of(recipe), None)

    def load(data: str, split: str) -> Dataset:
        return load_dataset(
            data, split=split, data_dir=data_dir, download=download, resize=resize, class_names=names
        )

    whole = load(recipe.data, "train")
    start = start or fresh_start(recipe, whole)
    # The checkpoint's recipe says in full what was done, so that no later default can change what it means.
    recipe = recipe.model_copy(
        update={"eps": threat_model.eps_text, "arch": recipe.arch if recipe.model else start.architecture}
    )
    start.network.to(where)
    classes = require_fit(start.network, recipe.model or start.architecture, whole)
    names = names or whole.class_names
    if recipe.samples is not None:
        whole = whole.subset(stratified_subset(whole.labels, recipe.samples, recipe.seed))
    parts = cut_holdout(whole.labels, recipe.holdout, recipe.seed, groups=whole.groups)
    training, holdout = (whole.subset(part) for part in parts)
    require_batches(len(training), recipe)
    judged = _judged_by(recipe, holdout, load)
    if recipe.eval_data is not None:
        require_seen(start.network, start.architecture, judged, trained_on=whole)
    if recipe.eval_samples is not None and recipe.eval_samples > len(judged):
        raise UserError(
            f"--eval-samples asks for {recipe.eval_samples:,} images, but {judged.name} has {len(judged):,} to "
            "evaluate on: ask for fewer, or leave it out"
        )
    teacher = _named_teacher(recipe, objective, whole, classes, where)
    return Prepared(
        recipe, objective, threat_model, start, classes, whole, training, holdout, judged, teacher, where
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
    recipe: Recipe, objective: Objective, whole: Dataset, classes: int, where: torch.device
) -> Model | None:
    """The classifier that the recipe wants learnt from; None where there is none, or the method trains its own.

    Raises UserError where the method learns from no teacher, or needs one that is not named, and for one that does not
    know the student's classes or cannot take its images.
    """
    if not objective.taught:
        if recipe.teacher is not None:
            taught = ", ".join(name for name, kind in OBJECTIVES.items() if kind.taught)
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
    known = require_fit(model.to(where), name, whole)
    if known != classes:
        raise UserError(f"{name} knows {known} classes, but the student {classes}: give a teacher of the same")
    return model
