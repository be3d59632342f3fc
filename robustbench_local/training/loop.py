"""The training loop. There is one: what differs between methods is in their objective, what differs between runs in
their recipe.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.attack import Model, spec_text
from robustbench_local.data.dataset import Dataset
from robustbench_local.data.loader import BatchLoader, shuffled_batches
from robustbench_local.defenses import Objective
from robustbench_local.errors import Diverged, UserError
from robustbench_local.runtime.distributed import gather, rank_and_world
from robustbench_local.runtime.resources import seconds_since
from robustbench_local.training.ema import SETTLING
from robustbench_local.training.initialization import seeded
from robustbench_local.training.metrics import EpochReport, TrainingObserver, is_catastrophic, overfitting
from robustbench_local.training.precision import laid_out
from robustbench_local.training.recipe import Recipe
from robustbench_local.training.snapshot import TrainingState
from robustbench_local.training.step import TrainingStep
from robustbench_local.training.validation import HoldoutMetrics, validate

CONSTANT = 5
"""Epochs in a row that may answer one class for every image: the first ones of a hard training often do."""
SAVE_SECONDS = 600.0
"""How much work on an epoch may be lost to a kill."""

Keep = Callable[[list[EpochReport], nn.Module], None]
Save = Callable[[TrainingState], None]


def train(
    network: nn.Module,
    training: Dataset,
    holdout: Dataset,
    objective: Objective,
    threat_model: ThreatModel,
    recipe: Recipe,
    *,
    teacher: Model | None = None,
    head: Sequence[str] = (),
    workers: int | None = None,
    compiled: bool = False,
    keep: Keep | None = None,
    save: Save | None = None,
    resume: TrainingState | None = None,
    observer: TrainingObserver | None = None,
) -> list[EpochReport]:
    """Train the network in place, on the device it is on, and report every epoch.

    network: float [rows, ...] in the box -> logits, its parameters to be trained have `requires_grad`. teacher: images
    -> logits, for methods that learn from one. head: names of the parameters that the first `freeze_epochs` train. keep
    is called after every epoch with all reports and the network that was judged, which is the averaged one where there
    is an average: the last report's `chosen` says that none before was better. save is given what training can be gone
    on from, resume takes it. Under torchrun every process makes the same call and learns from its share of every batch.
    Raises UserError where there are fewer images than a batch holds or a batch cannot be shared between the processes,
    Diverged where gradients or logits stop being finite numbers.
    """
    require_batches(len(training), recipe)
    rank, _ = rank_and_world()
    device = next(network.parameters()).device
    with seeded(recipe.seed + rank, device):
        batches = len(training) // recipe.batch_size
        step = TrainingStep(
            laid_out(network, device),
            objective,
            threat_model,
            recipe,
            steps=recipe.epochs * batches,
            teacher=teacher,
            head=head,
            compiled=compiled,
        )
        trainer = Trainer(
            step,
            BatchLoader(training, device, workers=workers),
            BatchLoader(holdout, device, workers=workers),
            threat_model,
            recipe,
            keep or (lambda *_: None),
            save or (lambda _: None),
            observer or TrainingObserver(),
        )
        trainer.begin(resume)
        trainer.run()
    return trainer.reports


def require_batches(images: int, recipe: Recipe) -> None:
    """Raises UserError where there are fewer images than a batch holds, or a batch cannot be shared out."""
    if images < recipe.batch_size:
        raise UserError(
            f"{images} images are left to train on, fewer than one batch of {recipe.batch_size}: give more images, or "
            "a smaller --batch-size"
        )
    _, world = rank_and_world()
    if recipe.batch_size % (world * recipe.accumulate):
        processes = f"{world} process{'es' * (world > 1)}"
        raise UserError(
            f"a batch of {recipe.batch_size} cannot be cut into equal parts for {processes} and --accumulate "
            f"{recipe.accumulate}: give a --batch-size that is a multiple of {world * recipe.accumulate}"
        )


class Trainer:
    """Epochs: their order of images, their reports, and the watch over them."""

    def __init__(
        self,
        step: TrainingStep,
        source: BatchLoader,
        held: BatchLoader,
        threat_model: ThreatModel,
        recipe: Recipe,
        keep: Keep,
        save: Save,
        observer: TrainingObserver,
    ):
        self.reports: list[EpochReport] = []
        self._step, self._source, self._held = step, source, held
        self._threat_model, self._recipe, self._device = threat_model, recipe, next(step.network.parameters()).device
        self._keep, self._save, self._observer = keep, save, observer
        self._order = torch.Generator().manual_seed(recipe.seed)
        self._order_then = self._order.get_state()
        # How far the running epoch is.
        self._batch, self._seconds, self._rate = 0, 0.0, step.rate
        self._totals: Counter[str] = Counter()
        self._healthy: TrainingState | None = None

    @property
    def _finished(self) -> int:
        """Epochs that are done and stand."""
        return sum(not report.undone for report in self.reports)

    def begin(self, resume: TrainingState | None) -> None:
        """From the snapshot, or from the start: whatever lies in the folder from now on can be gone on from."""
        if resume is None:
            self._save(self._snapshot())
        else:
            self.restore(resume)

    def run(self) -> None:
        recipe, size = self._recipe, self._recipe.batch_size
        self._observer.begin(recipe.epochs, len(self._source) // size * size, self._finished)
        while self._finished < recipe.epochs:
            if self._healthy is None and self._step.objective.fallback() is not None:
                self._healthy = self._snapshot()
            self._one_epoch(self._finished + 1)
        if self.reports and (told := overfitting(self.reports)):
            self._observer.warn(told)

    def _one_epoch(self, epoch: int) -> None:
        recipe, step = self._recipe, self._step
        rank, world = rank_and_world()
        step.freeze(epoch <= recipe.freeze_epochs)
        self._order_then = self._order.get_state()
        parts = shuffled_batches(len(self._source), recipe.batch_size, self._order)
        began, saved = time.perf_counter() - self._seconds, time.monotonic()
        self._rate = self._rate if self._batch else step.rate
        for batch in self._source.batches([positions[rank::world] for positions in parts[self._batch :]]):
            self._batch += 1
            losses = step.train_batch(batch, epoch, self._batch, settle=self._batch > len(parts) - SETTLING)
            self._totals.update(losses)
            self._observer.advance(recipe.batch_size, losses.get("loss", math.nan))
            if time.monotonic() - saved > SAVE_SECONDS and world == 1 and self._batch < len(parts):
                self._seconds, saved = seconds_since(began), time.monotonic()
                self._save(self._snapshot())
        learning = seconds_since(began)
        self._share_buffers()
        judged = validate(
            step.validated_network,
            self._held,
            step.objective,
            self._threat_model,
            seed=recipe.seed,
            batch_size=recipe.batch_size,
        )
        if not judged.finite:
            raise Diverged(
                f"after epoch {epoch} the network gives NaN or infinite logits: lower --lr or --weight-decay; the "
                "checkpoint of the best epoch so far, if there was one, is intact"
            )
        report = self._report(epoch, learning, judged, images=len(parts) * recipe.batch_size)
        report = report.model_copy(update={"seconds": seconds_since(began)})
        self._batch, self._seconds, self._totals = 0, 0.0, Counter()
        self._enter(report)
        self._observer.epoch(self.reports[-1])
        self._refuse_constant(judged)

    def _report(self, epoch: int, learning: float, judged: HoldoutMetrics, *, images: int) -> EpochReport:
        totals: Counter[str] = Counter()
        for (each,) in gather([self._totals]):
            totals.update(each)
        _, world = rank_and_world()
        skipped = round(totals.pop("skipped", 0) / world)
        learnt = images // self._recipe.batch_size - skipped
        means = {name: total / world / max(1, learnt) for name, total in totals.items()}
        told = [f"{skipped} batches had no finite gradient and changed nothing"] if skipped else []
        if judged.only_class is not None:
            told.append(f"every held-out image is taken for class {judged.only_class}")
        report = EpochReport(
            epoch=epoch,
            method=spec_text(self._step.objective),
            loss=means.pop("loss", math.nan),
            parts=means,
            learning_rate=self._rate,
            clean_accuracy=judged.clean,
            robust_accuracy=judged.robust,
            fgsm_accuracy=judged.fgsm,
            noisy_accuracy=judged.noisy,
            skipped=skipped,
            images_per_second=images / learning,
            seconds=learning,
            chosen=False,
            warnings=told,
        )
        standing = [earlier for earlier in self.reports if not earlier.undone]
        return report.model_copy(update={"chosen": all(report.rank >= earlier.rank for earlier in standing)})

    def _enter(self, report: EpochReport) -> None:
        """The epoch stands, or is undone where its weights have overfitted to their own single step."""
        step = self._step
        safer = step.objective.fallback() if is_catastrophic(report, self.reports) else None
        if safer is not None and self._healthy is not None:
            told = f"catastrophic overfitting: back to epoch {report.epoch - 1}, and on with {spec_text(safer)}"
            report = report.model_copy(update={"undone": True, "chosen": False, "warnings": [*report.warnings, told]})
            reports = [*self.reports, report]
            self.restore(self._healthy)
            step.objective, self.reports = safer, reports
        else:
            self.reports = [*self.reports, report]
        self._order_then = self._order.get_state()
        self._keep(self.reports, step.validated_network)
        self._healthy = None  # a snapshot holds the one before it, and that one's would be held with it
        if step.objective.fallback() is not None:
            self._healthy = self._snapshot()
        self._save(self._snapshot())

    def _refuse_constant(self, judged: HoldoutMetrics) -> None:
        last = self.reports[-CONSTANT:]
        if judged.only_class is None or len(last) < CONSTANT:
            return
        if all(any("taken for class" in told for told in report.warnings) for report in last):
            raise Diverged(
                f"for {CONSTANT} epochs every image has been taken for one class, now {judged.only_class}: lower --lr, "
                "or let eps rise slowly with --eps-warmup 0.5"
            )

    def _share_buffers(self) -> None:
        """Every process has seen other images: running statistics become the mean of all, so that all judge alike."""
        _, world = rank_and_world()
        if world == 1:
            return
        # In the same order everywhere, which a set would not give.
        for network in dict.fromkeys((self._step.network, self._step.validated_network)):
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= world

    def _snapshot(self) -> TrainingState:
        step, (_, world) = self._step.snapshot(), rank_and_world()
        random = torch.get_rng_state()
        tensors = {"order": self._order_then, **step.tensors}
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
        return TrainingState(tensors, facts, self._healthy)

    def restore(self, snapshot: TrainingState) -> None:
        """Go on as if nothing had happened since the snapshot. Raises UserError where it is another network's."""
        tensors, facts = snapshot.tensors, snapshot.facts
        self._step.restore(TrainingState(tensors, facts["lesson"]))
        if facts["method"] != spec_text(self._step.objective):
            self._step.objective = self._recipe.model_copy(update={"method": facts["method"]}).objective()
        self._order.set_state(tensors["order"])
        self._order_then = tensors["order"]
        rank, _ = rank_and_world()
        if f"random.{rank}" in tensors:
            torch.set_rng_state(tensors[f"random.{rank}"])
        if "random.cuda" in tensors and self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self._device)
        self._batch, self._seconds, self._rate = facts["batch"], facts["seconds"], facts["rate"]
        self._totals = Counter(facts["totals"])
        self.reports = [EpochReport.model_validate(report) for report in facts["reports"]]
        self._healthy = snapshot.rollback
