"""Feature squeezing as a detector (Xu, Evans and Qi, NDSS 2018), evaluated with non-adaptive and adaptive attacks.

An image is rejected when squeezing changes the model's answer too much. A detector that was tested only against attacks
that ignore it has shown nothing, so a second attack looks for points that are misclassified *and* accepted (Carlini and
Wagner, "Adversarial examples are not easily detected", AISec 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustbench_local.attacks import ThreatModel, pgd
from robustbench_local.attacks.attack import Model
from robustbench_local.attacks.norms import expand_rows, to_float64
from robustbench_local.attacks.pgd import ascend, cosine_step_sizes
from robustbench_local.attacks.randomness import sample_keys
from robustbench_local.data.dataset import Dataset
from robustbench_local.engine.verify import ROUNDING
from robustbench_local.errors import UserError
from robustbench_local.evaluation.settings import with_overrides
from robustbench_local.models import Classifier
from robustbench_local.models.input_defenses.input_defense import InputDefense
from robustbench_local.models.metered import Metered
from robustbench_local.models.preprocessing import apply_defenses, input_defense
from robustbench_local.results.schema import Accuracy
from robustbench_local.runtime.precision import full_precision

SQUEEZERS = ("bit-depth:bits=4", "median:window=2")
WEIGHTS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Weights of the detector's score against the loss, one run of the adaptive attack for each."""
LOSS = "scaled-ce"
"""The loss of both attacks. On the digits it fooled more images than the margin, whatever the squeezers."""


@dataclass(frozen=True)
class Detector:
    """Rejects images whose class probabilities change by more than the threshold when a squeezer is applied."""

    classifier: Model
    squeezers: tuple[InputDefense, ...]
    threshold: float

    def score(self, images: Tensor, logits: Tensor) -> Tensor:
        """The largest L1 distance, in [0, 2], between the class probabilities of an image and of a squeezed one.

        images: float [rows, channels, height, width] in [0, 1]. logits: the classifier's, for these images. Returns
        [rows], differentiable through the squeezers' surrogate gradients.
        """
        probabilities = logits.softmax(1)
        squeezed = [self.classifier(apply_defenses(images, [squeezer])).softmax(1) for squeezer in self.squeezers]
        return torch.stack([(probabilities - other).abs().sum(1) for other in squeezed]).amax(0)


