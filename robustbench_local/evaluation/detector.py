"""Feature squeezing as a detector (Xu, Evans and Qi, NDSS 2018), judged by attackers who do and do not know of it.

An image is rejected when squeezing moves the model's answer too far. A detector that was only shown points that were
made without knowledge of it has shown nothing, so a second attack looks for points that are misclassified *and* pass
(Carlini and Wagner, "Adversarial examples are not easily detected", AISec 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_local.attacks import ThreatModel, pgd
from robustbench_local.attacks.attack import Model
from robustbench_local.attacks.norms import expand_rows, to_float64
from robustbench_local.attacks.randomness import sample_keys
from robustbench_local.data.dataset import Dataset
from robustbench_local.engine.search import ROUNDING, full_precision
from robustbench_local.errors import UserError
from robustbench_local.models import Classifier
from robustbench_local.models.metered import Metered
from robustbench_local.models.preprocessing import InputDefense, apply_defenses, input_defense
from robustbench_local.results.schema import Accuracy

SQUEEZERS = ("bit-depth:bits=4", "median:window=2")
WEIGHTS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
"""What the detector's excess weighs against the loss, one run of the adaptive attack for each."""
LOSS = "scaled-ce"
"""What both attacks climb. On digits it left fewer standing than the margin, at every choice of squeezers tried."""


@dataclass(frozen=True)
class Detector:
    """Rejects images on which the classifier and its squeezed selves disagree by more than the threshold."""

    classifier: Model
    squeezers: tuple[InputDefense, ...]
    threshold: float

    def score(self, images: Tensor, logits: Tensor) -> Tensor:
        """The largest L1 distance, in [0, 2], between the class probabilities of an image and of a squeezed one.

        images: float [rows, channels, height, width] in [0, 1]. logits: the classifier's of them. Returns [rows], with
        the squeezers' stand-ins for gradients.
        """
        probabilities = logits.softmax(1)
        squeezed = [self.classifier(apply_defenses(images, [squeezer])).softmax(1) for squeezer in self.squeezers]
        return torch.stack([(probabilities - other).abs().sum(1) for other in squeezed]).amax(0)


@dataclass(frozen=True)
class DetectorEvaluation:
    """What a classifier with a detector is worth.

    A rejected clean image is a mistake and counts as neither clean nor robust; an image is robust where it is right,
    accepted, and no attack found a point in its ball that is misclassified and accepted. The adaptive attacker may
    also use what the other one found. `detected` is the true-positive rate against the adaptive attack: the share,
    among images for which some misclassified point was found, of those for which none was accepted; None where nothing
    was ever misclassified.
    """

    threshold: float
    n: int
    clean_accuracy: Accuracy
    false_positives: Accuracy
    robust_accuracy_non_adaptive: Accuracy
    robust_accuracy_adaptive: Accuracy
    detected_non_adaptive: Accuracy | None
    detected_adaptive: Accuracy | None


def calibrate(
    classifier: Model, images: Tensor, squeezers: Sequence[str] = SQUEEZERS, fpr: float = 0.05, *, batch_size: int = 256
) -> Detector:
    """The detector with the lowest threshold that rejects at most the share `fpr` of these clean images.

    images: float [rows, channels, height, width] in [0, 1], which the classifier has not been trained on: it is surer
    of those that it was, so more than `fpr` of fresh ones would be rejected.
    Raises UserError for an unknown squeezer, none at all, or an fpr outside (0, 1) or too small for so few images.
    """
    if not squeezers:
        raise UserError("a detector needs at least one squeezer, such as bit-depth:bits=4")
    if not 0 < fpr < 1 or fpr * len(images) < 1:
        raise UserError(
            f"fpr is {fpr:g} of {len(images)} calibration images, but must be a fraction above 0 and below 1 that "
            "allows for at least one of them"
        )
    unset = Detector(classifier, tuple(map(input_defense, squeezers)), math.inf)
    with torch.no_grad():
        scores = torch.cat([unset.score(part, classifier(part)) for part in images.split(batch_size)])
    allowed = math.floor(fpr * len(images) + 1e-9)
    return Detector(classifier, unset.squeezers, float(scores.sort(descending=True).values[allowed]))


def evaluate_detector(
    classifier: Classifier,
    dataset: Dataset,
    calibration: Dataset,
    threat_model: ThreatModel,
    *,
    squeezers: Sequence[str] = SQUEEZERS,
    fpr: float = 0.05,
    steps: int = 50,
    weights: Sequence[float] = WEIGHTS,
    seed: int = 0,
    batch_size: int = 256,
) -> DetectorEvaluation:
    """Judge the feature-squeezing detector in front of a classifier on every image of a data set.

    calibration: other clean images, from which the threshold comes. (a) The non-adaptive attack is PGD on the
    classifier alone. (b) The adaptive one climbs the loss minus a weight times the detector's score in excess of the
    threshold, once for every weight. Every point that is counted was verified by the untouched model: in ball and box,
    misclassified, accepted. All is computed where the classifier is. Where the threshold is nearly 0 and the squeezer
    a quantiser, (b) is an upper bound not to be trusted: a stand-in's gradient hardly leads to points that a quantiser
    leaves as they are.
    Raises UserError like `calibrate`, for a threat model with a target, and where calibration and evaluation share
    images.
    """
    if threat_model.target is not None:
        raise UserError("a detector is judged by attacks without a target: leave the target out")
    if (calibration.name, calibration.split) == (dataset.name, dataset.split) and bool(
        torch.isin(calibration.indices, dataset.indices).any()
    ):
        raise UserError(
            f"{dataset.name} ({dataset.split}): the same images calibrate the detector and judge it; give others"
        )
    if steps < 1 or not all(weight >= 0 for weight in weights):
        raise UserError("a detector's attack needs at least one step and weights of at least 0")
    where, tallies = next(classifier.parameters(), torch.empty(0)).device, []
    model = Metered(classifier)  # which gives a model that works in place copies to work on
    with full_precision(where):
        clean = calibration.images(range(len(calibration))).to(where)
        detector = calibrate(model, clean, squeezers, fpr, batch_size=batch_size)
        for positions in torch.arange(len(dataset)).split(batch_size):
            images = dataset.images(positions).to(where)
            labels, indices = dataset.labels[positions].to(where), dataset.indices[positions].to(where)
            tallies.append(_judge(detector, threat_model, images, labels, indices, steps, weights, seed))
    return _summed(detector.threshold, [torch.cat(parts) for parts in zip(*tallies, strict=True)])


