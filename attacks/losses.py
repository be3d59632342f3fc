"""The losses that attacks maximize: per-sample functions of the logits.

Every loss takes logits float [rows, classes] and classes int64 [rows] and returns float [rows]: the higher, the lower
the model's confidence in those classes. An untargeted attack maximizes the loss of the labels, a targeted one minimizes
the loss of its target.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def logit_margin(logits: Tensor, classes: Tensor) -> Tensor:
    """Logit of the class minus the highest other logit: positive where the class is predicted."""
    own = logits.gather(1, classes[:, None]).squeeze(1)
    others = logits.scatter(1, classes[:, None], float("-inf")).amax(1)
    return own - others


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """-log softmax(logits)[class] (Goodfellow et al., ICLR 2015; Madry et al., ICLR 2018)."""
    return F.cross_entropy(logits, classes, reduction="none")


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """Minus the logit margin (f6 of Carlini and Wagner, S&P 2017), whose gradient no softmax can saturate."""
    return -logit_margin(logits, classes)


def scaled_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of the logits divided by the difference of the two highest, which has no gradient.

    It does not saturate for any scale of the logits and, unlike the margin, depends on all classes. Similar to MIFPE:
    Yu and Xu, "Efficient loss function by minimizing the detrimental effect of floating-point errors on gradient-based
    attacks" (CVPR 2023).
    """
    descending_logits = logits.detach().sort(dim=1, descending=True).values
    distance, spread = (
        descending_logits[:, 0] - descending_logits[:, 1],
        descending_logits[:, 0] - descending_logits[:, -1],
    )
    # At a tie, any scale works that keeps the quotient finite.
    scale = torch.maximum(distance, 1e-6 * spread).clamp_min(torch.finfo(logits.dtype).tiny)
    return cross_entropy((logits - descending_logits[:, :1]) / scale[:, None], classes)


def dlr(logits: Tensor, classes: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein, ICML 2020): minus margin / (highest - third highest logit).

    With two classes the ratio would be constant, so the loss is the margin.
    """
    if logits.shape[1] < 3:
        return margin(logits, classes)
    descending_logits = logits.sort(dim=1, descending=True).values
    return -logit_margin(logits, classes) / (descending_logits[:, 0] - descending_logits[:, 2]).clamp_min(1e-12)


SATURATION = 12.0
"""The difference of the two highest logits from which on the gradient of a float32 softmax loses precision."""


def probability_margin(logits: Tensor, classes: Tensor) -> Tensor:
    """The highest other probability minus that of the class, in [-1, 1].

    Where the two highest logits differ by more than `SATURATION`, the logits are divided so that they differ by that:
    the loss then has a gradient for any scale of the logits.
    """
    return -logit_margin(_probabilities(logits), classes)


def _probabilities(logits: Tensor) -> Tensor:
    highest = logits.detach().topk(2, dim=1).values
    return (logits / ((highest[:, :1] - highest[:, 1:]) / SATURATION).clamp_min(1)).softmax(1)


def targeted_loss(loss: str, logits: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    """The targeted form of a loss, [rows]: the higher, the nearer the prediction is to the target.

    targets: int64 [rows], different from classes. For dlr it is the paper's targeted loss, whose denominator is the
    highest logit minus the mean of the third and fourth; with fewer than four classes, where a ratio would be constant,
    it is the difference of the two logits.
    """
    if loss in ("ce", "scaled-ce"):
        return -LOSSES[loss](logits, targets)
    values = _probabilities(logits) if loss == "probability-margin" else logits
    difference = (values.gather(1, targets[:, None]) - values.gather(1, classes[:, None])).squeeze(1)
    if loss != "dlr" or logits.shape[1] < 4:
        return difference
    descending_logits = logits.sort(dim=1, descending=True).values
    return difference / (descending_logits[:, 0] - descending_logits[:, 2:4].mean(1)).clamp_min(1e-12)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "margin": margin,
    "scaled-ce": scaled_cross_entropy,
    "dlr": dlr,
    "probability-margin": probability_margin,
}
