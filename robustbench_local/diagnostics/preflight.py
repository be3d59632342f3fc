"""What is looked at before a single attack: does this model take these images, and can its answers be attacked?

What cannot be worked with stops the run with one sentence; what can is adapted to and recorded.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustbench_local.attacks.backward_errors import input_gradient
from robustbench_local.attacks.losses import LOSSES
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.data.dataset import Dataset
from robustbench_local.diagnostics.gradient_flow import GradientTrace, trace
from robustbench_local.errors import UserError
from robustbench_local.models.classifier import Classifier
from robustbench_local.models.metered import Metered, ModelFailure
from robustbench_local.results.checks import (
    BATCH_INDEPENDENT,
    CLASS_COUNT,
    DETERMINISTIC,
    EVAL_MODE,
    GRADIENTS,
    IMAGE_RANGE,
    LAYERS,
    LOGITS,
    NO_TEST_TIME_OPTIMIZATION,
)
from robustbench_local.results.schema import Diagnostic
from robustbench_local.runtime.device import BatchSize, is_out_of_memory

PROBE = 32
"""How many images the checks look at."""
TOLERANCE = 1e-4
"""Relative difference of logits that float32 arithmetic explains."""
PASSES = 5
"""How often the same images are passed through to see whether the model is random (AutoAttack's checks do as many)."""


class Preflight(NamedTuple):
    """layers: those through which no gradient comes, by name. fits: how many images, of those that are tried, the
    device takes at a time.
    """

    classes: int
    findings: list[Diagnostic]
    layers: tuple[str, ...]
    fits: int


def probe_images(dataset: Dataset, count: int = PROBE) -> Tensor:
    """Positions from all over the data set, int64 [at most count], to try things on."""
    return torch.arange(len(dataset))[:: max(1, len(dataset) // count)][:count]


def first_images(dataset: Dataset, device: torch.device) -> Tensor:
    """A few images from all over the data set, float [at most 32, ...], to try things on."""
    return dataset.images(probe_images(dataset)).to(device)


def preflight(model: Metered, dataset: Dataset, threat_model: ThreatModel, device: torch.device) -> Preflight:
    """Check classifier and data; may switch the classifier to `probabilities`.

    Raises UserError when they cannot be evaluated together.
    """
    _require_box(dataset, threat_model)
    _require_finite_weights(model.model)
    size = BatchSize(PROBE)
    while True:
        try:
            return _preflight(model, dataset, threat_model, device, size.value)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        size.halve(device)


def _preflight(
    model: Metered, dataset: Dataset, threat_model: ThreatModel, device: torch.device, count: int
) -> Preflight:
    positions = probe_images(dataset)[:count]
    images, labels = dataset.images(positions).to(device), dataset.labels[positions].to(device)
    logits = _first_logits(model, images, dataset)
    if (broken := (~torch.isfinite(logits)).any(1).cpu()).any():
        raise UserError(
            f"{model.model.name} gives NaN or infinite logits for sample {int(dataset.indices[positions[broken][0]])} "
            f"of {dataset.name}: leave that sample out, or mend the model"
        )
    classes = _require_classes(logits, dataset, threat_model)
    findings = [_pixels(dataset), _classes(classes, model.model), _logits_or_probabilities(model.model, logits)]
    with torch.no_grad():
        passes = torch.stack([model(images) for _ in range(PASSES)])
    findings.append(_deterministic(passes))
    findings.append(_batch_independent(model, images[:4], passes[0, :4], random=findings[-1].status == "warn"))
    traced = trace(model, images[:4])
    gradients = _gradients(model, images, labels, traced)
    findings += [_modes(traced), _dynamic(traced), gradients, _layers(traced, missing=gradients.status == "warn")]
    return Preflight(classes, findings, tuple(traced.stops), count)


def _pixels(dataset: Dataset) -> Diagnostic:
    low, high = dataset.raw_range
    return Diagnostic(slug=IMAGE_RANGE, status="pass", value=f"from {low:.3g} to {high:.3g}")


def _classes(classes: int, classifier: Classifier) -> Diagnostic:
    """Every loss is defined for any number of classes, so few are said, not doubted."""
    told = {2: "dlr is the margin here, and there is one class to steer to", 3: "targeted dlr is the margin here"}
    advice = told.get(classes, "")
    if classifier.single_output:
        advice = f"the model has one output z, so it is binary: its two classes have the logits 0 and z; {advice}"
    return Diagnostic(slug=CLASS_COUNT, status="pass", value=float(classes), threshold=2.0, advice=advice)


def _modes(traced: GradientTrace) -> Diagnostic:
    names = ", ".join(dict.fromkeys(traced.training))
    return Diagnostic(
        slug=EVAL_MODE,
        status="warn" if names else "pass",
        value=names or "all",
        advice="these layers are in train mode while they run, so dropout and batch norm work as in training: do not "
        "call train() in forward"
        if names
        else "",
    )


def _dynamic(traced: GradientTrace) -> Diagnostic:
    calls = ", ".join(dict.fromkeys(traced.differentiates))
    return Diagnostic(
        slug=NO_TEST_TIME_OPTIMIZATION,
        status="warn" if calls else "pass",
        value=calls or "nothing",
        advice="the model differentiates or optimises while it answers, so the attacks' gradients see one step of a "
        "moving defense: attack its parts without that too"
        if calls
        else "",
    )


def _layers(traced: GradientTrace, *, missing: bool) -> Diagnostic:
    """Which layers stop gradients, where some do. Staircases and detachings beside the path to the logits do no harm,
    so without a layer that stops them these count only where gradients are missing.
    """
    told = traced.description if traced.stops or missing else ""
    return Diagnostic(
        slug=LAYERS,
        status="warn" if told else "pass",
        value=told or "all",
        advice=f"gradients end in {told}, which hides the way to adversarial examples and not the examples: it takes "
        "attacks through stand-ins (BPDA) to see past it"
        if told
        else "",
    )


def _require_box(dataset: Dataset, threat_model: ThreatModel) -> None:
    (low, high), (lowest, highest) = dataset.raw_range, threat_model.box
    if max(low, 0.0) < lowest or min(high, 1.0) > highest:
        raise UserError(
            f"the images of {dataset.name} have pixels from {low:.4g} to {high:.4g}, but the threat model's box is "
            f"[{lowest:g}, {highest:g}]: give a box that contains every image",
            slug="images-outside-box",
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
    try:
        with torch.no_grad():
            logits = model(images)
    except ModelFailure as failure:
        takes = _input_channels(classifier)
        if takes is not None and takes != images.shape[1]:
            raise UserError(
                f"{classifier.name} takes images of {takes} channel{'s' * (takes != 1)}, but those of {dataset.name} "
                f"have {images.shape[1]} ({shape}): give data of the kind that the model was trained on"
            ) from None
        mend = (
            "let its forward take float32, for one by .float()"
            if "dtype" in failure.reason
            else ("check --arch, --data and --resize")
        )
        raise UserError(
            f"{classifier.name} cannot take the {shape} images of {dataset.name} ({failure.reason}): {mend}"
        ) from None
    if len(logits) != len(images):
        raise UserError(
            f"{classifier.name} gave {len(logits)} rows of logits for {len(images)} images: its forward must return "
            "one row for each"
        )
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
    if classes < (fewest := 2 + (threat_model.reject is not None)):
        raise UserError(
            f"the model has {classes} classes, but at least {fewest} are needed here: give it one logit per class",
            slug="too-few-classes",
        )
    highest = int(dataset.labels.max())
    if highest >= classes:
        raise UserError(
            f"{dataset.name} has label {highest}, but the model knows {classes} classes (labels 0 to {classes - 1}): "
            "give the data set that the model was trained on, or labels that start at 0"
        )
    if threat_model.reject is not None and bool((dataset.labels == threat_model.reject).any()):
        raise UserError(
            f"class {threat_model.reject} stands for a refusal, but {dataset.name} has images of it: give the class "
            "that no image belongs to"
        )
    chosen_classes = ("target", threat_model.target), ("source", threat_model.source), ("reject", threat_model.reject)
    for role, chosen in chosen_classes:
        if chosen is not None and not 0 <= chosen < classes:
            raise UserError(f"the {role} class is {chosen}, but the model's classes are 0 to {classes - 1}")
    return classes


def _logits_or_probabilities(classifier: Classifier, logits: Tensor) -> Diagnostic:
    slug = LOGITS
    if classifier.probabilities:
        return Diagnostic(slug=slug, status="warn", value="probabilities", advice="attacked on their logarithm")
    sums_to_one = bool(((logits.sum(1) - 1).abs() < 1e-3).all()) and bool((logits >= 0).all())
    # Taken as logits, outputs from 0 to 1 alone would make every image class 1.
    sigmoid = classifier.single_output and bool(((logits[:, 1] >= 0) & (logits[:, 1] <= 1)).all())
    if sigmoid or sums_to_one:
        classifier.probabilities = True
        return Diagnostic(
            slug=slug,
            status="warn",
            value="probabilities",
            advice=f"the model ends in a {'sigmoid' if sigmoid else 'softmax'}, whose gradients vanish where it is "
            "confident: attacked on the logarithm of its outputs; returning logits from its forward is better",
        )
    return Diagnostic(slug=slug, status="pass", value="logits")


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest difference of logits, relative to the largest logit."""
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))


def _deterministic(passes: Tensor) -> Diagnostic:
    """passes: float [passes, rows, classes] of the same images."""
    difference = max(_difference(passes[0], again) for again in passes[1:])
    return Diagnostic(
        slug=DETERMINISTIC,
        status="warn" if difference > TOLERANCE else "pass",
        value=difference,
        threshold=TOLERANCE,
        n=passes.shape[1],
        advice="the same images gave other logits another time (dropout or noise in forward?): one verdict per "
        "sample means little, and attacks average over several draws (EOT); switch the randomness off"
        if difference > TOLERANCE
        else "",
    )


def _batch_independent(model: Metered, images: Tensor, together: Tensor, *, random: bool) -> Diagnostic:
    slug, threshold = BATCH_INDEPENDENT, 10 * TOLERANCE
    if random:
        return Diagnostic(slug=slug, status="skipped", advice="cannot be told of a model that is random")
    try:
        difference = _difference(together, torch.cat([model(image[None]) for image in images]))
    except ModelFailure:
        difference = 1.0  # batch norm over a single image refuses it
    return Diagnostic(
        slug=slug,
        status="warn" if difference > threshold else "pass",
        value=difference,
        threshold=threshold,
        advice="an image's logits depend on its batch (batch norm that uses batch statistics?): put the model into "
        "eval mode in its own code"
        if difference > threshold
        else "",
    )


def _gradients(model: Metered, images: Tensor, labels: Tensor, traced: GradientTrace) -> Diagnostic:
    """The share of images at which some loss has no gradient at all, or one that is not finite: the first indicator of
    Pintor et al., "Indicators of attack failure" (NeurIPS 2022).
    """
    where = f" ({traced.description})" if traced.description else ""
    points = images.clone().requires_grad_(True)
    with torch.enable_grad():
        logits = model(points)
    slug = GRADIENTS
    if not logits.requires_grad:
        return Diagnostic(
            slug=slug,
            status="warn",
            value=1.0,
            threshold=0.0,
            n=len(images),
            advice=f"no gradient flows from the logits to the image{where}: attacks that trust it are blind here",
        )
    missing = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for loss in (LOSSES["ce"], LOSSES["margin"], LOSSES["scaled-ce"]):
        with torch.enable_grad():
            total = loss(logits, labels).sum()
        gradient = input_gradient(total, points, retain_graph=True)
        flat = torch.zeros_like(points).flatten(1) if gradient is None else gradient.flatten(1)
        missing |= (flat == 0).all(1) | ~torch.isfinite(flat).all(1)
    share = float(missing.float().mean())
    return Diagnostic(
        slug=slug,
        status="warn" if share > 0 else "pass",
        value=share,
        threshold=0.0,
        n=len(images),
        advice=f"at {share:.0%} of {len(images)} images a loss has a zero or non-finite gradient"
        f"{where or ' (saturated outputs?)'}: attacks that trust it are weak there"
        if share > 0
        else "",
    )
