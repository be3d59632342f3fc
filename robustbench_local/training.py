"""The training loop. There is one: what differs between methods is in their objective, what differs between runs in
their recipe."""
from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from robustbench_local.attacks import PGD, ThreatModel, run
from robustbench_local.attacks.randomness import sample_keys
from robustbench_local.data.dataset import Dataset
from robustbench_local.defenses import Objective
from robustbench_local.defenses.objective import held_still
from robustbench_local.errors import UserError
from robustbench_local.recipes import Recipe
from robustbench_local.result import Accuracy, Part

RESIDENT_BYTES = 2 * 2**30
"""A set that takes less than this as float32 stays on the device; a larger one is read batch by batch."""
JUDGE = PGD(steps=10, loss="margin")
"""What held-out images are attacked with after every epoch, from the same random starts each time."""


class EpochReport(Part):
    """One line of `metrics.jsonl`. Accuracies are those on the hold-out; losses are means over the epoch's images."""

    epoch: int = Field(ge=1)
    loss: float
    parts: dict[str, float]
    learning_rate: float
    clean_accuracy: Accuracy
    robust_accuracy: Accuracy | None = Field(description="null where the method is judged by clean accuracy")
    images_per_second: float
    seconds: float
    chosen: bool = Field(description="no epoch before this one was better")

    @property
    def rank(self) -> tuple[float, float]:
        """Orders epochs: by robust accuracy where it was measured, clean accuracy breaks ties."""
        return self.robust_accuracy.value if self.robust_accuracy else 0.0, self.clean_accuracy.value


class TrainingObserver:
    """Hears how training goes; does nothing with it. A display overrides what it shows."""

    def begin(self, epochs: int, images: int) -> None:
        """Training begins: so many epochs of so many images."""

    def advance(self, images: int, loss: float) -> None:
        """A batch of so many images has been learnt from."""

    def epoch(self, report: EpochReport) -> None:
        """An epoch has ended."""


@dataclass(frozen=True)
class Batch:
    images: Tensor
    labels: Tensor
    indices: Tensor


