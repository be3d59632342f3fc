"""Transfer attacks: PGD on a surrogate network that was trained to predict what the model predicts.

Papernot et al., "Practical black-box attacks against machine learning" (ASIA CCS 2017).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from robustbench_local.attacks.attack import Model, State, ValueAndGrad
from robustbench_local.attacks.pgd import PGD
from robustbench_local.attacks.randomness import sample_keys, uniform
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.data.dataset import Dataset
from robustbench_local.diagnostics.features import Features, FeaturesMissing, Logits
from robustbench_local.models.metered import Metered

MOST_IMAGES, COPIES, EPOCHS, BATCH = 1000, 2, 15, 64
"""Images to train a surrogate on, noisy copies of each, epochs, and batch size."""
NOISE = 0.1
"""The noise of the copies: uniform, at most this, in pixel units."""


@dataclass(frozen=True, kw_only=True)
class Transfer(PGD):
    """PGD along a surrogate's gradients. The model itself evaluates every iterate, and only its predictions count."""

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


def transfer_from(train: Callable[[], Model], name: str) -> Transfer:
    """Return a transfer attack of that name. train: returns the surrogate; called when it is first needed."""
    kind: type[Transfer] = dataclasses.make_dataclass(
        "TransferFrom",
        [],
        bases=(Transfer,),
        frozen=True,
        kw_only=True,
        namespace={"surrogate": staticmethod(functools.cache(train)), "name": name},
    )
    return kind()


class _Refitted(nn.Module):
    """A model's features with another readout, or its logits with one where the features of a batch are missing."""

    def __init__(self, features: Logits, readout: nn.Module, logits: Logits, logit_readout: nn.Module):
        super().__init__()
        self._features, self._readout = features, readout
        self._logits, self._logit_readout = logits, logit_readout

    def forward(self, points: Tensor) -> Tensor:
        try:
            outputs: Tensor = self._readout(self._features(points))
        except FeaturesMissing:
            outputs = self._logit_readout(self._logits(points))
        return outputs


@dataclass
class _SeededRandom:
    """Random numbers for a surrogate's initialization and training, independent of the global generators."""

    device: torch.device
    cpu: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        on_cpu = self.device.type == "cpu"
        self._order = self.cpu if on_cpu else torch.Generator(self.device).manual_seed(0)

    def initialize(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Initialize a layer as torch does."""
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=self.cpu)
        if layer.bias is not None:
            bound = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.bias, -bound, bound, generator=self.cpu)

    def permutation(self, n: int) -> Tensor:
        return torch.randperm(n, device=self.device, generator=self._order)


def refitted(model: Metered, dataset: Dataset, threat_model: ThreatModel, device: torch.device) -> nn.Module:
    """Train a linear readout on the model's own features to predict what the model predicts.

    Whatever the model does after its last linear layer is left out. Where some image has no features, the readout is of
    the logits. Images, noise and seed are those of `imitation`.
    """
    points, outputs = _training_set(model, dataset, threat_model, device)
    features, logits = Features(model), Logits(model)
    logit_readout = _fitted_readout(outputs, outputs)
    try:
        with torch.no_grad():
            values = torch.cat([features(part) for part in points.split(BATCH)])
        features.require_own_rows(points, values)
    except FeaturesMissing:
        return _Refitted(logits, logit_readout, logits, logit_readout)
    return _Refitted(features, _fitted_readout(values, outputs), logits, logit_readout)


def _fitted_readout(values: Tensor, outputs: Tensor) -> nn.Module:
    """A linear layer that predicts the class of the highest output from values, float [rows, features]."""
    random = _SeededRandom(values.device)
    mean, scale = values.mean(0), values.std(0).clamp_min(1e-6)
    readout: nn.Linear = skip_init(nn.Linear, values.shape[1], outputs.shape[1])
    random.initialize(readout)
    readout.to(values.device)
    _fit(readout, (values - mean) / scale, outputs.argmax(1), random)
    with torch.no_grad():
        readout.weight.div_(scale)
        readout.bias.sub_(readout.weight @ mean)
    readout.requires_grad_(False)
    return readout


def imitation(model: Metered, dataset: Dataset, threat_model: ThreatModel, device: torch.device) -> nn.Module:
    """Train a small convolutional network to predict what the model predicts for some images and for noisy copies.

    It needs nothing but the model's predicted classes. The caller's random state is not touched.
    """
    points, outputs = _training_set(model, dataset, threat_model, device)
    random = _SeededRandom(device)
    network = _network(points.shape[1:], outputs.shape[1])
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            random.initialize(layer)
    network.to(device)
    _fit(network, points, outputs.argmax(1), random)
    return network.eval().requires_grad_(False)


def _training_set(
    model: Metered, dataset: Dataset, threat_model: ThreatModel, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Images and noisy copies of them, float [points, ...], and the model's logits, float [points, classes]."""
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
        return points, torch.cat([model(part) for part in points.split(BATCH)])


def _network(shape: torch.Size, classes: int) -> nn.Sequential:
    """An uninitialized network for images of that shape."""
    side = min(8, *shape[1:])
    return nn.Sequential(
        skip_init(nn.Conv2d, shape[0], 32, 3, padding=1),
        nn.ReLU(),
        skip_init(nn.Conv2d, 32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(side),
        skip_init(nn.Conv2d, 64, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        skip_init(nn.Linear, 64 * ((side + 1) // 2) ** 2, 128),
        nn.ReLU(),
        skip_init(nn.Linear, 128, classes),
    )


def _fit(network: nn.Module, points: Tensor, labels: Tensor, random: _SeededRandom) -> None:
    batches = max(1, len(points) // BATCH)
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=EPOCHS * batches)
    with torch.enable_grad():
        for _ in range(EPOCHS):
            order = random.permutation(len(points))
            for rows in order[: batches * BATCH].split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(network(points[rows]), labels[rows]).backward()
                optimizer.step()
                schedule.step()
