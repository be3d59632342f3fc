"""One defense from start to end: data, start, training, checkpoint, and an evaluation on images it has not seen."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
from robustbench_local.runtime.device import enough_memory
from robustbench_local.runtime.distributed import on_rank_zero, rank_and_world, require_process_group
from robustbench_local.training.initialization import InitialModel
from robustbench_local.training.loop import train
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
from robustbench_local.training.setup import TrainingSetup, prepare
from robustbench_local.training.snapshot import STATE, TrainingState

TEACHER = "teacher"
"""The subfolder of a teacher that was trained because none was given."""
TRIALS = "search"
"""The subfolder of a search's trainings."""


@dataclass(frozen=True)
class TrainingRun:
    """A finished training: the folder with the checkpoint, what the checkpoint says, and what is to judge it."""

    folder: Path
    card: ModelCard
    start: InitialModel
    eval_data: Dataset
    threat_model: ThreatModel
    reports: list[EpochReport]

    def evaluate_checkpoints(self, observer: Observer | None = None) -> Evaluation:
        """Evaluate the chosen weights, write result.json, and put the outcome into model.json; where the last epoch's
        weights are others, the same for them, in last-result.json. Gives the evaluation of the chosen ones.

        The test images have had no say before. An evaluation that was interrupted goes on where it was.
        """
        with on_rank_zero(exclusive_directory(self.folder)):
            if (self.folder / LAST).exists():
                self._record("last_evaluation", self._evaluated(LAST, last_of(self.folder / RESULT), observer))
            evaluation = self._evaluated(WEIGHTS, self.folder / RESULT, observer)
            self._record("evaluation", evaluation)
            if rank_and_world()[0] == 0:
                (self.folder / STATE).unlink(missing_ok=True)
        return evaluation

    def _evaluated(self, weights: str, output: Path, observer: Observer | None) -> Evaluation:
        recipe = self.card.recipe
        read_weights(self.folder / weights, self.start.network.module)
        name, device = f"{self.card.architecture} by {recipe.method}", next(self.start.network.parameters()).device
        return evaluate(
            self.start.classifier(name, self.card.input_shape),
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

    def _record(self, place: str, evaluation: Evaluation) -> None:
        result = evaluation.result
        judgement = EvaluationSummary(
            data=result.data.name,
            split=result.data.split,
            threat_model=result.threat_model,
            protocol=result.protocol,
            clean_accuracy=result.clean_accuracy,
            robust_accuracy=result.robust_accuracy,
        )
        card = self.card.model_copy(update={place: judgement})
        object.__setattr__(self, "card", card)
        if rank_and_world()[0] == 0:
            write_card(self.folder / CARD, card)


def new_folder(recipe: Recipe) -> Path:
    """A name in runs/ that says what was trained and when."""
    moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    method = recipe.method.partition(":")[0]
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in ("defend", method, recipe.data))
    return Path("runs") / f"{name}-{moment}"


def run_training(
    recipe: Recipe,
    output: Path,
    *,
    trained_by: str | None = None,
    device: str | None = None,
    data_dir: Path | None = None,
    download: bool = False,
    workers: int | None = None,
    compiled: bool = False,
    resume: bool = False,
    observer: TrainingObserver | None = None,
) -> TrainingRun:
    """Train as the recipe says; `output` gets model.safetensors, model.json and metrics.jsonl, and while training lasts
    what it can be gone on from.

    trained_by: the shipped recipe's name, for the checkpoint. resume: go on with the training that was interrupted
    there; the same recipe, data and machine give the weights of an uninterrupted one. Everything that can be wrong with
    the recipe is found before the first step. Under torchrun every process makes the same call; the first one writes.
    Raises UserError for that, and for an output folder that is taken, in use or cannot be written; Diverged where the
    training's numbers stop being finite or useful, after which there is nothing to go on from.
    """
    require_process_group("harden")
    with on_rank_zero(exclusive_directory(output)):
        if not resume:
            check_output_is_new(output)
        prepared = prepare(recipe, device=device, data_dir=data_dir, download=download)
        try:
            return _harden(
                prepared,
                output,
                trained_by,
                resume,
                {
                    "device": device,
                    "data_dir": data_dir,
                    "download": download,
                    "workers": workers,
                    "compiled": compiled,
                    "observer": observer,
                },
            )
        except Diverged:
            # To go on from there would end there again.
            if rank_and_world()[0] == 0:
                (output / STATE).unlink(missing_ok=True)
            raise


