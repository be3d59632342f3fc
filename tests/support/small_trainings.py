"""A small network, some digits, and trainings of both for the tests of this folder."""

from __future__ import annotations

import functools
import importlib
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustbench_local.attacks import ThreatModel
from robustbench_local.data import load_dataset
from robustbench_local.data.holdout import cut_holdout
from robustbench_local.training.initialization import seeded
from robustbench_local.training.loop import TrainingCallbacks, train
from robustbench_local.training.metrics import TrainingObserver
from robustbench_local.training.recipe import Recipe
from robustbench_local.training.settings import RuntimeSettings
from robustbench_local.training.task import TrainingTask

CPU = torch.device("cpu")
THREAT = ThreatModel("linf", "0.1")
BATCHES = 5
"""Of an epoch of the digits below."""


def network(seed: int = 0, *, norm: bool = True, dropout: float = 0.2) -> nn.Module:
    with seeded(seed, CPU):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(36, 10),
        )


@functools.cache
def parts(count: int = 200):
    """Digits to train on and digits held out."""
    digits = load_dataset("digits", split="train").subset(range(count))
    training, holdout = cut_holdout(digits.labels, 0.2, seed=0)
    return digits.subset(training), digits.subset(holdout)


class Stop(TrainingObserver):
    """Interrupts when so many batches have been learnt."""

    def __init__(self, batches: int):
        self.left = batches

    def advance(self, images, loss):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class Training:
    """A training and what it leaves: reports, the network, the judged network's last weights, all snapshots."""

    def __init__(
        self,
        model: nn.Module | None = None,
        data=None,
        objective=None,
        threat_model=THREAT,
        *,
        train_with=None,
        **settings,
    ):
        self.recipe = Recipe(**{"method": "pgd-at:steps=2", "epochs": 2, "batch_size": 32, "lr": 0.05, **settings})
        self.model = network() if model is None else model
        self.objective, self.threat_model = objective or self.recipe.objective(), threat_model
        self.data, self.more = data or parts(), train_with or {}
        self.kept, self.saved, self.reports = [], [], []

    def _keep(self, reports, judged):
        self.kept.append((list(reports), {name: value.clone() for name, value in judged.state_dict().items()}))

    def run(self, **more) -> Training:
        """Train; more: an `observer`, `workers`, and the state to `resume`."""
        task = TrainingTask(self.model, self.objective, self.threat_model, self.recipe, **self.more)
        callbacks = TrainingCallbacks(self._keep, self.saved.append, more.get("observer") or TrainingObserver())
        runtime = RuntimeSettings(workers=more.get("workers"))
        self.reports = train(task, *self.data, runtime=runtime, callbacks=callbacks, resume=more.get("resume"))
        return self

    @property
    def told(self):
        """The reports without what a clock says."""
        return [report.model_copy(update={"seconds": 0, "images_per_second": 0}) for report in self.reports]


def same(one, other) -> bool:
    """Whether two networks or their weights are equal to the bit."""
    one, other = (each.state_dict() if isinstance(each, nn.Module) else each for each in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def harden_until(place: str, last: int, settings: dict[str, str], output: Path) -> None:
    """A training that is killed at the last-th call of the function at `module:name`; every epoch and step is saved."""
    import robustbench_local.training.loop as loop
    from robustbench_local.training.recipe import resolve_recipe
    from robustbench_local.training.run import run_training
    from robustbench_local.training.settings import RuntimeSettings

    module, _, name = place.partition(":")
    owner, _, attribute = name.rpartition(".")
    where = importlib.import_module(module)
    where = getattr(where, owner) if owner else where
    function, calls = getattr(where, attribute), [0]

    def call(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    setattr(where, attribute, call)
    loop.SAVE_SECONDS = 0
    torch.set_num_threads(1)
    run_training(resolve_recipe(None, settings), output, runtime=RuntimeSettings(device="cpu"))
