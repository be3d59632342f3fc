"""Checks before the first attack: whether the model takes these images, and attacks can use its gradients.

What makes an evaluation impossible stops the run with one sentence; everything else becomes a finding. A sound model
costs about eleven passes for every image asked about, and two more where some pixels have no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.data.dataset import Dataset
from robustbench_local.diagnostics import gradient_checks, refusals
from robustbench_local.diagnostics.gradient_checks import MeasuredGradients
from robustbench_local.diagnostics.gradient_flow import GradientTrace, trace_gradients
from robustbench_local.diagnostics.model_output import choose_output
from robustbench_local.diagnostics.repeatability import (
    Answers,
    ask_fresh_copies,
    batch_independent,
    blends,
    deterministic,
    fresh_copy,
    mode_independent,
    near_duplicates,
    not_measured,
    stateless,
)
from robustbench_local.models.classifier import Classifier
from robustbench_local.models.metered import Metered
from robustbench_local.results import checks
from robustbench_local.results.schema import Diagnostic
from robustbench_local.runtime.device import BatchSize, is_out_of_memory

PROBE_IMAGES = 32
"""Images from all over a dataset for what needs a few of them; at least as many as are processed at a time here."""
MOST_ASKED, FEWEST_ASKED, ASKED_SHARE = 16, 4, 1 / 4
"""Images that the checks ask about: this share of the dataset, within these bounds."""
MOST_TRACED = 4
"""Images of the check that needs a pass for every layer; half of those asked about where these are few."""


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
    refusals.require_box(dataset, threat_model)
    refusals.require_finite_weights(model.model)
    size = BatchSize(PROBE_IMAGES)
    while True:
        try:
            return _check(model, dataset, threat_model, device, size.value)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        size.halve(device)


def _check(model: Metered, dataset: Dataset, threat_model: ThreatModel, device: torch.device, fits: int) -> Preflight:
    asked = min(MOST_ASKED, max(FEWEST_ASKED, int(ASKED_SHARE * len(dataset))), max(1, fits // 2))
    positions = probe_images(dataset, asked)
    images, labels = dataset.images(positions).to(device), dataset.labels[positions].to(device)
    fresh = fresh_copy(model)
    several = probe_images(dataset)[:fits]
    output = choose_output(model, dataset.images(several).to(device), dataset.labels[several].to(device), dataset)
    if fits > 1:
        refusals.first_logits(model, dataset.images(several).to(device), dataset)  # so many must fit the device
    first = refusals.first_logits(model, images, dataset)
    refusals.require_finite_logits(model.model, first, dataset, positions)
    classes = refusals.require_classes(first, dataset, threat_model)
    probabilities = _logits_or_probabilities(model.model, first)
    findings = [_image_range(dataset), _class_count(classes, model.model), probabilities, *([output] if output else [])]
    if probabilities.status == "warn":
        with torch.no_grad():
            first = model(images)  # which now are their logarithms
    if fresh is not None:
        _read_alike(model, fresh)
    points = gradient_checks.inside(images, threat_model)
    trace = trace_gradients(model, points[: min(MOST_TRACED, (len(points) + 1) // 2)])
    refusals.require_gradients_of_input(model.model, trace)
    measured = gradient_checks.measure_gradients(model, points, labels)
    findings += _repeatability(model, fresh, _Asked(images, first, points, measured), threat_model)
    gradients = gradient_checks.gradients_reach(measured, trace)
    layers = gradient_checks.layers_pass(trace, missing=gradients.status == "warn")
    pixels = gradient_checks.every_pixel(model, points, labels, measured, threat_model)
    findings += [_eval_mode(trace), _no_optimization(trace), gradients, layers, pixels]
    doubtful = {
        checks.GRADIENTS: gradients.status == "pass" and bool(gradients.value),
        checks.LAYERS: layers.status == "pass" and bool(trace.beside),
        checks.EVERY_PIXEL: bool(pixels.advice),
    }
    return Preflight(classes, findings, tuple(trace.stops), fits, tuple(slug for slug in doubtful if doubtful[slug]))


def _read_alike(model: Metered, copy: Metered) -> None:
    """Let a copy of a model read the outputs of its module as the model does."""
    pairs = zip(model.modules(), copy.modules(), strict=True)
    for part, other in pairs:
        if isinstance(part, Classifier) and isinstance(other, Classifier):
            other.probabilities, other.output = part.probabilities, part.output


class _Asked(NamedTuple):
    """Images float [rows, ...], their logits, and the same inside the box, where the gradients were measured."""

    images: Tensor
    logits: Tensor
    points: Tensor
    measured: MeasuredGradients


def _repeatability(model: Metered, fresh: Metered | None, asked: _Asked, threat_model: ThreatModel) -> list[Diagnostic]:
    """Whether the model answers the same whenever and however it is asked. fresh: a copy that was asked nothing."""
    images, first, points, measured = asked
    with torch.no_grad():
        without_gradients = model(points)
    half = (len(images) + 1) // 2
    beside = half if len(images) > 1 else 0  # no more than one image may fit the device
    strangers = blends(images)[:beside]
    in_batch = batch_independent(model, images, first, strangers)
    gradient = torch.cat([measured.margin_gradient[:half], (images - images.roll(1, 0))[:beside]])
    near = near_duplicates(torch.cat([points[:half], strangers]), gradient, threat_model)
    answers = Answers.of(model, fresh, images, first)
    memory = ask_fresh_copies(model, fresh, near, images, answers)
    if answers.random or memory.random:
        others = (checks.BATCH_INDEPENDENT, checks.MODE_INDEPENDENT, checks.STATELESS)
        return [deterministic(answers, memory), *(not_measured(slug, "the model is random") for slug in others)]
    return [
        deterministic(answers, memory),
        in_batch,
        mode_independent(without_gradients, measured.logits),
        stateless(memory, answers, copied=fresh is not None),
    ]


# What the answers and the trace themselves show.


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