Tally = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""bool [rows] each: rejected as it is; right and accepted as it is; by the non-adaptive and by the adaptive attack,
whether a misclassified point was found, and whether one that is accepted."""


def _judge(
    detector: Detector,
    threat_model: ThreatModel,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    steps: int,
    weights: Sequence[float],
    seed: int,
) -> Tally:
    with torch.no_grad():
        logits = detector.classifier(images)
        rejected = detector.score(images, logits) > detector.threshold
    right = (threat_model.margin(logits, labels) >= 0) & ~rejected
    fooled, passed = torch.zeros_like(right), torch.zeros_like(right)
    standing = right.nonzero().squeeze(1)
    if len(standing):
        points = pgd(
            detector.classifier,
            images[standing],
            labels[standing],
            threat_model,
            steps=steps,
            loss=LOSS,
            seed=seed,
            indices=indices[standing],
        )
        fooled[standing], passed[standing] = _verified(
            detector, threat_model, images[standing], labels[standing], points
        )
    found = fooled.clone(), passed.clone()
    for weight in weights:
        standing = (right & ~passed).nonzero().squeeze(1)
        if not len(standing):
            break
        keys = sample_keys(seed, indices[standing], f"detector:weight={weight}", 0)
        own = images[standing], labels[standing]
        for points in _search(detector, threat_model, *own, keys, weight, steps):
            mistaken, accepted = _verified(detector, threat_model, *own, points)
            fooled[standing] |= mistaken
            passed[standing] |= accepted
    return rejected, right, *found, fooled, passed


def _search(
    detector: Detector,
    threat_model: ThreatModel,
    images: Tensor,
    labels: Tensor,
    keys: Tensor,
    weight: float,
    steps: int,
) -> Iterator[Tensor]:
    """PGD that climbs the loss minus the weighted excess of the detector's score, with step sizes falling from 2 · eps.

    Gives for every row first the point nearest to success that it has seen, then the last misclassified one: the image
    where there is none.
    """
    geometry = threat_model.geometry
    points = threat_model.project(images + geometry.random_start(images, threat_model.eps, keys), images)
    best, hurdle, mistaken = images, torch.full_like(labels, math.inf, dtype=torch.float32), images
    for step in range(steps + 1):
        asked = points.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = detector.classifier(asked)
            excess = detector.score(asked, logits) - detector.threshold
            climbed = threat_model.attack_loss(LOSS, logits, labels) - weight * excess.clamp_min(0)
        gradient = torch.autograd.grad(climbed.sum(), asked)[0] if climbed.requires_grad else torch.zeros_like(points)
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        wrong = threat_model.margin(logits.detach(), labels) < 0
        height = torch.where(wrong, excess.detach(), math.inf)
        better = height < hurdle
        best, hurdle = torch.where(expand_rows(better, points), points, best), torch.where(better, height, hurdle)
        mistaken = torch.where(expand_rows(wrong, points), points, mistaken)
        if step == steps:
            break
        length = threat_model.eps * (1 + math.cos(math.pi * step / steps))
        lengths = torch.full_like(hurdle, length)
        moved = points + geometry.steepest(gradient, points, lengths, threat_model.box)
        points = threat_model.project(moved, images)
    yield best
    yield mistaken


@torch.no_grad()
def _verified(
    detector: Detector, threat_model: ThreatModel, images: Tensor, labels: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    """Which points are valid and misclassified, and which of those are accepted as well, bool [rows] each."""
    low, high = threat_model.box
    inside = threat_model.geometry.distance(to_float64(points) - to_float64(images)) <= threat_model.eps + ROUNDING
    inside &= ((points >= low) & (points <= high)).flatten(1).all(1)
    logits = detector.classifier(points)
    mistaken = inside & (threat_model.margin(logits, labels) < 0)
    return mistaken, mistaken & (detector.score(points, logits) <= detector.threshold)


def _summed(threshold: float, tally: Sequence[Tensor]) -> DetectorEvaluation:
    rejected, right, fooled, passed, fooled_adaptive, passed_adaptive = tally
    n = len(right)

    def rate(chosen: Tensor) -> Accuracy:
        return Accuracy.of(int(chosen.sum()), n)

    def detected(fooled: Tensor, passed: Tensor) -> Accuracy | None:
        return Accuracy.of(int((fooled & ~passed).sum()), int(fooled.sum())) if fooled.any() else None

    return DetectorEvaluation(
        threshold=threshold,
        n=n,
        clean_accuracy=rate(right),
        false_positives=rate(rejected),
        robust_accuracy_non_adaptive=rate(right & ~passed),
        robust_accuracy_adaptive=rate(right & ~passed_adaptive),
        detected_non_adaptive=detected(fooled, passed),
        detected_adaptive=detected(fooled_adaptive, passed_adaptive),
    )
