"""What held-out images say of an epoch's weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_local.attacks import FGSM, PGD, Attack, ThreatModel, run
from robustbench_local.attacks.attack import Model
from robustbench_local.attacks.randomness import sample_keys
from robustbench_local.data.loader import Batch, BatchLoader
from robustbench_local.defenses import Gaussian, Objective, SmoothAdv
from robustbench_local.defenses.objective import frozen_eval
from robustbench_local.defenses.smoothing import noisy
from robustbench_local.results.schema import Accuracy
from robustbench_local.runtime.distributed import gather, rank_and_world

VALIDATION_ATTACK = PGD(steps=10, loss="margin")
"""What held-out images are attacked with after every epoch, from the same random starts each time."""


@dataclass(frozen=True)
class HoldoutMetrics:
    """Accuracies on the hold-out; None where the method is not judged by it. only_class: what every image is taken for,
    where it is one class for all. finite: whether every logit was a finite number.
    """

    clean: Accuracy
    robust: Accuracy | None
    fgsm: Accuracy | None
    noisy: Accuracy | None
    only_class: int | None
    finite: bool


def validate(
    network: nn.Module,
    held: BatchLoader,
    objective: Objective,
    threat_model: ThreatModel,
    *,
    seed: int,
    batch_size: int,
) -> HoldoutMetrics:
    """Clean accuracy on the held-out images and what the method is judged by, counted over all processes.

    A point counts when the network itself, in float32, falls for it.
    """
    counts: Counter[str] = Counter()
    rank, world = rank_and_world()
    share = torch.arange(len(held))[rank::world]
    with frozen_eval(network):
        for batch in held.batches(share.split(batch_size)):
            counts.update(_counted(network, batch, objective, threat_model, seed))
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


def _counted(model: Model, batch: Batch, objective: Objective, threat_model: ThreatModel, seed: int) -> Counter[str]:
    with torch.no_grad():
        logits = model(batch.images)
    predicted = logits.argmax(1)
    right = predicted == batch.labels
    counts: Counter[str] = Counter(f"class {label}" for label in predicted.tolist())
    broken = int((~logits.isfinite()).any(1).sum())
    counts.update({"n": len(right), "clean": int(right.sum()), "not finite": broken})
    if objective.validation_metric == "robust" and right.any():
        images, labels, indices = batch.images[right], batch.labels[right], batch.indices[right]

        def standing(attack: Attack) -> Tensor:
            points = run(attack, model, threat_model, images, labels, seed=seed, indices=indices)
            with torch.no_grad():
                return model(points).argmax(1) == labels

        counts.update({"fgsm": int(standing(FGSM()).sum()), "robust": int(standing(VALIDATION_ATTACK).sum())})
    if isinstance(objective, Gaussian | SmoothAdv):
        keys = sample_keys(seed, batch.indices, "judge", 0)
        with torch.no_grad():
            predicted = model(noisy(batch.images, objective.sigma, keys, 0)).argmax(1)
        counts["noisy"] += int((predicted == batch.labels).sum())
    return counts
