"""The training loop. There is one: methods differ in their objective, trainings in their recipe."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from robustbench_local.attacks.attack import spec_text
from robustbench_local.data.dataset import Dataset
from robustbench_local.data.loader import BatchLoader, shuffled_batches
from robustbench_local.errors import Diverged, UserError
from robustbench_local.runtime.distributed import gather, rank_and_world
from robustbench_local.runtime.resources import seconds_since
from robustbench_local.training.ema import SETTLING
from robustbench_local.training.initialization import seeded
from robustbench_local.training.metrics import EpochReport, TrainingObserver, is_catastrophic, overfitting
from robustbench_local.training.precision import laid_out
from robustbench_local.training.recipe import Recipe
from robustbench_local.training.settings import RuntimeSettings
from robustbench_local.training.snapshot import TrainingState
from robustbench_local.training.step import TrainingStep
from robustbench_local.training.task import TrainingTask
from robustbench_local.training.validation import HoldoutMetrics, validate

MAX_CONSTANT_EPOCHS = 5
"""Training stops after this many epochs in a row that predict one class for every image: the first of a hard training
often do."""
SAVE_SECONDS = 600.0
"""How much work on an epoch a kill may lose."""


@dataclass(frozen=True)
class TrainingCallbacks:
    """Callbacks of a training run.

    epoch_end: called after every epoch with all reports and the validated network; the last report's `chosen` says that
    no epoch before was better. save_state: called with states that training can be resumed from. observer: receives
    the progress.
    """

    epoch_end: Callable[[Sequence[EpochReport], nn.Module], None] = lambda reports, network: None  # noqa: ARG005
    save_state: Callable[[TrainingState], None] = lambda state: None  # noqa: ARG005
    observer: TrainingObserver = field(default_factory=TrainingObserver)


def train(
    task: TrainingTask,
    training: Dataset,
    holdout: Dataset,
    *,
    runtime: RuntimeSettings | None = None,
    callbacks: TrainingCallbacks | None = None,
    resume: TrainingState | None = None,
) -> list[EpochReport]:
    """Train the task's network in place, on the device it is on, and report every epoch.

    training: the images that are trained on. holdout: the images that choose the epoch. runtime: its `workers` and
    `compiled` are used. resume: the state to continue from. Under torchrun every process makes the same call and trains
    on its share of every batch. Raises UserError where there are fewer images than a batch holds or a batch cannot be
    shared between the processes, Diverged where gradients or logits stop being finite or every image is predicted to be
    of one class.
    """
    recipe, runtime = task.recipe, runtime or RuntimeSettings()
    require_batches(len(training), recipe)
    rank, _ = rank_and_world()
    device = next(task.network.parameters()).device
    with seeded(recipe.seed + rank, device):
        laid_out(task.network, device)
        steps = recipe.epochs * (len(training) // recipe.batch_size)
        trainer = Trainer(
            TrainingStep(task, steps=steps, compiled=runtime.compiled),
            task,
            BatchLoader(training, device, workers=runtime.workers),
            BatchLoader(holdout, device, workers=runtime.workers),
            callbacks or TrainingCallbacks(),
        )
        trainer.begin(resume)
        trainer.run()
    return trainer.reports


def require_batches(images: int, recipe: Recipe) -> None:
    """Raises UserError where there are fewer images than a batch holds, or a batch cannot be divided."""
    if images < recipe.batch_size:
        raise UserError(
            f"{images} images are left to train on, fewer than one batch of {recipe.batch_size}: give more images, or "
            "a smaller --batch-size",
            slug="fewer-images-than-a-batch",
        )
    _, world = rank_and_world()
    if recipe.batch_size % (world * recipe.accumulate):
        processes = f"{world} process{'es' * (world > 1)}"
        raise UserError(
            f"a batch of {recipe.batch_size} cannot be divided into equal parts for {processes} and --accumulate "
            f"{recipe.accumulate}: give a --batch-size that is a multiple of {world * recipe.accumulate}",
            slug="batch-not-divisible",
        )


class Trainer:
    """Runs the epochs: the order of the images, validation, reports, roll-back and snapshots."""

    def __init__(
        self,
        step: TrainingStep,
        task: TrainingTask,
        training: BatchLoader,
        holdout: BatchLoader,
        callbacks: TrainingCallbacks,
    ):
        self.reports: list[EpochReport] = []
        self._step, self._task, self._recipe = step, task, task.recipe
        self._training, self._holdout, self._callbacks = training, holdout, callbacks
        self._device = next(step.network.parameters()).device
        self._order = torch.Generator().manual_seed(self._recipe.seed)
        self._order_at_epoch_start = self._order.get_state()
        # Progress within the current epoch.
        self._batch, self._seconds, self._rate = 0, 0.0, step.learning_rate
        self._totals: Counter[str] = Counter()
        self._rollback: TrainingState | None = None

    @property
    def _finished(self) -> int:
        """Epochs that are done and were not undone."""
        return sum(not report.undone for report in self.reports)

    def begin(self, resume: TrainingState | None) -> None:
        """Continue from the state, or save the first one: from now on a killed training can be resumed."""
        if resume is None:
            self._callbacks.save_state(self._snapshot())
        else:
            self.restore(resume)

    def run(self) -> None:
        """Train the epochs that are left."""
        recipe, size = self._recipe, self._recipe.batch_size
        self._callbacks.observer.begin(recipe.epochs, len(self._training) // size * size, self._finished)
        while self._finished < recipe.epochs:
            if self._rollback is None and self._step.objective.fallback() is not None:
                self._rollback = self._snapshot()
            self._run_epoch(self._finished + 1)
        if self.reports and (warning := overfitting(self.reports)):
            self._callbacks.observer.warn(warning)

    def _run_epoch(self, epoch: int) -> None:
        began = time.perf_counter() - self._seconds
        images = self._train_epoch(epoch, began)
        training_seconds = seconds_since(began)
        self._average_buffers()
        metrics = validate(
            self._step.validated_network,
            self._holdout,
            self._step.objective,
            self._task.threat_model,
            seed=self._recipe.seed,
            batch_size=self._recipe.batch_size,
        )
        if not metrics.finite:
            raise Diverged(
                f"after epoch {epoch} the network returns NaN or infinite logits: lower --lr or --weight-decay; the "
                "checkpoint of the best epoch so far, if there was one, is kept",
                slug="logits-not-finite",
            )
        report = self._report(epoch, training_seconds, metrics, images=images)
        report = report.model_copy(update={"seconds": seconds_since(began)})
        self._batch, self._seconds, self._totals = 0, 0.0, Counter()
        self._accept(report)
        self._callbacks.observer.epoch(self.reports[-1])
        self._require_several_classes()

    def _train_epoch(self, epoch: int, began: float) -> int:
        """Train on the batches of the epoch that are left; returns the number of images in a whole epoch."""
        recipe, step = self._recipe, self._step
        rank, world = rank_and_world()
        step.freeze(epoch <= recipe.freeze_epochs)
        self._order_at_epoch_start = self._order.get_state()
        batches = shuffled_batches(len(self._training), recipe.batch_size, self._order)
        saved = time.monotonic()
        self._rate = self._rate if self._batch else step.learning_rate
        for batch in self._training.batches([positions[rank::world] for positions in batches[self._batch :]]):
            self._batch += 1
            losses = step.train_batch(batch, epoch, self._batch, settle=self._batch > len(batches) - SETTLING)
            self._totals.update(losses)
            self._callbacks.observer.advance(recipe.batch_size, losses.get("loss", math.nan))
            if time.monotonic() - saved > SAVE_SECONDS and world == 1 and self._batch < len(batches):
                self._seconds, saved = seconds_since(began), time.monotonic()
                self._callbacks.save_state(self._snapshot())
        return len(batches) * recipe.batch_size

    def _report(self, epoch: int, seconds: float, metrics: HoldoutMetrics, *, images: int) -> EpochReport:
        totals: Counter[str] = Counter()
        for (each,) in gather([self._totals]):
            totals.update(each)
        _, world = rank_and_world()
        skipped = round(totals.pop("skipped", 0) / world)
        trained = images // self._recipe.batch_size - skipped
        means = {name: total / world / max(1, trained) for name, total in totals.items()}
        warnings = [f"{skipped} batches had no finite gradient and were skipped"] if skipped else []
        if metrics.only_class is not None:
            warnings.append(f"the prediction for every hold-out image is class {metrics.only_class}")
        report = EpochReport(
            epoch=epoch,
            method=spec_text(self._step.objective),
            loss=means.pop("loss", math.nan),
            parts=means,
            learning_rate=self._rate,
            clean_accuracy=metrics.clean,
            robust_accuracy=metrics.robust,
            fgsm_accuracy=metrics.fgsm,
            noisy_accuracy=metrics.noisy,
            only_class=metrics.only_class,
            skipped=skipped,
            images_per_second=images / seconds,
            seconds=seconds,
            chosen=False,
            warnings=warnings,
        )
        earlier = [each for each in self.reports if not each.undone]
        return report.model_copy(update={"chosen": all(report.rank >= each.rank for each in earlier)})

    def _accept(self, report: EpochReport) -> None:
        """Add the report; where the epoch overfitted to its own single step, undo it and continue with the fallback."""
        step = self._step
        fallback = step.objective.fallback() if is_catastrophic(report, self.reports) else None
        if fallback is not None and self._rollback is not None:
            warning = (
                f"catastrophic overfitting: the weights are back at epoch {report.epoch - 1}, and training continues "
                f"with {spec_text(fallback)}"
            )
            update = {"undone": True, "chosen": False, "warnings": [*report.warnings, warning]}
            reports = [*self.reports, report.model_copy(update=update)]
            self.restore(self._rollback)
            step.objective, self.reports = fallback, reports
        else:
            self.reports = [*self.reports, report]
        self._order_at_epoch_start = self._order.get_state()
        self._callbacks.epoch_end(self.reports, step.validated_network)
        self._rollback = None  # a snapshot holds the one before it, and that one's would be held with it
        if step.objective.fallback() is not None:
            self._rollback = self._snapshot()
        self._callbacks.save_state(self._snapshot())

    def _require_several_classes(self) -> None:
        """Raises Diverged after too many epochs that predict one class for everything."""
        last = self.reports[-MAX_CONSTANT_EPOCHS:]
        if len(last) == MAX_CONSTANT_EPOCHS and all(report.only_class is not None for report in last):
            raise Diverged(
                f"for {MAX_CONSTANT_EPOCHS} epochs the prediction for every hold-out image was the same class, now "
                f"{last[-1].only_class}: lower --lr, or raise eps slowly with --eps-warmup 0.5",
                slug="one-class-predicted",
            )

    def _average_buffers(self) -> None:
        """Average running statistics over the processes, which saw different images, so that all validate alike."""
        _, world = rank_and_world()
        if world == 1:
            return
        # dict.fromkeys keeps the order, which has to be the same in every process.
        for network in dict.fromkeys((self._step.network, self._step.validated_network)):
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= world

    def _snapshot(self) -> TrainingState:
        step, (_, world) = self._step.snapshot(), rank_and_world()
        random = torch.get_rng_state()
        tensors = {"order": self._order_at_epoch_start, **step.tensors}
        tensors |= {f"random.{rank}": each for rank, (each,) in enumerate(gather([random]))}
        if self._device.type == "cuda" and world == 1:
            tensors["random.cuda"] = torch.cuda.get_rng_state(self._device)
        facts: dict[str, Any] = {
            "lesson": step.facts,
            "method": spec_text(self._step.objective),
            "batch": self._batch,
            "rate": self._rate,
            "seconds": self._seconds,
            "totals": dict(self._totals),
            "reports": [report.model_dump(mode="json") for report in self.reports],
        }
        return TrainingState(tensors, facts, self._rollback)

    def restore(self, snapshot: TrainingState) -> None:
        """Continue as if nothing had happened since the snapshot. Raises UserError where it is of another network."""
        tensors, facts = snapshot.tensors, snapshot.facts
        self._step.restore(TrainingState(tensors, facts["lesson"]))
        if facts["method"] != spec_text(self._step.objective):
            self._step.objective = self._recipe.model_copy(update={"method": facts["method"]}).objective()
        self._order.set_state(tensors["order"])
        self._order_at_epoch_start = tensors["order"]
        rank, _ = rank_and_world()
        if f"random.{rank}" in tensors:
            torch.set_rng_state(tensors[f"random.{rank}"])
        if "random.cuda" in tensors and self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self._device)
        self._batch, self._seconds, self._rate = facts["batch"], facts["seconds"], facts["rate"]
        self._totals = Counter(facts["totals"])
        self.reports = [EpochReport.model_validate(report) for report in facts["reports"]]
        self._rollback = snapshot.rollback
