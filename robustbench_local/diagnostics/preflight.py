"""Checks before the first attack: whether the model takes these images, and attacks can use its gradients.

What makes an evaluation impossible stops the run with one sentence; everything else becomes a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from robustbench_local.attacks.backward_errors import input_gradient
from robustbench_local.attacks.losses import LOSSES
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.data.dataset import Dataset
from robustbench_local.diagnostics.gradient_flow import GradientTrace, trace_gradients
from robustbench_local.diagnostics.model_output import choose_output
from robustbench_local.errors import UserError
from robustbench_local.models.classifier import Classifier
from robustbench_local.models.metered import Metered, ModelFailure
from robustbench_local.results import checks
from robustbench_local.results.schema import Diagnostic
from robustbench_local.runtime.device import BatchSize, is_out_of_memory

PROBE_IMAGES = 32
"""Images that the checks use."""
TOLERANCE = 1e-4
"""Relative difference of logits that float32 rounding explains."""
PASSES = 5
"""How often the same images are classified to see whether the model is random, as in AutoAttack's checks."""
TRACED_IMAGES = 4
"""Images of the checks that need a pass for every layer or for every image."""


class Preflight(NamedTuple):
    """What the preflight has found.

    layers: names of the layers that stop gradients. fits: how many images the device can process at a time, up to
    `PROBE_IMAGES`. doubts: slugs of the checks that passed but saw what calls for adaptive attacks; only where these
    find more is it a warning.
    """

    classes: int
    findings: list[Diagnostic]
    layers: tuple[str, ...]
    fits: int
    doubts: tuple[str, ...] = ()


