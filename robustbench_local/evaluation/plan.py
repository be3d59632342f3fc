"""An evaluation's settings, resolved for one classifier, dataset and threat model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

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
from robustbench_local.models.metered import Metered
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
    """Resolve the settings; nothing is attacked yet.

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
    in_scope = samples_in_scope(labels_of_model(classifier, dataset), threat_model)
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


@torch.no_grad()
def labels_of_model(classifier: Classifier, dataset: Dataset) -> Dataset:
    """The dataset, its labels those of the model where they count class directories: its outputs say how.

    Of several outputs, the one with as many columns as there are directories counts, else the smallest with enough.
    Raises UserError for more class directories, or larger numbers, than there are outputs.
    """
    directories = dataset.directories
    if directories is None or directories.numbering == "names":
        return dataset
    device = next(chain(classifier.parameters(), classifier.buffers()), torch.empty(0)).device
    images = dataset.images([0, len(dataset) - 1]).to(device)
    probe = copy.copy(classifier)  # its choice of an output is its own
    widths = [_outputs(probe, images)]
    for key in probe.candidates:
        probe.output = key
        widths.append(_outputs(probe, images))
    count, enough = len(directories.names), [width for width in widths if width >= len(directories.names)]
    if not any(widths):
        return dataset
    return dataset.for_outputs(count if count in widths else min(enough, default=max(widths)))


def _outputs(classifier: Classifier, images: Tensor) -> int:
    """The number of classes of the classifier; 0 where it cannot classify the images, which the preflight explains."""
    try:
        return int(Metered(classifier)(images).shape[1])
    except UserError:
        return 0


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