@dataclass(frozen=True)
class DetectorEvaluation:
    """The accuracies of a classifier with a detector.

    A rejected clean image is an error and counts as neither clean nor robust. An image is robust if it is correctly
    classified and accepted, and no attack found a point in its ball that is misclassified and accepted. The adaptive
    attack also counts what the non-adaptive one found. `detected` is the true-positive rate: the share, among images
    for which some misclassified point was found, of those for which none was accepted; None where no misclassified
    point was found.
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
    """Return the detector with the lowest threshold that rejects at most the share `fpr` of these clean images.

    images: float [rows, channels, height, width] in [0, 1], not from the training data: a classifier is more confident
    on its training images, so more than `fpr` of new images would be rejected.
    Raises UserError for an unknown squeezer, for none at all, and for an fpr outside (0, 1) or too small for so few
    images.
    """
    if not squeezers:
        raise UserError("a detector needs at least one squeezer, such as bit-depth:bits=4", slug="no-squeezer")
    if not 0 < fpr < 1 or fpr * len(images) < 1:
        raise UserError(
            f"fpr is {fpr:g} of {len(images)} calibration images, but must be above 0, below 1, and at least one image",
            slug="fpr-out-of-range",
        )
    uncalibrated = Detector(classifier, tuple(map(input_defense, squeezers)), math.inf)
    with torch.no_grad():
        scores = torch.cat([uncalibrated.score(part, classifier(part)) for part in images.split(batch_size)])
    allowed = math.floor(fpr * len(images) + 1e-9)
    return Detector(classifier, uncalibrated.squeezers, float(scores.sort(descending=True).values[allowed]))


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """How to evaluate a detector; every field may be given to `evaluate_detector` as a keyword instead.

    squeezers: specs of input defenses. fpr: share of clean images that the threshold may reject, in (0, 1).
    steps: gradients per attack. weights: of the detector's score in the adaptive attack's loss, one attack each.

    Raises UserError for settings outside these ranges.
    """

    squeezers: Sequence[str] = SQUEEZERS
    fpr: float = 0.05
    steps: int = 50
    weights: Sequence[float] = WEIGHTS
    seed: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}, but must be at least 1", slug="steps-below-one")
        if not all(weight >= 0 for weight in self.weights):
            raise UserError(f"weights are {list(self.weights)}, but must be at least 0", slug="weight-negative")


def evaluate_detector(
    classifier: Classifier,
    dataset: Dataset,
    calibration: Dataset,
    threat_model: ThreatModel,
    settings: DetectorSettings = DetectorSettings(),
    **overrides: Any,
) -> DetectorEvaluation:
    """Evaluate the feature-squeezing detector in front of a classifier on every image of a dataset.

    calibration: other clean images, which determine the threshold. overrides: fields of `DetectorSettings`.

    The non-adaptive attack is PGD on the classifier alone. The adaptive one ascends the loss minus a weight times the
    excess of the detector's score over the threshold, once for every weight. A point counts only if the classifier
    itself verifies it: in ball and box, misclassified, accepted. Everything runs on the classifier's device. Where the
    threshold is nearly 0 and the squeezer quantizes, the adaptive result is a loose upper bound: the gradient of a
    straight-through estimator rarely leads to points that quantization leaves unchanged.

    Raises UserError like `calibrate`, for a threat model with a target, and where calibration and evaluation share
    images; TypeError for an unknown keyword.
    """
    settings = with_overrides(settings, overrides, "evaluate_detector")
    if threat_model.target is not None:
        raise UserError("a detector is evaluated with untargeted attacks: leave out the target", slug="detector-target")
    if (calibration.name, calibration.split) == (dataset.name, dataset.split) and bool(
        torch.isin(calibration.indices, dataset.indices).any()
    ):
        raise UserError(
            f"some images of {dataset.name} ({dataset.split}) are used for both calibration and evaluation: choose "
            "disjoint sets",
            slug="calibration-images-reused",
        )
    device = next(classifier.parameters(), torch.empty(0)).device
    model = Metered(classifier)  # passes copies of the images, so that the model may work in place
    tallies = []
    with full_precision(device):
        clean = calibration.images(range(len(calibration))).to(device)
        detector = calibrate(model, clean, settings.squeezers, settings.fpr, batch_size=settings.batch_size)
        for positions in torch.arange(len(dataset)).split(settings.batch_size):
            samples = _Samples(
                dataset.images(positions).to(device),
                dataset.labels[positions].to(device),
                dataset.indices[positions].to(device),
            )
            tallies.append(_attack(detector, threat_model, samples, settings))
    return _summarize(detector.threshold, _Tally(*map(torch.cat, zip(*tallies, strict=True))))


class _Samples(NamedTuple):
    """images: float [rows, channels, height, width]. labels, indices: int64 [rows]."""

    images: Tensor
    labels: Tensor
    indices: Tensor

    def rows(self, rows: Tensor) -> _Samples:
        return _Samples(*(each[rows] for each in self))


class _Tally(NamedTuple):
    """What is known of every image, bool [rows] each.

    rejected: as a clean image. correct: correctly classified and accepted as a clean image. misclassified: an attack
    found a misclassified point. evaded: an attack found one that is accepted as well.
    """

    rejected: Tensor
    correct: Tensor
    misclassified_non_adaptive: Tensor
    evaded_non_adaptive: Tensor
    misclassified_adaptive: Tensor
    evaded_adaptive: Tensor


def _attack(detector: Detector, threat_model: ThreatModel, samples: _Samples, settings: DetectorSettings) -> _Tally:
    """Run the non-adaptive attack, then the adaptive one once for every weight on the images that it has not evaded."""
    with torch.no_grad():
        logits = detector.classifier(samples.images)
        rejected = detector.score(samples.images, logits) > detector.threshold
    correct = (threat_model.margin(logits, samples.labels) >= 0) & ~rejected
    misclassified, evaded = torch.zeros_like(correct), torch.zeros_like(correct)
    remaining = correct.nonzero().squeeze(1)
    if len(remaining):
        targets = samples.rows(remaining)
        points = pgd(
            detector.classifier,
            targets.images,
            targets.labels,
            threat_model,
            steps=settings.steps,
            loss=LOSS,
            seed=settings.seed,
            indices=targets.indices,
        )
        misclassified[remaining], evaded[remaining] = verify(detector, threat_model, *targets[:2], points)
    non_adaptive = misclassified.clone(), evaded.clone()
    for weight in settings.weights:
        remaining = (correct & ~evaded).nonzero().squeeze(1)
        if not len(remaining):
            break
        targets = samples.rows(remaining)
        keys = sample_keys(settings.seed, targets.indices, f"detector:weight={weight}", 0)
        for points in adaptive_points(detector, threat_model, *targets[:2], keys, weight, settings.steps):
            wrong, accepted = verify(detector, threat_model, *targets[:2], points)
            misclassified[remaining] |= wrong
            evaded[remaining] |= accepted
    return _Tally(rejected, correct, *non_adaptive, misclassified, evaded)


def adaptive_points(
    detector: Detector,
    threat_model: ThreatModel,
    images: Tensor,
    labels: Tensor,
    keys: Tensor,
    weight: float,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """PGD that ascends the loss minus the weighted excess of the detector's score over the threshold.

    images: float [rows, ...]. labels, keys: int64 [rows]. Step sizes fall from 2 · eps.
    Returns for every image the misclassified point with the lowest score, and the last misclassified point; the image
    itself where no point was misclassified.
    """
    lowest_score = torch.full_like(labels, math.inf, dtype=torch.float32)
    best = last = images

    def objective(points: Tensor) -> Tensor:
        nonlocal lowest_score, best, last
        logits = detector.classifier(points)
        excess = detector.score(points, logits) - detector.threshold
        misclassified = threat_model.margin(logits.detach(), labels) < 0
        score = torch.where(misclassified, excess.detach(), math.inf)
        better = score < lowest_score
        best = torch.where(expand_rows(better, points), points.detach(), best)
        lowest_score = torch.where(better, score, lowest_score)
        last = torch.where(expand_rows(misclassified, points), points.detach(), last)
        return threat_model.attack_loss(LOSS, logits, labels) - weight * excess.clamp_min(0)

    noise = threat_model.geometry.random_start(images, threat_model.eps, keys)
    start = threat_model.project(images + noise, images)
    end = ascend(objective, start, images, threat_model, cosine_step_sizes(2 * threat_model.eps, steps))
    with torch.no_grad():
        objective(end)
    return best, last


@torch.no_grad()
def verify(
    detector: Detector, threat_model: ThreatModel, images: Tensor, labels: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    """Return which points are valid and misclassified, and which of those are accepted as well, bool [rows] each.

    images, points: float [rows, ...]. labels: int64 [rows].
    """
    low, high = threat_model.box
    valid = threat_model.geometry.distance(to_float64(points) - to_float64(images)) <= threat_model.eps + ROUNDING
    valid &= ((points >= low) & (points <= high)).flatten(1).all(1)
    logits = detector.classifier(points)
    misclassified = valid & (threat_model.margin(logits, labels) < 0)
    return misclassified, misclassified & (detector.score(points, logits) <= detector.threshold)


def _summarize(threshold: float, tally: _Tally) -> DetectorEvaluation:
    n = len(tally.correct)

    def rate(mask: Tensor) -> Accuracy:
        return Accuracy.of(int(mask.sum()), n)

    def detected(misclassified: Tensor, evaded: Tensor) -> Accuracy | None:
        if not misclassified.any():
            return None
        return Accuracy.of(int((misclassified & ~evaded).sum()), int(misclassified.sum()))

    return DetectorEvaluation(
        threshold=threshold,
        n=n,
        clean_accuracy=rate(tally.correct),
        false_positives=rate(tally.rejected),
        robust_accuracy_non_adaptive=rate(tally.correct & ~tally.evaded_non_adaptive),
        robust_accuracy_adaptive=rate(tally.correct & ~tally.evaded_adaptive),
        detected_non_adaptive=detected(tally.misclassified_non_adaptive, tally.evaded_non_adaptive),
        detected_adaptive=detected(tally.misclassified_adaptive, tally.evaded_adaptive),
    )
