"""An evaluation's settings, resolved for one classifier, dataset and threat model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.randomness import hash_indices
from robustbench_local.data import stratified_subset
from robustbench_local.data.dataset import Dataset
from robustbench_local.engine.precision import Precision, check_precision
from robustbench_local.engine.protocol import (
    Step,
    custom,
    require_goes_with,
    require_layers,
    resolve_attack,
    resolve_suite,
)
from robustbench_local.errors import UserError
from robustbench_local.evaluation.settings import EvaluationSettings
from robustbench_local.models import Classifier
from robustbench_local.results.schema import Protocol
from robustbench_local.runtime.distributed import device_for


@dataclass(frozen=True)
class EvaluationPlan:
    """What will be evaluated.

    dataset: the samples of the run, in their order. available: samples of the whole split that the threat model
    applies to. steps: the attacks of the protocol.
    """

    settings: EvaluationSettings
    threat_model: ThreatModel
    dataset: Dataset
    available: int
    protocol: Protocol
    steps: tuple[Step, ...]
    device: torch.device
    precision: Precision


def plan_evaluation(
    classifier: Classifier, dataset: Dataset, threat_model: ThreatModel, settings: EvaluationSettings
) -> EvaluationPlan:
    """Resolve the settings; nothing is run yet.

    Raises UserError for an unknown suite, attack, layer, device or precision, and where the dataset has no sample
    that the threat model applies to.
    """
    if settings.attacks is not None:
        protocol, steps = custom(
            [resolve_attack(attack) if isinstance(attack, str) else attack for attack in settings.attacks]
        )
    else:
        protocol, steps = resolve_suite(settings.suite or "fast")
    require_goes_with(protocol, threat_model)
    require_layers(classifier, steps)
    device = settings.device if isinstance(settings.device, torch.device) else device_for(settings.device)
    precision = check_precision(settings.precision, device)
    in_scope = samples_in_scope(dataset, threat_model)
    return EvaluationPlan(
        settings=settings,
        threat_model=threat_model,
        dataset=_chosen_samples(in_scope, settings),
        available=len(in_scope),
        protocol=protocol,
        steps=steps,
        device=device,
        precision=precision,
    )


def _chosen_samples(dataset: Dataset, settings: EvaluationSettings) -> Dataset:
    """The subset to evaluate, or with a stopping rule all samples in a seeded random order."""
    if settings.stopping_rule is not None:
        return dataset.subset(hash_indices(settings.seed, dataset.indices).argsort(stable=True))
    if settings.samples is not None:
        return dataset.subset(stratified_subset(dataset.labels, settings.samples, settings.seed))
    return dataset


def samples_in_scope(dataset: Dataset, threat_model: ThreatModel) -> Dataset:
    """The samples that the threat model applies to: all, or with a target class those of the source class or classes.

    Raises UserError where there are none.
    """
    in_scope = threat_model.in_scope(dataset.labels)
    if not in_scope.any():
        if threat_model.source is not None:
            classes = ", ".join(map(str, dataset.labels.unique().tolist()[:20]))
            raise UserError(
                f"{dataset.name} has no image of the source class {threat_model.source}: choose one of its classes, "
                f"{classes}",
                slug="source-class-empty",
            )
        raise UserError(
            f"every image of {dataset.name} already has the target class {threat_model.target}: choose another target",
            slug="only-target-class",
        )
    return dataset if in_scope.all() else dataset.subset(in_scope.nonzero().squeeze(1))
