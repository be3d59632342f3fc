"""What is looked at before a single attack: does this model take these images, and can its answers be attacked?

What cannot be worked with stops the run with one sentence; what can is adapted to and recorded.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustbench_local.attacks.losses import LOSSES
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.data.dataset import Dataset
from robustbench_local.errors import UserError
from robustbench_local.metering import Metered, ModelFailure
from robustbench_local.models.classifier import Classifier
from robustbench_local.result import AttackReport, Diagnostic
from robustbench_local.statistics import exact_bounds

PROBE = 32
"""How many images the checks look at."""
GRADIENTS = "gradients reach the input"
DETERMINISTIC = "forward is deterministic"
TOLERANCE = 1e-4
"""Relative difference of logits that float32 arithmetic explains."""


class Preflight(NamedTuple):
    classes: int
    findings: list[Diagnostic]


def preflight(model: Metered, dataset: Dataset, threat_model: ThreatModel, device: torch.device) -> Preflight:
    """Check classifier and data; may switch the classifier to `probabilities`.

    Raises UserError when they cannot be evaluated together.
    """
    _require_pixels(dataset)
    _require_finite_weights(model.model)
    positions = torch.arange(len(dataset))[:: max(1, len(dataset) // PROBE)][:PROBE]
    images, labels = dataset.images(positions).to(device).clamp(0, 1), dataset.labels[positions].to(device)
    logits = _first_logits(model, images, dataset)
    classes = _require_classes(logits, dataset, threat_model)
    findings = [_logits_or_probabilities(model.model, logits)]
    with torch.no_grad():
        together = model(images)
        findings.append(_deterministic(together, model(images)))
        findings.append(_batch_independent(model, images[:4], together[:4], random=findings[-1].status == "warn"))
    findings.append(_gradients(model, images, labels))
    return Preflight(classes, findings)


def _require_pixels(dataset: Dataset) -> None:
    low, high = dataset.raw_range
    if low >= -TOLERANCE and high <= 1 + TOLERANCE:
        return
    found = f"{dataset.name} holds values from {low:.4g} to {high:.4g}, but images must be in [0, 1]"
    if low >= 0 and high <= 255:
        raise UserError(f"{found}: these look like grey levels, so divide them by 255 or store them as uint8")
    raise UserError(
        f"{found}: these look normalised, so store them before normalisation and give the mean and "
        "standard deviation with --normalize instead; eps then keeps its meaning in pixels"
    )


def _require_finite_weights(classifier: Classifier) -> None:
    for name, tensor in classifier.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"weight {name!r} of {classifier.name} holds NaN or infinity: the checkpoint is damaged or its "
                "training diverged; use another one"
            )


def _first_logits(model: Metered, images: Tensor, dataset: Dataset) -> Tensor:
    classifier = model.model
    shape = "×".join(map(str, images.shape[1:]))
    takes = _input_channels(classifier)
    if takes is not None and takes != images.shape[1]:
        raise UserError(
            f"{classifier.name} takes images of {takes} channel{'s' * (takes != 1)}, but those of {dataset.name} have "
            f"{images.shape[1]} ({shape}): give data of the kind that the model was trained on"
        )
    try:
        with torch.no_grad():
            logits = model(images)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the device has not enough memory for {len(images)} images of {shape}: use a larger one ({error})"
        ) from None
    except ModelFailure as failure:
        mend = "let its forward take float32, for one by .float()" if "dtype" in failure.reason else (
            "check --arch, --data and --resize"
        )
        raise UserError(
            f"{classifier.name} cannot take the {shape} images of {dataset.name} ({failure.reason}): {mend}"
        ) from None
    if len(logits) != len(images):
        raise UserError(
            f"{classifier.name} gave {len(logits)} rows of logits for {len(images)} images: its forward must return "
            "one row for each"
        )
    if not torch.isfinite(logits).all():
        raise UserError(f"{classifier.name} gives NaN or infinite logits on {dataset.name}: it cannot be evaluated")
    return logits


def _input_channels(classifier: Classifier) -> int | None:
    """The channels that the first convolution takes, where the model begins with one."""
    if classifier.input_shape is not None:
        return classifier.input_shape[0]
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if isinstance(module, nn.Linear):
            return None
    return None


def _require_classes(logits: Tensor, dataset: Dataset, threat_model: ThreatModel) -> int:
    classes = logits.shape[1]
    if classes < 2:
        raise UserError("the model has a single output: give it one logit per class, at least two")
    highest = int(dataset.labels.max())
    if highest >= classes:
        raise UserError(
            f"{dataset.name} has label {highest}, but the model knows {classes} classes (labels 0 to {classes - 1}): "
            "give the data set that the model was trained on, or labels that start at 0"
        )
    for role, chosen in (("target", threat_model.target), ("source", threat_model.source)):
        if chosen is not None and not 0 <= chosen < classes:
            raise UserError(f"the {role} class is {chosen}, but the model's classes are 0 to {classes - 1}")
    return classes


def _logits_or_probabilities(classifier: Classifier, logits: Tensor) -> Diagnostic:
    check = "outputs are logits"
    if classifier.probabilities:
        return Diagnostic(check=check, status="warn", value="probabilities", advice="attacked on their logarithm")
    sums_to_one = bool(((logits.sum(1) - 1).abs() < 1e-3).all())
    if sums_to_one and bool((logits >= 0).all()):
        classifier.probabilities = True
        return Diagnostic(
            check=check, status="warn", value="probabilities",
            advice="the model ends in a softmax, whose gradients vanish where it is sure: attacked on the logarithm of "
            "its outputs; returning logits from its forward is better",
        )
    return Diagnostic(check=check, status="pass", value="logits")


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest difference of logits, relative to the largest logit."""
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))


