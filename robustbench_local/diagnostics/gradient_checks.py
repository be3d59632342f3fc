"""Whether gradients reach the input: for every loss, through every layer, and in every pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robustbench_local.attacks.backward_errors import input_gradient
from robustbench_local.attacks.losses import LOSSES, logit_margin
from robustbench_local.attacks.randomness import sample_keys, uniform
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.diagnostics.gradient_flow import GradientTrace
from robustbench_local.models.metered import Metered
from robustbench_local.results import checks
from robustbench_local.results.schema import Diagnostic

INSET = 1e-6
"""How far points are moved from the box's edges, in box widths: a function that is flat beyond them is flat at them."""
VANISHED = torch.finfo(torch.float32).tiny
"""The largest slope of the cross-entropy along a logit from which no gradient of the image is left in float32."""
DEFAULT_STEP = 0.03
"""The step of a pixel where the threat model has no radius."""
HIDDEN = 0.1
"""The change by a pixel without gradient, in multiples of that by one with a gradient, from which it is a doubt."""


class MeasuredGradients(NamedTuple):
    """Logits float [rows, classes] and the margin's gradient, like the points; whether losses have none, bool [rows].

    missing: of the margin or the scaled cross-entropy. saturated: of the cross-entropy.
    """

    logits: Tensor
    margin_gradient: Tensor
    missing: Tensor
    saturated: Tensor
    blind: bool
    """Whether the logits pass no gradient at all."""


def inside(images: Tensor, threat_model: ThreatModel) -> Tensor:
    """The images, their pixels moved just inside the box."""
    low, high = threat_model.box
    return images.clamp(low + INSET * (high - low), high - INSET * (high - low))


def measure_gradients(model: Metered, points: Tensor, labels: Tensor) -> MeasuredGradients:
    """One forward and two backward passes. points: float [rows, ...]."""
    points = points.clone().requires_grad_(True)
    with torch.enable_grad():
        logits = model(points)
    gradients = [_gradient(LOSSES[loss], logits, labels, points) for loss in ("margin", "scaled-ce")]
    missing = torch.stack(
        [(each == 0).all(1) | ~torch.isfinite(each).all(1) for each in (g.flatten(1) for g in gradients)]
    )
    values = logits.detach()
    wrong = values.softmax(1).scatter(1, labels[:, None], 0)
    margin_gradient = gradients[0].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return MeasuredGradients(
        values, margin_gradient, missing.any(0), wrong.amax(1) < VANISHED, blind=not logits.requires_grad
    )


def _gradient(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor, points: Tensor) -> Tensor:
    """The gradient of the loss, 0 where there is none."""
    with torch.enable_grad():
        total = loss(logits, labels).sum()
    gradient = input_gradient(total, points, retain_graph=True)
    return torch.zeros_like(points) if gradient is None else gradient


def gradients_reach(measured: MeasuredGradients, trace: GradientTrace) -> Diagnostic:
    """The share of images for which the gradient of some loss is 0 or not finite.

    The first indicator of Pintor et al., "Indicators of attack failure" (NeurIPS 2022). Every suite uses losses that no
    softmax saturates. So a cross-entropy that alone has no gradient is no warning, though its share is the value.
    """
    n = len(measured.missing)
    if not measured.missing.any() and measured.saturated.any():
        return Diagnostic(
            slug=checks.GRADIENTS,
            status="pass",
            value=float(measured.saturated.float().mean()),
            n=n,
            advice="the gradient of the cross-entropy is 0 for this share of the images, because softmax saturates; "
            "the margin and the scaled cross-entropy, which the suites use, have gradients",
        )
    share, advice = float(measured.missing.float().mean()), ""
    if measured.blind:
        causes = f" ({trace.description})" if trace.description else ""
        advice = f"the logits pass no gradient to the image{causes}: gradient attacks are blind"
    elif share:
        advice = (
            f"for {share:.0%} of {n} images the gradient of a loss is 0 or not finite "
            f"({trace.description or 'saturated outputs?'}): gradient attacks are weak there"
        )
    status: Literal["warn", "pass"] = "warn" if advice else "pass"
    return Diagnostic(slug=checks.GRADIENTS, status=status, value=share, threshold=0.0, n=n, advice=advice)


def layers_pass(trace: GradientTrace, *, missing: bool) -> Diagnostic:
    """Which layers stop gradients.

    missing: whether gradients are missing for some images. Piecewise constant and detaching functions beside the path
    to the logits are no warning where none is missing; those that the logits depend on are mentioned.
    """
    causes = trace.description if trace.stops or missing else ""
    beside = "; ".join(f"{layer} ({function})" for layer, function in trace.beside.items())
    advice = ""
    if causes:
        advice = (
            f"gradients stop here: {causes}. This hides adversarial examples from gradient attacks but does not remove "
            "them: attacks need a surrogate gradient there (BPDA)"
        )
    elif beside:
        advice = f"the logits depend on what passes no gradient on: {beside}; other ways through the model do"
    return Diagnostic(
        slug=checks.LAYERS, status="warn" if causes else "pass", value=causes or beside or "all", advice=advice
    )


@torch.no_grad()
def every_pixel(
    model: Metered, points: Tensor, labels: Tensor, measured: MeasuredGradients, threat_model: ThreatModel
) -> Diagnostic:
    """Whether pixels whose gradient is 0 change the margin.

    points: float [rows, ...], where the gradients were measured. All pixels without a gradient are moved by random
    steps, then all others alike. Two passes, of the images alone that have both kinds.
    """
    flat = measured.margin_gradient == 0
    mixed = flat.flatten(1).any(1) & ~flat.flatten(1).all(1)
    value = 0.0
    if mixed.any():
        points, labels, flat = points[mixed], labels[mixed], flat[mixed]
        step = threat_model.eps if threat_model.norm == "linf" and threat_model.eps else DEFAULT_STEP
        before = logit_margin(measured.logits[mixed], labels)
        changes = []
        for pixels in (flat, ~flat):
            moved = points + pixels * _steps(points, step, threat_model.box)
            change = (logit_margin(model(moved), labels) - before).abs()
            changes.append((change / pixels.flatten(1).sum(1).sqrt()).sum())
        value = float(changes[0] / changes[1].clamp_min(1e-12))
    hidden = value > HIDDEN
    return Diagnostic(
        slug=checks.EVERY_PIXEL,
        status="pass",
        value=value,
        n=int(mixed.sum()),
        advice=f"pixels whose gradient is 0 change the margin {value:.0%} as much as others when they move: gradient "
        "attacks leave them where they are"
        if hidden
        else "",
    )


def _steps(points: Tensor, size: float, box: tuple[float, float]) -> Tensor:
    """Up or down at random for each pixel, but towards the inside where the box ends, like points."""
    keys = sample_keys(0, torch.arange(len(points), device=points.device), "every-pixel", 0)
    step = size * (2.0 * (uniform(keys, points.shape[1:]) < 0.5) - 1).to(points.dtype)
    outside = (points + step < box[0]) | (points + step > box[1])
    return (points + torch.where(outside, -step, step)).clamp(*box) - points