class Source:
    """Batches of a data set on a device."""

    def __init__(self, dataset: Dataset, device: torch.device):
        channels, height, width = dataset.image_shape
        self._dataset, self._device = dataset, device
        fits = 4 * len(dataset) * channels * height * width <= RESIDENT_BYTES
        self._images = dataset.images(torch.arange(len(dataset))).to(device) if fits else None

    def load(self, positions: Tensor) -> Batch:
        labels, indices = self._dataset.labels[positions], self._dataset.indices[positions]
        images = self._dataset.images(positions) if self._images is None else self._images[positions.to(self._device)]
        return Batch(images.to(self._device), labels.to(self._device), indices.to(self._device))

    def in_order(self, size: int) -> Iterator[Batch]:
        """Every sample once."""
        return (self.load(positions) for positions in torch.arange(len(self._dataset)).split(size))

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Full batches in a fresh order; the few that are left over sit this epoch out."""
        order = torch.randperm(len(self._dataset), generator=generator)
        return (self.load(positions) for positions in order.split(size) if len(positions) == size)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global random numbers start from the seed – for initial weights and dropout – and the caller's go on
    afterwards as if nothing had drawn from them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def train(
    network: nn.Module, training: Dataset, holdout: Dataset, objective: Objective, threat_model: ThreatModel,
    recipe: Recipe, *, keep: Callable[[EpochReport], None] | None = None,
    observer: TrainingObserver | None = None,
) -> list[EpochReport]:
    """Train the network in place, on the device it is on, and report every epoch.

    network: float [rows, ...] in the box -> logits, its parameters to be trained have `requires_grad`. keep is called
    after every epoch, while the network has that epoch's weights: `report.chosen` says that none before was better.
    Raises UserError where there are fewer images than a batch holds, or the loss stops being a finite number.
    """
    if len(training) < recipe.batch_size:
        raise UserError(
            f"{len(training)} images are left to train on, fewer than one batch of {recipe.batch_size}: give more "
            f"images, or a smaller --batch-size"
        )
    device = next(network.parameters()).device
    batches = len(training) // recipe.batch_size
    lesson = Lesson.of(network, objective, threat_model, recipe, steps=recipe.epochs * batches)
    source, held = Source(training, device), Source(holdout, device)
    order = torch.Generator().manual_seed(recipe.seed)
    observer = observer or TrainingObserver()
    observer.begin(recipe.epochs, batches * recipe.batch_size)
    reports: list[EpochReport] = []
    with seeded(recipe.seed, device):
        for epoch in range(1, recipe.epochs + 1):
            began, rate = time.perf_counter(), float(lesson.schedule.get_last_lr()[0])
            totals: Counter[str] = Counter()
            for number, batch in enumerate(source.shuffled(recipe.batch_size, order), start=1):
                losses = lesson.learn(batch, epoch, number)
                totals.update(losses)
                observer.advance(recipe.batch_size, losses["loss"])
            seconds = time.perf_counter() - began
            means = {name: total / batches for name, total in totals.items()}
            clean, robust = judge(network, held, objective, threat_model, recipe)
            report = EpochReport(
                epoch=epoch, loss=means.pop("loss"), parts=means, learning_rate=rate, clean_accuracy=clean,
                robust_accuracy=robust, images_per_second=batches * recipe.batch_size / seconds,
                seconds=time.perf_counter() - began, chosen=False,
            )
            # Of equals the later: its learning rate is lower and its weights have seen more.
            chosen = all(report.rank >= earlier.rank for earlier in reports)
            reports.append(report.model_copy(update={"chosen": chosen}))
            if keep is not None:
                keep(reports[-1])
            observer.epoch(reports[-1])
    return reports


@dataclass(frozen=True)
class Lesson:
    """What every step of the optimiser needs, whatever the batch."""

    network: nn.Module
    objective: Objective
    threat_model: ThreatModel
    seed: int
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.OneCycleLR

    @classmethod
    def of(
        cls, network: nn.Module, objective: Objective, threat_model: ThreatModel, recipe: Recipe, *, steps: int
    ) -> Lesson:
        optimizer = torch.optim.SGD(
            [parameter for parameter in network.parameters() if parameter.requires_grad], lr=recipe.lr,
            momentum=recipe.momentum, nesterov=True, weight_decay=recipe.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=recipe.lr, total_steps=steps, cycle_momentum=False
        )
        return cls(network, objective, threat_model, recipe.seed, optimizer, schedule)

    def learn(self, batch: Batch, epoch: int, number: int) -> dict[str, float]:
        """One step; the loss and its parts. Raises UserError, with the weights as they were, for a loss like NaN."""
        self.network.train()
        keys = sample_keys(self.seed, batch.indices, f"train/{epoch}", 0)
        loss, parts = self.objective.loss(self.network, batch.images, batch.labels, self.threat_model, keys)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(
                f"the loss became {value} in epoch {epoch}, batch {number}: lower --lr, or look for damaged images; "
                "the checkpoint of the best epoch so far, if there was one, is intact"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return {"loss": value, **{name: float(part) for name, part in parts.items()}}


def judge(
    network: nn.Module, held: Source, objective: Objective, threat_model: ThreatModel, recipe: Recipe
) -> tuple[Accuracy, Accuracy | None]:
    """Clean accuracy on the held-out images and, for a method that is judged by it, robust accuracy under `JUDGE`."""
    n = correct = standing = 0
    with held_still(network):
        for batch in held.in_order(recipe.batch_size):
            with torch.no_grad():
                right = network(batch.images).argmax(1) == batch.labels
            n, correct = n + len(right), correct + int(right.sum())
            if objective.judged_by == "robust" and right.any():
                images, labels = batch.images[right], batch.labels[right]
                points = run(
                    JUDGE, network, threat_model, images, labels, seed=recipe.seed, indices=batch.indices[right]
                )
                with torch.no_grad():
                    standing += int((network(points).argmax(1) == labels).sum())
    robust = Accuracy.of(standing, n) if objective.judged_by == "robust" else None
    return Accuracy.of(correct, n), robust