def probe_images(dataset: Dataset, count: int = PROBE_IMAGES) -> Tensor:
    """Positions from all over the dataset, int64 [at most count]."""
    return torch.arange(len(dataset))[:: max(1, len(dataset) // count)][:count]


def first_images(dataset: Dataset, device: torch.device) -> Tensor:
    """A few images from all over the dataset, float [at most PROBE_IMAGES, ...]."""
    return dataset.images(probe_images(dataset)).to(device)


def preflight(model: Metered, dataset: Dataset, threat_model: ThreatModel, device: torch.device) -> Preflight:
    """Check classifier and data.

    Sets the classifier's `probabilities` where it returns probabilities, and `output` where it returns several tensors.
    Raises UserError when they cannot be evaluated together.
    """
    _require_box(dataset, threat_model)
    _require_finite_weights(model.model)
    size = BatchSize(PROBE_IMAGES)
    while True:
        try:
            return _check(model, dataset, threat_model, device, size.value)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        size.halve(device)


def _check(model: Metered, dataset: Dataset, threat_model: ThreatModel, device: torch.device, count: int) -> Preflight:
    positions = probe_images(dataset)[:count]
    images, labels = dataset.images(positions).to(device), dataset.labels[positions].to(device)
    output = choose_output(model, images, labels, dataset)
    logits = _first_logits(model, images, dataset)
    _require_finite_logits(model.model, logits, dataset, positions)
    classes = _require_classes(logits, dataset, threat_model)
    findings = [
        _image_range(dataset),
        _class_count(classes, model.model),
        _logits_or_probabilities(model.model, logits),
        *([output] if output else []),
    ]
    with torch.no_grad():
        passes = torch.stack([model(images) for _ in range(PASSES)])
    deterministic = _deterministic(passes)
    few, few_logits = images[:TRACED_IMAGES], passes[0, :TRACED_IMAGES]
    findings += [deterministic, _batch_independent(model, few, few_logits, random=deterministic.status == "warn")]
    trace = trace_gradients(model, few)
    gradients = _gradients(model, images, labels, trace)
    layers = _layers(trace, missing=gradients.status == "warn")
    findings += [_eval_mode(trace), _no_optimization(trace), gradients, layers]
    doubts = (checks.GRADIENTS,) if gradients.status == "pass" and gradients.value else ()
    return Preflight(classes, findings, tuple(trace.stops), count, doubts)


# What stops the run.


def _require_box(dataset: Dataset, threat_model: ThreatModel) -> None:
    (low, high), (lowest, highest) = dataset.raw_range, threat_model.box
    if max(low, 0.0) < lowest or min(high, 1.0) > highest:
        raise UserError(
            f"the images of {dataset.name} have pixels from {low:.4g} to {high:.4g}, but the threat model's box is "
            f"[{lowest:g}, {highest:g}]: choose a box that contains every image",
            slug="images-outside-box",
        )


def _require_finite_weights(classifier: Classifier) -> None:
    for name, tensor in classifier.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"weight {name!r} of {classifier.name} contains NaN or infinity: the checkpoint is damaged or its "
                "training diverged; use another checkpoint",
                slug="weights-not-finite",
            )


def _first_logits(model: Metered, images: Tensor, dataset: Dataset) -> Tensor:
    classifier = model.model
    try:
        with torch.no_grad():
            logits: Tensor = model(images)
    except ModelFailure as failure:
        raise _cannot_classify(classifier, images, dataset, failure.reason) from None
    if len(logits) != len(images):
        raise UserError(
            f"{classifier.name} returned {len(logits)} rows of logits for {len(images)} images: its forward must "
            "return one row per image",
            slug="logits-wrong-rows",
        )
    return logits


def _cannot_classify(classifier: Classifier, images: Tensor, dataset: Dataset, reason: str) -> UserError:
    shape = "×".join(map(str, images.shape[1:]))
    channels = _input_channels(classifier)
    if channels is not None and channels != images.shape[1]:
        return UserError(
            f"{classifier.name} takes images with {channels} channel{'s' * (channels != 1)}, but those of "
            f"{dataset.name} have {images.shape[1]} ({shape}): choose data like the model's training data",
            slug="wrong-channels",
        )
    other_dtypes = {tensor.dtype for tensor in classifier.parameters() if tensor.is_floating_point()} - {torch.float32}
    if other_dtypes:
        dtypes = ", ".join(sorted(map(str, other_dtypes)))
        return UserError(
            f"{classifier.name} has {dtypes} weights and cannot classify the float32 images of {dataset.name} "
            f"({reason}): convert it to float32 with .float(), or convert the images in its forward",
            slug="wrong-dtype",
        )
    return UserError(
        f"{classifier.name} cannot classify the {shape} images of {dataset.name} ({reason}): check --arch, --data and "
        "--resize",
        slug="images-not-classifiable",
    )


def _input_channels(classifier: Classifier) -> int | None:
    """The number of input channels, if the model declares it or its first layer is a convolution."""
    if classifier.input_shape is not None:
        return classifier.input_shape[0]
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if isinstance(module, nn.Linear):
            return None
    return None


def _require_finite_logits(classifier: Classifier, logits: Tensor, dataset: Dataset, positions: Tensor) -> None:
    broken = (~torch.isfinite(logits)).any(1).cpu()
    if broken.any():
        raise UserError(
            f"{classifier.name} returns NaN or infinite logits for sample {int(dataset.indices[positions[broken][0]])} "
            f"of {dataset.name}: leave that sample out, or fix the model",
            slug="logits-not-finite",
        )


def _require_classes(logits: Tensor, dataset: Dataset, threat_model: ThreatModel) -> int:
    classes = logits.shape[1]
    least = 2 if threat_model.reject is None else 3
    if classes < least:
        raise UserError(
            f"the model has {classes} classes, but an attack needs at least {least}, a reject class included",
            slug="too-few-classes",
        )
    highest = int(dataset.labels.max())
    if highest >= classes:
        raise UserError(
            f"{dataset.name} has label {highest}, but the model has {classes} classes (labels 0 to {classes - 1}): "
            "choose the dataset that the model was trained on, or labels that start at 0",
            slug="label-out-of-range",
        )
    if threat_model.reject is not None and bool((dataset.labels == threat_model.reject).any()):
        raise UserError(
            f"class {threat_model.reject} means that an image is rejected, but {dataset.name} has images of it: choose "
            "the class that no image belongs to",
            slug="reject-class-in-data",
        )
    special_classes = ("target", threat_model.target), ("source", threat_model.source), ("reject", threat_model.reject)
    for role, label in special_classes:
        if label is not None and not 0 <= label < classes:
            raise UserError(
                f"the {role} class is {label}, but the model's classes are 0 to {classes - 1}", slug="unknown-class"
            )
    return classes


# What becomes a finding.


def _image_range(dataset: Dataset) -> Diagnostic:
    low, high = dataset.raw_range
    return Diagnostic(slug=checks.IMAGE_RANGE, status="pass", value=f"from {low:.3g} to {high:.3g}")


def _class_count(classes: int, classifier: Classifier) -> Diagnostic:
    """Every loss is defined for any number of classes, so few classes are mentioned and are no warning."""
    notes = {2: "dlr equals the margin here, and there is one wrong class", 3: "targeted dlr equals the margin here"}
    advice = notes.get(classes, "")
    if classifier.single_output:
        advice = f"the model has one output z, so it is binary: its two classes have the logits 0 and z; {advice}"
    return Diagnostic(slug=checks.CLASS_COUNT, status="pass", value=float(classes), threshold=2.0, advice=advice)


def _logits_or_probabilities(classifier: Classifier, logits: Tensor) -> Diagnostic:
    softmax = bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all())
    # As logits, outputs from 0 to 1 would assign every image to class 1.
    sigmoid = classifier.single_output and bool(((logits[:, 1] >= 0) & (logits[:, 1] <= 1)).all())
    advice = ""
    if classifier.probabilities:
        advice = "attacks use the logarithm of the outputs"
    elif sigmoid or softmax:
        classifier.probabilities = True
        advice = (
            f"the model ends in a {'sigmoid' if sigmoid else 'softmax'}, whose gradient vanishes where the model is "
            "confident: attacks use the logarithm of the outputs; it is better to return logits"
        )
    return Diagnostic(
        slug=checks.LOGITS,
        status="warn" if advice else "pass",
        value="probabilities" if advice else "logits",
        advice=advice,
    )


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of logits, relative to the largest logit."""
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))


def _deterministic(passes: Tensor) -> Diagnostic:
    """passes: float [passes, rows, classes], the logits of the same images."""
    difference = max(_difference(passes[0], again) for again in passes[1:])
    return Diagnostic(
        slug=checks.DETERMINISTIC,
        status="warn" if difference > TOLERANCE else "pass",
        value=difference,
        threshold=TOLERANCE,
        n=passes.shape[1],
        advice="the same images got different logits (dropout or noise in forward?): one prediction per sample means "
        "little, and attacks have to average over several draws (EOT); switch the randomness off"
        if difference > TOLERANCE
        else "",
    )


def _batch_independent(model: Metered, images: Tensor, batch_logits: Tensor, *, random: bool) -> Diagnostic:
    """batch_logits: of these images in one batch, float [rows, classes]."""
    slug, threshold = checks.BATCH_INDEPENDENT, 10 * TOLERANCE
    if random:
        return Diagnostic(slug=slug, status="skipped", advice="cannot be measured for a random model")
    try:
        difference = _difference(batch_logits, torch.cat([model(image[None]) for image in images]))
    except ModelFailure:
        difference = 1.0  # batch norm in train mode refuses a single image
    return Diagnostic(
        slug=slug,
        status="warn" if difference > threshold else "pass",
        value=difference,
        threshold=threshold,
        advice="the logits of an image depend on its batch (batch norm in train mode?): put the model into eval mode "
        "in its own code"
        if difference > threshold
        else "",
    )


def _eval_mode(trace: GradientTrace) -> Diagnostic:
    names = ", ".join(dict.fromkeys(trace.training))
    return Diagnostic(
        slug=checks.EVAL_MODE,
        status="warn" if names else "pass",
        value=names or "all",
        advice="these layers run in train mode, so dropout and batch norm behave as in training: do not call train() "
        "in forward"
        if names
        else "",
    )


def _no_optimization(trace: GradientTrace) -> Diagnostic:
    calls = ", ".join(dict.fromkeys(trace.differentiates))
    return Diagnostic(
        slug=checks.NO_TEST_TIME_OPTIMIZATION,
        status="warn" if calls else "pass",
        value=calls or "nothing",
        advice="the model differentiates or optimizes in its forward, so gradients describe one step of a moving "
        "defense: attack its parts without that step too"
        if calls
        else "",
    )


def _gradients(model: Metered, images: Tensor, labels: Tensor, trace: GradientTrace) -> Diagnostic:
    """The share of images for which the gradient of some loss is 0 or not finite.

    The first indicator of Pintor et al., "Indicators of attack failure" (NeurIPS 2022). Every suite uses losses that no
    softmax saturates. So a cross-entropy that alone has no gradient is no warning, though its share is the value.
    """
    points = images.clone().requires_grad_(True)
    with torch.enable_grad():
        logits = model(points)
    if not logits.requires_grad:
        causes = f" ({trace.description})" if trace.description else ""
        return _gradient_finding(
            1.0, len(images), f"the logits pass no gradient to the image{causes}: gradient attacks are blind"
        )
    saturated, margin, scaled = (
        _without_gradient(LOSSES[loss], logits, labels, points) for loss in ("ce", "margin", "scaled-ce")
    )
    missing = margin | scaled
    if not missing.any() and saturated.any():
        return Diagnostic(
            slug=checks.GRADIENTS,
            status="pass",
            value=float(saturated.float().mean()),
            n=len(images),
            advice="the gradient of the cross-entropy is 0 for this share of the images, because softmax saturates; "
            "the margin and the scaled cross-entropy, which the suites use, have gradients",
        )
    share = float(missing.float().mean())
    causes = f" ({trace.description or 'saturated outputs?'})"
    advice = (
        f"for {share:.0%} of {len(images)} images the gradient of a loss is 0 or not finite{causes}: gradient attacks "
        "are weak there"
    )
    return _gradient_finding(share, len(images), advice if share else "")


def _gradient_finding(share: float, n: int, advice: str) -> Diagnostic:
    status: Literal["warn", "pass"] = "warn" if advice else "pass"
    return Diagnostic(slug=checks.GRADIENTS, status=status, value=share, threshold=0.0, n=n, advice=advice)


def _without_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor, points: Tensor
) -> Tensor:
    """Whether the gradient of the loss at each point is 0 or not finite, bool [rows]."""
    with torch.enable_grad():
        total = loss(logits, labels).sum()
    gradient = input_gradient(total, points, retain_graph=True)
    flat = torch.zeros_like(points).flatten(1) if gradient is None else gradient.flatten(1)
    return (flat == 0).all(1) | ~torch.isfinite(flat).all(1)


def _layers(trace: GradientTrace, *, missing: bool) -> Diagnostic:
    """Which layers stop gradients.

    Piecewise constant and detaching functions beside the path to the logits are harmless. So without a layer that stops
    gradients, they count only where gradients are missing.
    """
    causes = trace.description if trace.stops or missing else ""
    return Diagnostic(
        slug=checks.LAYERS,
        status="warn" if causes else "pass",
        value=causes or "all",
        advice=f"gradients stop here: {causes}. This hides adversarial examples from gradient attacks but does not "
        "remove them: attacks need a surrogate gradient there (BPDA)"
        if causes
        else "",
    )
