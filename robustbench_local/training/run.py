"""One training from start to end: set-up, training, checkpoint, and an evaluation on images that it has not used."""

from __future__ import annotations

import copy
import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.attack import Model, spec_text
from robustbench_local.data.dataset import Dataset
from robustbench_local.data.loader import fits_in_memory
from robustbench_local.defenses import Objective
from robustbench_local.engine.journal import journals
from robustbench_local.engine.observer import Observer
from robustbench_local.errors import Diverged, UserError
from robustbench_local.evaluation.run import Evaluation, evaluate
from robustbench_local.io.atomic_write import exclusive_directory, write_atomically
from robustbench_local.models import load_classifier
from robustbench_local.models.metered import backward_failures
from robustbench_local.results.schema import Result
from robustbench_local.runtime.device import enough_memory
from robustbench_local.runtime.distributed import on_rank_zero, rank_and_world, require_process_group
from robustbench_local.training.initialization import InitialModel
from robustbench_local.training.loop import TrainingCallbacks, train
from robustbench_local.training.metrics import EpochReport, TrainingObserver, best
from robustbench_local.training.model_card import (
    CARD,
    LAST,
    METRICS,
    RESULT,
    WEIGHTS,
    EvaluationSummary,
    ModelCard,
    TrainingData,
    commit,
    last_of,
    read_weights,
    versions,
    write_card,
    write_weights,
)
from robustbench_local.training.recipe import Recipe
from robustbench_local.training.settings import RuntimeSettings
from robustbench_local.training.setup import TrainingSetup, prepare
from robustbench_local.training.snapshot import STATE, TrainingState

TEACHER = "teacher"
"""The subdirectory of a teacher that the method trains itself."""
TRIALS = "search"
"""The subdirectory of a grid search's trainings."""


@dataclass(frozen=True)
class TrainingRun:
    """A finished training: its output directory, its model card, and what evaluates it.

    start: the initial model, whose network now has the last epoch's weights. reports: of all epochs.
    """

    folder: Path
    card: ModelCard
    start: InitialModel
    eval_data: Dataset
    threat_model: ThreatModel
    reports: tuple[EpochReport, ...]

    def evaluate_checkpoints(self, observer: Observer | None = None) -> EvaluatedRun:
        """Evaluate the chosen weights, write result.json, and record the accuracies in model.json.

        Where the last epoch's weights are others, they are evaluated too, in last-result.json. An interrupted
        evaluation is resumed. Nothing has used the evaluation images before. Raises UserError as `evaluate` does.
        """
        with on_rank_zero(exclusive_directory(self.folder)):
            card = self.card
            if (self.folder / LAST).exists():
                last = self._evaluate(LAST, last_of(self.folder / RESULT), observer)
                card = self._record(card, last_evaluation=_summary(last.result))
            evaluation = self._evaluate(WEIGHTS, self.folder / RESULT, observer)
            card = self._record(card, evaluation=_summary(evaluation.result))
            if rank_and_world()[0] == 0:
                (self.folder / STATE).unlink(missing_ok=True)
        return EvaluatedRun(replace(self, card=card), evaluation)

    def _evaluate(self, weights: str, output: Path, observer: Observer | None) -> Evaluation:
        recipe, device = self.card.recipe, next(self.start.network.parameters()).device
        module = copy.deepcopy(self.start.network.module)
        read_weights(self.folder / weights, module)
        name = f"{self.card.architecture} by {recipe.method}"
        return evaluate(
            self.start.classifier(name, self.card.input_shape, module=module),
            self.eval_data,
            self.threat_model,
            suite=recipe.suite,
            samples=recipe.eval_samples,
            seed=recipe.seed,
            device=device,
            precision=recipe.precision,
            output=output,
            resume=bool(journals(output)) or output.exists(),
            observer=observer,
            config={"recipe": recipe.model_dump(), "trained_by": self.card.trained_by},
        )

    def _record(self, card: ModelCard, **update: EvaluationSummary) -> ModelCard:
        card = card.model_copy(update=update)
        if rank_and_world()[0] == 0:
            write_card(self.folder / CARD, card)
        return card


