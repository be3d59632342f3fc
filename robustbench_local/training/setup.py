"""The set-up of a training: data, initial model and teacher are loaded, and every mistake in the recipe is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

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
from robustbench_local.models import Classifier, load_classifier
from robustbench_local.runtime.distributed import device_for
from robustbench_local.training.defaults import ROBUST_TEACHER, with_defaults
from robustbench_local.training.initialization import (
    InitialModel,
    check_eval_data,
    check_fits,
    from_checkpoint,
    from_scratch,
    resize_of,
)
from robustbench_local.training.loop import require_batches
from robustbench_local.training.recipe import Recipe
from robustbench_local.training.settings import RuntimeSettings
from robustbench_local.training.task import TrainingTask


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that a training needs.

    recipe: with every default filled in. notes: what was done to load trained weights, and a sentence for
    each default that depends on method or initial model. classes: the number of classes. all_data: what is divided into
    training and holdout. eval_data: the images of the final evaluation. teacher: the recipe's; None where there is
    none, or the method trains its own.
    """

    recipe: Recipe
    notes: tuple[str, ...]
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

    def task(self, teacher: Model | None) -> TrainingTask:
        """What the training loop works on."""
        return TrainingTask(
            self.start.network, self.objective, self.threat_model, self.recipe, teacher=teacher, head=self.start.head
        )


def prepare(recipe: Recipe, runtime: RuntimeSettings) -> TrainingSetup:
    """Load what the recipe names; nothing is written. Raises UserError for everything that can be wrong with it."""
    objective, threat_model = recipe.objective(), recipe.threat_model()
    recipe.add_ons(), Augmentation.parse(recipe.augment)
    require_goes_with(resolve_suite(recipe.suite)[0], threat_model)
    recipe, notes = with_defaults(recipe, objective)
    device = device_for(runtime.device)
    start = from_checkpoint(recipe) if recipe.model else None
    resize, names = (start.resize, start.class_names) if start else (resize_of(recipe), None)

    def load(data: str, split: str) -> Dataset:
        return load_dataset(
            data, split=split, data_dir=runtime.data_dir, download=runtime.download, resize=resize, class_names=names
        )

    all_data = load(recipe.data, "train")
    start = start or from_scratch(recipe, all_data)
    # The checkpoint's recipe is complete, so that no later default can change its meaning.
    arch = recipe.arch if recipe.model else start.architecture
    recipe = recipe.model_copy(update={"eps": threat_model.eps_text, "arch": arch})
    start.network.to(device)
    classes = check_fits(start.network, recipe.model or start.architecture, all_data)
    names = names or all_data.class_names
    if recipe.samples is not None:
        all_data = all_data.subset(stratified_subset(all_data.labels, recipe.samples, recipe.seed))
    parts = cut_holdout(all_data.labels, recipe.holdout, recipe.seed, groups=all_data.groups)
    training, holdout = (all_data.subset(part) for part in parts)
    require_batches(len(training), recipe)
    eval_data = _eval_data(recipe, holdout, load)
    _check_eval_data(recipe, start, eval_data, all_data)
    teacher = _load_teacher(recipe, objective, all_data, classes, device)
    teacher_notes = (f"teacher: {note}" for note in (teacher.notes if teacher is not None else ()))
    return TrainingSetup(
        recipe=recipe,
        notes=(*start.notes, *all_data.notes, *teacher_notes, *notes),
        objective=objective,
        threat_model=threat_model,
        start=start,
        classes=classes,
        all_data=all_data,
        training=training,
        holdout=holdout,
        eval_data=eval_data,
        teacher=teacher,
        device=device,
    )


def _eval_data(recipe: Recipe, holdout: Dataset, load: Callable[[str, str], Dataset]) -> Dataset:
    """The dataset of the final evaluation."""
    if recipe.eval_data is not None:
        return load(recipe.eval_data, "test")
    if holdout.split != "all":
        return load(recipe.data, "test")
    # A dataset without splits has no test split. Its hold-out was not trained on, and is named as what it is.
    named = copy.copy(holdout)
    named.split = "holdout"
    return named


def _check_eval_data(recipe: Recipe, start: InitialModel, eval_data: Dataset, all_data: Dataset) -> None:
    if recipe.eval_data is not None:
        check_eval_data(start.network, start.architecture, eval_data, trained_on=all_data)
    if recipe.eval_samples is not None and recipe.eval_samples > len(eval_data):
        raise UserError(
            f"--eval-samples is {recipe.eval_samples:,}, but {eval_data.name} has {len(eval_data):,} images to "
            "evaluate on: give a smaller number, or leave it out",
            slug="too-few-samples",
        )


def _load_teacher(
    recipe: Recipe, objective: Objective, all_data: Dataset, classes: int, device: torch.device
) -> Classifier | None:
    """The recipe's teacher; None where there is none, or the method trains its own.

    Raises UserError where the method learns from no teacher, or needs one that the recipe does not name, and for one
    that has other classes than the student or cannot take its images.
    """
    if not objective.needs_teacher:
        if recipe.teacher is not None:
            with_teacher = ", ".join(name for name, kind in OBJECTIVES.items() if kind.needs_teacher)
            raise UserError(
                f"{objective.name} does not use a teacher, but --teacher is {recipe.teacher}: leave it out, or choose "
                f"a method that has one ({with_teacher})",
                slug="method-without-teacher",
            )
        return None
    if recipe.teacher is None:
        if objective.own_teacher() is None:
            raise UserError(
                f"{objective.name} learns from a robust teacher, and the bundled one ({ROBUST_TEACHER}) is for the "
                "digits and linf: give --teacher, a robust classifier for your data such as the output directory of "
                "'robust defend --method trades'",
                slug="teacher-missing",
            )
        return None
    model = load_classifier(recipe.teacher)
    name = f"the teacher {recipe.teacher}"
    teacher_classes = check_fits(model.to(device), name, all_data)
    if teacher_classes != classes:
        raise UserError(
            f"{name} has {teacher_classes} classes, but the student {classes}: give a teacher with the same classes",
            slug="teacher-of-other-classes",
        )
    return model
