"""What a training is about: the network, the method, the threat model and the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.attack import Model
from robustbench_local.defenses import Objective
from robustbench_local.training.recipe import Recipe


@dataclass(frozen=True)
class TrainingTask:
    """A network and how its weights are trained.

    network: float images [rows, channels, height, width] in the box -> logits [rows, classes]; parameters with
    `requires_grad` are trained, in place, on the device that they are on. teacher: images -> logits, for the methods
    that learn from one. head: names of the last layer's parameters, which the recipe's first `freeze_epochs` train
    alone.
    """

    network: nn.Module
    objective: Objective
    threat_model: ThreatModel
    recipe: Recipe
    teacher: Model | None = None
    head: Sequence[str] = ()
