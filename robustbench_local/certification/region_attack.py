"""The search over activation regions as an attack of the engine: `regions`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch

from robustbench_local.attacks import pgd
from robustbench_local.attacks.attack import Model, Rows, State, initial_state, require_inset
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.certification.region_search import search
from robustbench_local.certification.relu_network import PiecewiseLinear
from robustbench_local.errors import UserError
from robustbench_local.models.classifier import Classifier, fingerprint
from robustbench_local.models.metered import Metered


@dataclass(frozen=True, kw_only=True)
class RegionSearch:
    """Branch and bound over the activation regions of a ReLU network, for L∞ only, one sample at a time.

    programs: the most linear programs for a sample. starts: PGD restarts; the search starts at their best point.
    neurons: the most ReLUs that a network may have. inset: as for `PGD`. Meant for the few samples on which gradient
    attacks have failed; see `region_search`.
    """

    name: ClassVar[str] = "regions"
    steps: ClassVar[int] = 1
    restarts: ClassVar[int] = 1
    targets: ClassVar[int] = 0
    at_a_time: ClassVar[int] = 16
    programs: int = 500
    starts: int = 3
    neurons: int = 5000
    inset: float = field(default=0.0, metadata={"since": 2})

    def __post_init__(self) -> None:
        for name in ("programs", "starts", "neurons"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        require_inset(self.inset)
        object.__setattr__(self, "_networks", _NetworkCache())

    def unsupported_reason(self, classifier: Classifier, shape: tuple[int, ...], threat_model: ThreatModel) -> str:
        """Why this network cannot be searched in this ball; empty where it can.

        shape: that of one image, (channels, height, width).
        """
        if threat_model.norm != "linf":
            return "its linear programs are for L∞ balls"
        if threat_model.reject is not None:
            return "its linear programs do not model a reject class"
        try:
            self._network(classifier, shape)
        except ValueError as error:
            return str(error)
        return ""

    def start(self, threat_model: ThreatModel, rows: Rows) -> State:  # noqa: ARG002
        return initial_state(rows, rows.images)

    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State:
        assert isinstance(model, Metered)
        images, labels = state["images"], state["labels"]
        shape = tuple(images.shape[1:])
        if reason := self.unsupported_reason(model.model, shape, threat_model):
            raise UserError(f"the attack regions does not support this model: {reason}", slug="regions-unsupported")
        network = self._network(model.model, shape)
        starts = pgd(
            model,
            images,
            labels,
            threat_model,
            steps=50,
            restarts=self.starts,
            loss="scaled-ce",
            inset=self.inset,
            indices=state["keys"],
        )
        points = [
            search(model, network, image, int(label), threat_model, start, programs=self.programs).point
            for image, label, start in zip(images, labels, starts, strict=True)
        ]
        return {**state, "points": torch.stack(points), "step": state["step"] + 1}

    def _network(self, classifier: Classifier, shape: tuple[int, ...]) -> PiecewiseLinear:
        cache: _NetworkCache = self.__dict__["_networks"]
        return cache.get(classifier, shape, self.neurons)


class _NetworkCache:
    """The network that was read last from every classifier."""

    def __init__(self) -> None:
        self._cache: WeakKeyDictionary[Classifier, tuple[str, tuple[int, ...], PiecewiseLinear]] = WeakKeyDictionary()

    def get(self, classifier: Classifier, shape: tuple[int, ...], neurons: int) -> PiecewiseLinear:
        """The classifier's layers, read again only when its weights have changed.

        Raises ValueError where it is not piecewise linear in at most `most_neurons` ReLUs.
        """
        weights = fingerprint(classifier)
        cached = self._cache.get(classifier)
        if cached is None or cached[:2] != (weights, shape):
            cached = weights, shape, PiecewiseLinear(classifier, shape, most_neurons=neurons)
            self._cache[classifier] = cached
        return cached[2]
