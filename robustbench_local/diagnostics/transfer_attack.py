"""Attacks by way of a surrogate: a network that imitates the model's answers and has gradients of its own.

Papernot et al., "Practical black-box attacks against machine learning" (ASIA CCS 2017).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_local.attacks.attack import Model, State, ValueAndGrad
from robustbench_local.attacks.pgd import PGD
from robustbench_local.attacks.randomness import sample_keys, uniform
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.data.dataset import Dataset
from robustbench_local.diagnostics.active_test import Features
from robustbench_local.models.metered import Metered

MOST_IMAGES, COPIES, EPOCHS, BATCH = 1000, 2, 15, 64
NOISE = 0.1
"""How far the noisy copies lie from their images, in pixels: uniform, everywhere alike."""


@dataclass(frozen=True, kw_only=True)
class Transfer(PGD):
    """PGD along a surrogate's gradients; what counts is what the model itself says of every point on the way."""

    name: ClassVar[str] = "transfer"
    surrogate: ClassVar[Callable[[], Model]]
    steps: int = 100
    loss: str = "margin"
    schedule: str = "cosine"
    momentum: float = 0.25

    def _evaluate(self, model: Model, threat_model: ThreatModel, state: State) -> ValueAndGrad:
        with torch.no_grad():
            margin = threat_model.margin(model(state["points"]), state["labels"])
        _, loss, gradient = super()._evaluate(type(self).surrogate(), threat_model, state)
        return ValueAndGrad(margin, loss, gradient)


def transfer_from(teach: Callable[[], Model], name: str) -> Transfer:
    """The attack by way of a surrogate, images -> logits, which is taught when it is first needed; under a name that
    says which it is.
    """
    kind = dataclasses.make_dataclass(
        "TransferFrom",
        [],
        bases=(Transfer,),
        frozen=True,
        kw_only=True,
        namespace={"surrogate": staticmethod(functools.cache(teach)), "name": name},
    )
    return kind()


class _Refitted(nn.Module):
    """A model's body with a readout of its own."""

    def __init__(self, features: Features, readout: nn.Module):
        super().__init__()
        self._features, self._readout = features, readout

    def forward(self, points: Tensor) -> Tensor:
        return self._readout(self._features(points))


def refitted(model: Metered, dataset: Dataset, threat_model: ThreatModel, device: torch.device) -> nn.Module:
    """The model's own features with a linear readout taught what it answers: whatever is done to the logits after the
    last linear layer is left out. Images, noise and seed as for `imitation`.
    """
    points, answers, classes = _asked(model, dataset, threat_model, device)
    features = Features(model)
    with torch.no_grad():
        given = torch.cat([features(part) for part in points.split(BATCH)])
    scale = given.std(0).clamp_min(1e-6)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        readout = nn.Linear(given.shape[1], classes).to(device)
        _fit(readout, (given - given.mean(0)) / scale, answers)
    with torch.no_grad():
        readout.weight.div_(scale)
        readout.bias.sub_(readout.weight @ given.mean(0))
    return _Refitted(features, readout.requires_grad_(False))


def imitation(model: Metered, dataset: Dataset, threat_model: ThreatModel, device: torch.device) -> nn.Module:
    """A small convolutional network taught what the model answers to some images and to noisy copies of them.

    It learns predicted classes alone, so nothing but answers is asked of the model. Seeded, and the caller's random
    numbers go on as if nothing had happened.
    """
    points, answers, classes = _asked(model, dataset, threat_model, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        network = _network(points.shape[1:], classes).to(device)
        _fit(network, points, answers)
    return network.eval().requires_grad_(False)


def _asked(
    model: Metered, dataset: Dataset, threat_model: ThreatModel, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Images and noisy copies of them, what the model takes them for, and how many classes it knows."""
    positions = torch.arange(len(dataset))[:: max(1, -(-len(dataset) // MOST_IMAGES))]
    images = dataset.images(positions).to(device)
    copies = [
        images
        + NOISE
        * (2 * uniform(sample_keys(0, dataset.indices[positions], "surrogate", copy), images.shape[1:]).to(images) - 1)
        for copy in range(COPIES)
    ]
    points = torch.cat([images, *copies]).clamp(*threat_model.box)
    with torch.no_grad():
        told = torch.cat([model(part) for part in points.split(BATCH)])
    return points, told.argmax(1), told.shape[1]


def _network(shape: torch.Size, classes: int) -> nn.Module:
    side = min(8, *shape[1:])
    return nn.Sequential(
        nn.Conv2d(shape[0], 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(side),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * ((side + 1) // 2) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def _fit(network: nn.Module, points: Tensor, answers: Tensor) -> None:
    batches = max(1, len(points) // BATCH)
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=EPOCHS * batches)
    with torch.enable_grad():
        for _ in range(EPOCHS):
            order = torch.randperm(len(points), device=points.device)
            for rows in order[: batches * BATCH].split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(network(points[rows]), answers[rows]).backward()
                optimizer.step()
                schedule.step()