@dataclass(frozen=True)
class EvaluatedRun:
    """A training and the evaluation of its chosen weights. run: with a model card that has the accuracies."""

    run: TrainingRun
    evaluation: Evaluation

    @property
    def result(self) -> Result:
        """The content of result.json."""
        return self.evaluation.result

    @property
    def card(self) -> ModelCard:
        """The content of model.json."""
        return self.run.card


def _summary(result: Result) -> EvaluationSummary:
    return EvaluationSummary(
        data=result.data.name,
        split=result.data.split,
        threat_model=result.threat_model,
        protocol=result.protocol,
        clean_accuracy=result.clean_accuracy,
        robust_accuracy=result.robust_accuracy,
    )


def new_folder(recipe: Recipe) -> Path:
    """A directory name in runs/ with the method, the data and the time."""
    moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    method = recipe.method.partition(":")[0]
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in ("defend", method, recipe.data))
    return Path("runs") / f"{name}-{moment}"


@dataclass(frozen=True)
class _Session:
    """What the trainings of one call share, a teacher's included."""

    output: Path
    runtime: RuntimeSettings
    observer: TrainingObserver
    trained_by: str | None = None
    resume: bool = False


def run_training(
    recipe: Recipe,
    output: Path,
    runtime: RuntimeSettings | None = None,
    *,
    trained_by: str | None = None,
    resume: bool = False,
    observer: TrainingObserver | None = None,
) -> TrainingRun:
    """Train as the recipe says; `output` gets model.safetensors, model.json and metrics.jsonl.

    trained_by: the name of a bundled recipe, for the model card. resume: continue the interrupted training in `output`;
    the same recipe, data and machine give the weights of an uninterrupted one. Mistakes in the recipe are found before
    the first step. Under torchrun every process makes the same call; the first one writes. Raises UserError for a bad
    recipe and for an output directory that is taken, in use or cannot be written; Diverged where training fails, after
    which it cannot be resumed.
    """
    require_process_group("run_training")
    session = _Session(output, runtime or RuntimeSettings(), observer or TrainingObserver(), trained_by, resume)
    with on_rank_zero(exclusive_directory(output)):
        if not resume:
            check_output_is_new(output)
        setup = prepare(recipe, session.runtime)
        for note in setup.notes:
            session.observer.note(note)
        try:
            return _run(setup, session)
        except Diverged:
            # A resumed training would diverge again.
            if rank_and_world()[0] == 0:
                (output / STATE).unlink(missing_ok=True)
            raise


def _run(setup: TrainingSetup, session: _Session) -> TrainingRun:
    card = _card(setup, session.trained_by)
    about = card.model_dump(mode="json", include={"recipe", "data", "num_classes", "input_shape"})
    state = _interrupted(session.output, about) if session.resume else None
    teacher = setup.teacher
    if teacher is None and (method := setup.objective.own_teacher()) is not None:
        teacher = _train_teacher(setup, method, session)
    writer = _Writer(session.output, card, setup.start, about)
    with enough_memory(setup.device), backward_failures(setup.recipe.model or setup.start.architecture):
        reports = train(
            setup.task(teacher),
            setup.training,
            setup.holdout,
            runtime=session.runtime,
            callbacks=TrainingCallbacks(writer.epoch_end, writer.save_state, session.observer),
            resume=state,
        )
    card = card.model_copy(update={"chosen": best(reports)})
    return TrainingRun(session.output, card, setup.start, setup.eval_data, setup.threat_model, tuple(reports))