def _harden(
    prepared: TrainingSetup, output: Path, trained_by: str | None, resume: bool, settings: dict[str, Any]
) -> TrainingRun:
    """settings: those of `harden` that a teacher is trained with too."""
    recipe, start, threat_model = prepared.recipe, prepared.start, prepared.threat_model
    card = _card(recipe, start, prepared.classes, prepared.all_data, len(prepared.holdout), trained_by)
    about = card.model_dump(mode="json", include={"recipe", "data", "num_classes", "input_shape"})
    snapshot = _interrupted(output, about) if resume else None
    teacher = prepared.teacher
    if teacher is None and (own := prepared.objective.own_teacher()) is not None:
        teacher = _train_teacher(recipe, own, output, prepared.device, settings)
    first = rank_and_world()[0] == 0

    def keep(reports: list[EpochReport], network: Any) -> None:
        if not first:
            return
        write_atomically(output / METRICS, "".join(report.model_dump_json() + "\n" for report in reports))
        if reports[-1].chosen:
            write_weights(output / WEIGHTS, network.module, start.normalization)
            write_card(output / CARD, card.model_copy(update={"chosen": reports[-1]}))
        if _is_over(reports, recipe) and not reports[-1].chosen:
            write_weights(output / LAST, network.module, start.normalization)
            write_card(last_of(output / CARD), card.model_copy(update={"chosen": reports[-1]}))

    def save(snapshot: TrainingState) -> None:
        if first:
            snapshot.write(output / STATE, about)

    with enough_memory(prepared.device):
        reports = train(
            start.network,
            prepared.training,
            prepared.holdout,
            prepared.objective,
            threat_model,
            recipe,
            teacher=teacher,
            head=start.head,
            keep=keep,
            save=save,
            resume=snapshot,
            **{name: settings[name] for name in ("workers", "compiled", "observer")},
        )
    card = card.model_copy(update={"chosen": best(reports)})
    return TrainingRun(output, card, start, prepared.eval_data, threat_model, reports)


def _is_over(reports: list[EpochReport], recipe: Recipe) -> bool:
    return sum(not report.undone for report in reports) == recipe.epochs


def _interrupted(output: Path, about: dict[str, Any]) -> TrainingState | None:
    """What the folder's training can be gone on from; None where it has not come so far.

    Raises UserError where it is another training.
    """
    if not (output / STATE).exists():
        if (output / RESULT).exists():
            raise UserError(f"{output} is a finished training: nothing is left to do")
        if (output / CARD).exists():
            raise UserError(f"{output} holds a checkpoint but nothing to go on from: name another folder with --output")
        return None
    snapshot, then = TrainingState.read(output / STATE)
    if then != about:
        changed = [key for key in about["recipe"] if then.get("recipe", {}).get(key) != about["recipe"][key]]
        told = ", ".join(changed).replace("_", "-")
        what = f"its {told} differ{'s' * (len(changed) == 1)}" if changed else "its data differ"
        raise UserError(f"{output} is another training ({what}): give the same settings, or name another --output")
    return snapshot


def _train_teacher(
    recipe: Recipe, own: Objective, output: Path, where: torch.device, settings: dict[str, Any]
) -> Model:
    """The classifier that the method learns from where none is named, trained first if that is not done yet."""
    folder = output / TEACHER
    if (folder / STATE).exists() or not (folder / CARD).exists():
        taught = recipe.model_copy(update={"method": spec_text(own)})
        run_training(taught, folder, resume=(folder / STATE).exists(), **settings)
        (folder / STATE).unlink(missing_ok=True)
    return load_classifier(str(folder), arch=recipe.arch if recipe.model else None).to(where)


def check_output_is_new(output: Path) -> None:
    """Hours of training are not overwritten by a command that is typed again."""
    if (output / STATE).exists():
        raise UserError(
            f"{output} holds a training that was interrupted: go on with it by --resume, or name another --output"
        )
    taken = [name for name in (WEIGHTS, CARD, METRICS, RESULT) if (output / name).exists()]
    if taken:
        raise UserError(f"{output} already holds {' and '.join(taken)}: name another folder with --output")


def is_resumable(output: Path) -> bool:
    """Whether an interrupted training, or search, of the folder can be gone on with."""
    return (output / STATE).exists() or (output / TRIALS).exists()


def _card(
    recipe: Recipe, start: InitialModel, classes: int, whole: Dataset, held: int, trained_by: str | None
) -> ModelCard:
    """What is known of the checkpoint before its training begins."""
    return ModelCard(
        architecture=start.architecture,
        num_classes=classes,
        input_shape=whole.image_shape,
        class_names=start.class_names or whole.class_names,
        normalization=start.normalization,
        resize=whole.resize,
        trained_by=trained_by,
        recipe=recipe,
        seed=recipe.seed,
        versions=versions(),
        commit=commit(),
        data=TrainingData(
            name=whole.name,
            split=whole.split,
            training=len(whole) - held,
            holdout=held,
            sha256=whole.sha256() if fits_in_memory(whole) else None,
        ),
    )
