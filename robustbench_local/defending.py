"""One defense from start to end: data, start, training, checkpoint, and an evaluation on images it has not seen."""
from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robustbench_local.attacks import ThreatModel
from robustbench_local.checkpoint import (
    CARD,
    METRICS,
    RESULT,
    WEIGHTS,
    Judgement,
    ModelCard,
    TrainingData,
    read_weights,
    versions,
    write_card,
    write_weights,
)
from robustbench_local.data import load_dataset, stratified_subset
from robustbench_local.data.dataset import Dataset, sample_sha256
from robustbench_local.device import choose_device
from robustbench_local.errors import UserError
from robustbench_local.evaluation import Evaluation, evaluate
from robustbench_local.files import check_writable, writable
from robustbench_local.holdout import cut_holdout
from robustbench_local.observer import Observer
from robustbench_local.protocol import resolve_suite
from robustbench_local.recipes import Recipe
from robustbench_local.record import summed_hash
from robustbench_local.starting import Start, fresh_start, loaded_start, require_fit
from robustbench_local.training import RESIDENT_BYTES, EpochReport, TrainingObserver, train


@dataclass(frozen=True)
class Hardened:
    """A finished training: the folder with the checkpoint, what the checkpoint says, and what is to judge it."""

    folder: Path
    card: ModelCard
    start: Start
    judged: Dataset
    threat_model: ThreatModel

    def judge(self, observer: Observer | None = None) -> Evaluation:
        """Evaluate what was written, write result.json, and put the outcome into model.json."""
        recipe = self.card.recipe
        read_weights(self.folder, self.start.network.module)
        name, device = f"{self.card.architecture} by {recipe.method}", next(self.start.network.parameters()).device
        evaluation = evaluate(
            self.start.classifier(name, self.card.input_shape), self.judged, self.threat_model, suite=recipe.suite,
            seed=recipe.seed, device=device, output=self.folder / RESULT, observer=observer,
            config={"recipe": recipe.model_dump(), "trained_by": self.card.trained_by},
        )
        result = evaluation.result
        judgement = Judgement(
            data=result.data.name, split=result.data.split, threat_model=result.threat_model, protocol=result.protocol,
            clean_accuracy=result.clean_accuracy, robust_accuracy=result.robust_accuracy,
        )
        write_card(self.folder, self.card.model_copy(update={"evaluation": judgement}))
        return evaluation


def new_folder(recipe: Recipe) -> Path:
    """A name in runs/ that says what was trained and when."""
    moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    method = recipe.method.partition(":")[0]
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in ("defend", method, recipe.data))
    return Path("runs") / f"{name}-{moment}"


def harden(
    recipe: Recipe, output: Path, *, trained_by: str | None = None, device: str | None = None,
    data_dir: Path | None = None, download: bool = False, observer: TrainingObserver | None = None,
) -> Hardened:
    """Train as the recipe says; `output` gets model.safetensors, model.json and metrics.jsonl.

    trained_by: the shipped recipe's name, for the checkpoint. Everything that can be wrong with the recipe is found
    before the first step. Raises UserError for that, for an output folder that is taken or cannot be written, and
    where the loss stops being finite.
    """
    objective, threat_model = recipe.objective(), recipe.threat_model()
    resolve_suite(recipe.suite)
    where = choose_device(device)
    _require_free(output)
    start = loaded_start(recipe) if recipe.model else None
    resize, names = (start.resize, start.class_names) if start else (None, None)

    def load(spec: str, split: str) -> Dataset:
        return load_dataset(
            spec, split=split, data_dir=data_dir, download=download, resize=resize, class_names=names
        )

    whole = load(recipe.data, "train")
    start = start or fresh_start(recipe, whole)
    # The checkpoint's recipe says in full what was done, so that no later default can change what it means.
    recipe = recipe.model_copy(
        update={"eps": threat_model.eps_text, "arch": recipe.arch if recipe.model else start.architecture}
    )
    start.network.to(where)
    classes = require_fit(start.network, recipe.model or start.architecture, whole)
    if recipe.samples is not None:
        whole = whole.subset(stratified_subset(whole.labels, recipe.samples, recipe.seed))
    training, holdout = (whole.subset(part) for part in cut_holdout(whole.labels, recipe.holdout, recipe.seed))
    judged = _judged_by(recipe, holdout, load)
    check_writable(output / METRICS)
    card = _card(recipe, start, classes, whole, len(holdout), trained_by)

    def keep(report: EpochReport) -> None:
        if report.chosen:
            write_weights(output, start.network.module, start.normalization)
            write_card(output, card.model_copy(update={"chosen": report}))
        with writable(output / METRICS), (output / METRICS).open("a", encoding="utf-8") as file:
            file.write(report.model_dump_json() + "\n")

    reports = train(start.network, training, holdout, objective, threat_model, recipe, keep=keep, observer=observer)
    chosen = [report for report in reports if report.chosen][-1]
    return Hardened(output, card.model_copy(update={"chosen": chosen}), start, judged, threat_model)


def _require_free(output: Path) -> None:
    """Hours of training are not overwritten by a command that is typed again."""
    taken = [name for name in (WEIGHTS, CARD, METRICS, RESULT) if (output / name).exists()]
    if taken:
        raise UserError(f"{output} already holds {' and '.join(taken)}: name another folder with --output")


def _judged_by(recipe: Recipe, holdout: Dataset, load: Callable[[str, str], Dataset]) -> Dataset:
    """The data set of the final evaluation."""
    if recipe.eval_data is not None:
        return load(recipe.eval_data, "test")
    if holdout.split != "all":
        return load(recipe.data, "test")
    # A set that is taken whole has no test split. Its hold-out was at least not trained on, and is named as what it is.
    holdout.split = "holdout"
    return holdout


def _card(
    recipe: Recipe, start: Start, classes: int, whole: Dataset, held: int, trained_by: str | None
) -> ModelCard:
    """What is known of the checkpoint before its training begins."""
    channels, height, width = whole.image_shape
    small = 4 * len(whole) * channels * height * width <= RESIDENT_BYTES
    hashes = [sample_sha256(whole.images([position])[0]) for position in range(len(whole))] if small else []
    return ModelCard(
        architecture=start.architecture, num_classes=classes, input_shape=whole.image_shape,
        class_names=start.class_names or whole.class_names, normalization=start.normalization, trained_by=trained_by,
        recipe=recipe, seed=recipe.seed, versions=versions(),
        data=TrainingData(
            name=whole.name, split=whole.split, training=len(whole) - held, holdout=held,
            sha256=summed_hash(hashes, whole.labels) if small else None,
        ),
    )