def _deterministic(once: Tensor, again: Tensor) -> Diagnostic:
    difference = _difference(once, again)
    return Diagnostic(
        check=DETERMINISTIC, status="warn" if difference > TOLERANCE else "pass", value=difference,
        threshold=TOLERANCE,
        advice="the same images gave other logits the second time (dropout or noise in forward?): one verdict per "
        "sample means little; switch the randomness off" if difference > TOLERANCE else "",
    )


def _batch_independent(model: Metered, images: Tensor, together: Tensor, *, random: bool) -> Diagnostic:
    check, threshold = "samples do not influence each other", 10 * TOLERANCE
    if random:
        return Diagnostic(check=check, status="skipped", advice="cannot be told of a model that is random")
    try:
        difference = _difference(together, torch.cat([model(image[None]) for image in images]))
    except ModelFailure:
        difference = 1.0  # batch norm over a single image refuses it
    return Diagnostic(
        check=check, status="warn" if difference > threshold else "pass", value=difference, threshold=threshold,
        advice="an image's logits depend on its batch (batch norm that uses batch statistics?): put the model into "
        "eval mode in its own code" if difference > threshold else "",
    )


def _gradients(model: Metered, images: Tensor, labels: Tensor) -> Diagnostic:
    """The share of images at which some loss has no gradient at all, or one that is not finite."""
    points = images.clone().requires_grad_(True)
    with torch.enable_grad():
        logits = model(points)
    check = GRADIENTS
    if not logits.requires_grad:
        return Diagnostic(
            check=check, status="warn", value=1.0, threshold=0.0,
            advice="no gradient flows from the logits to the image (a detached or non-differentiable layer): gradient "
            "attacks are blind here and the robust accuracy is an overestimate",
        )
    missing = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for loss in (LOSSES["ce"], LOSSES["margin"], LOSSES["scaled-ce"]):
        with torch.enable_grad():
            total = loss(logits, labels).sum()
        gradient = torch.autograd.grad(total, points, retain_graph=True, allow_unused=True)[0]
        flat = torch.zeros_like(points).flatten(1) if gradient is None else gradient.flatten(1)
        missing |= (flat == 0).all(1) | ~torch.isfinite(flat).all(1)
    share = float(missing.float().mean())
    return Diagnostic(
        check=check, status="warn" if share > 0 else "pass", value=share, threshold=0.0,
        advice="at this share of images a loss has a zero or non-finite gradient (saturated outputs?): gradient "
        "attacks are weak there and the robust accuracy may be an overestimate" if share > 0 else "",
    )


def after_attacks(reports: list[AttackReport], not_numbers: int) -> list[Diagnostic]:
    """What the search itself says about how far its outcome can be believed."""
    unconfirmed = sum(report.unconfirmed for report in reports)
    return [
        Diagnostic(
            check="successes of the search are confirmed", status="warn" if unconfirmed else "pass",
            value=float(unconfirmed), threshold=0.0,
            advice="the model answered otherwise when it was asked again about so many successes (random, or dependent "
            "on the batch?): they count as robust, so the robust accuracy may be an overestimate" * bool(unconfirmed),
        ),
        Diagnostic(
            check="logits are numbers under attack", status="warn" if not_numbers else "pass",
            value=float(not_numbers), threshold=0.0,
            advice="at so many points the model gave NaN: without a target they count as fooled" * bool(not_numbers),
        ),
    ]


def accuracy_is_plausible(
    model: Metered, dataset: Dataset, correct: Tensor, classes: int, device: torch.device
) -> Diagnostic:
    """After the clean pass: better than guessing, and not much better under another normalisation.

    correct: bool [samples].
    """
    n, right = len(correct), int(correct.sum())
    advice = "" if right / n > 0.9 else _better_normalization(model, dataset, correct, device)
    if not advice and right < n and exact_bounds(right, n)[0] <= 1 / classes:
        advice = "no better than guessing: check the order of labels and channels, the normalisation and the weights"
    return Diagnostic(
        check="clean accuracy is above chance", status="warn" if advice else "pass", value=right / n,
        threshold=1 / classes, advice=advice,
    )


@torch.no_grad()
def _better_normalization(
    model: Metered, dataset: Dataset, correct: Tensor, device: torch.device
) -> str:
    """Advice to give --normalize, where a usual normalisation is right on clearly more of the first images."""
    from robustbench_local.models import parse_normalization

    if model.model.normalization is not None:
        return ""
    positions = torch.arange(len(dataset))[:: max(1, len(dataset) // 256)][:256]
    images, labels = dataset.images(positions), dataset.labels[positions]
    now, found = int(correct[positions].sum()), {}
    for name in ("imagenet", "cifar10", "0.5:0.5"):
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in parse_normalization(name) or ())
        if len(mean) in (1, images.shape[1]):
            batches = [model((part.to(device) - mean) / std).argmax(1).cpu() for part in images.split(PROBE)]
            found[int((torch.cat(batches) == labels).sum())] = name
    best = max(found, default=0)
    if best - now <= 0.05 * len(positions) or exact_bounds(best, len(positions), 0.001)[0] <= now / len(positions):
        return ""
    return (
        f"with --normalize {found[best]} it is right on {best} of {len(positions)} images instead of {now}: the "
        "model seems to expect normalised input"
    )