@dataclass(frozen=True)
class _Writer:
    """Writes the files of a training, in the first process alone."""

    output: Path
    card: ModelCard
    start: InitialModel
    about: dict[str, Any]
    active: bool = field(default_factory=lambda: rank_and_world()[0] == 0)

    def epoch_end(self, reports: Sequence[EpochReport], network: nn.Module) -> None:
        """Metrics, and the weights where they are the best so far or the last."""
        if not self.active:
            return
        write_atomically(self.output / METRICS, "".join(report.model_dump_json() + "\n" for report in reports))
        finished = sum(not report.undone for report in reports) == self.card.recipe.epochs
        card = self.card.model_copy(update={"chosen": reports[-1]})
        module = network.get_submodule("module")
        if reports[-1].chosen:
            write_weights(self.output / WEIGHTS, module, self.start.normalization)
            write_card(self.output / CARD, card)
        elif finished:
            write_weights(self.output / LAST, module, self.start.normalization)
            write_card(last_of(self.output / CARD), card)

    def save_state(self, state: TrainingState) -> None:
        """What training can be resumed from."""
        if self.active:
            state.write(self.output / STATE, self.about)


def _interrupted(output: Path, about: dict[str, Any]) -> TrainingState | None:
    """The state of the directory's training; None where it was interrupted before the first one.

    Raises UserError where it is another training.
    """
    if not (output / STATE).exists():
        if (output / RESULT).exists():
            raise UserError(f"{output} is a finished training: there is nothing to resume", slug="training-is-finished")
        if (output / CARD).exists():
            raise UserError(
                f"{output} holds a checkpoint but no state to resume from: name another directory with --output",
                slug="nothing-to-resume",
            )
        return None
    state, saved = TrainingState.read(output / STATE)
    # An earlier version's recipe lacks the newer settings, for which it did what is the default now.
    saved = {**saved, "recipe": {**Recipe().model_dump(mode="json"), **saved.get("recipe", {})}}
    if saved != about:
        changed = [key for key in about["recipe"] if saved["recipe"].get(key) != about["recipe"][key]]
        names = ", ".join(changed).replace("_", "-")
        difference = f"its {names} differ{'s' * (len(changed) == 1)}" if changed else "its data differ"
        raise UserError(
            f"{output} is another training ({difference}): give the same settings, or name another --output",
            slug="another-training",
        )
    return state


def _train_teacher(setup: TrainingSetup, method: Objective, session: _Session) -> Model:
    """The teacher that the method trains itself, loaded; trained first if that is not done yet."""
    folder, recipe = session.output / TEACHER, setup.recipe
    unfinished = (folder / STATE).exists()
    if unfinished or not (folder / CARD).exists():
        teacher = recipe.model_copy(update={"method": spec_text(method)})
        run_training(teacher, folder, session.runtime, resume=unfinished, observer=session.observer)
        (folder / STATE).unlink(missing_ok=True)
    return load_classifier(str(folder), arch=recipe.arch if recipe.model else None).to(setup.device)


def check_output_is_new(output: Path) -> None:
    """Raises UserError where the directory holds a training, which a repeated command must not overwrite."""
    if (output / STATE).exists():
        raise UserError(
            f"{output} holds an interrupted training: continue it with --resume, or name another --output",
            slug="output-is-interrupted-training",
        )
    existing = [name for name in (WEIGHTS, CARD, METRICS, RESULT) if (output / name).exists()]
    if existing:
        raise UserError(
            f"{output} already holds {' and '.join(existing)}: name another directory with --output",
            slug="output-is-taken",
        )


def is_resumable(output: Path) -> bool:
    """Whether the directory holds an interrupted training or grid search."""
    return (output / STATE).exists() or (output / TRIALS).exists()


def _card(setup: TrainingSetup, trained_by: str | None) -> ModelCard:
    """The model card before training."""
    start, data, holdout = setup.start, setup.all_data, len(setup.holdout)
    return ModelCard(
        architecture=start.architecture,
        num_classes=setup.classes,
        input_shape=data.image_shape,
        class_names=start.class_names or data.class_names,
        normalization=start.normalization,
        resize=data.resize,
        trained_by=trained_by,
        recipe=setup.recipe,
        seed=setup.recipe.seed,
        versions=versions(),
        commit=commit(),
        data=TrainingData(
            name=data.name,
            split=data.split,
            training=len(data) - holdout,
            holdout=holdout,
            sha256=data.sha256() if fits_in_memory(data) else None,
        ),
    )
