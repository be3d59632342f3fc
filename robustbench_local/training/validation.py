"""Validation: the accuracies of an epoch's weights on the hold-out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from robustbench_local.attacks import FGSM, PGD, Attack, ThreatModel, run
from robustbench_local.attacks.attack import Model
from robustbench_local.attacks.randomness import sample_keys
from robustbench_local.data.loader import Batch, BatchLoader
from robustbench_local.defenses import Objective
from robustbench_local.defenses.objective import frozen_eval
from robustbench_local.defenses.smoothing import noisy
from robustbench_local.results.schema import Accuracy
from robustbench_local.runtime.distributed import gather, rank_and_world

VALIDATION_ATTACK = PGD(steps=10, loss="margin")
"""The attack on the hold-out after every epoch, from the same random starts each time."""


@dataclass(frozen=True)
class HoldoutMetrics:
    """Accuracies on the hold-out; None where the method is not validated by it.

    only_class: the predicted class, where it is the same for every image. finite: every logit was finite.
    """

    clean: Accuracy
    robust: Accuracy | None
    fgsm: Accuracy | None
    noisy: Accuracy | None
    only_class: int | None
    finite: bool


def validate(
    network: nn.Module,
    holdout: BatchLoader,
    objective: Objective,
    threat_model: ThreatModel,
    *,
    seed: int,
    batch_size: int,
) -> HoldoutMetrics:
    """Clean accuracy on the hold-out and the accuracy of the method's `validation_metric`, over all processes.

    An adversarial example counts as a success when the network itself, in float32, misclassifies it.
    """
    counts: Counter[str] = Counter()
    rank, world = rank_and_world()
    share = torch.arange(len(holdout))[rank::world]
    with frozen_eval(network):
        for batch in holdout.batches(share.split(batch_size)):
            counts.update(_count(network, batch, objective, threat_model, seed))
    total: Counter[str] = Counter()
    for (each,) in gather([counts]):
        total.update(each)
    n = total["n"]
    classes = [name for name in total if name.startswith("class ")]

    def accuracy(name: str, kind: str) -> Accuracy | None:
        return Accuracy.of(total[name], n) if objective.validation_metric == kind else None

    return HoldoutMetrics(
        Accuracy.of(total["clean"], n),
        accuracy("robust", "robust"),
        accuracy("fgsm", "robust"),
        accuracy("noisy", "noisy"),
        int(classes[0].split()[1]) if len(classes) == 1 else None,
        total["not finite"] == 0,
    )


def _count(model: Model, batch: Batch, objective: Objective, threat_model: ThreatModel, seed: int) -> Counter[str]:
    with torch.no_grad():
        logits = model(batch.images)
    predicted = logits.argmax(1)
    correct = predicted == batch.labels
    counts: Counter[str] = Counter(f"class {label}" for label in predicted.tolist())
    not_finite = int((~logits.isfinite()).any(1).sum())
    counts.update({"n": len(correct), "clean": int(correct.sum()), "not finite": not_finite})
    if objective.validation_metric == "robust" and correct.any():
        images, labels, indices = batch.images[correct], batch.labels[correct], batch.indices[correct]

        def robust(attack: Attack) -> int:
            points = run(attack, model, threat_model, images, labels, seed=seed, indices=indices)
            with torch.no_grad():
                return int((model(points).argmax(1) == labels).sum())

        counts.update({"fgsm": robust(FGSM()), "robust": robust(VALIDATION_ATTACK)})
    if objective.validation_metric == "noisy":
        keys = sample_keys(seed, batch.indices, "judge", 0)
        with torch.no_grad():
            predicted = model(noisy(batch.images, objective.validation_noise(), keys, 0)).argmax(1)
        counts["noisy"] += int((predicted == batch.labels).sum())
    return counts
