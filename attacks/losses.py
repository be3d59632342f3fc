"""What attacks climb: per-sample losses of logits, shared by all attacks.

Every loss takes logits float [rows, classes] and classes int64 [rows] and gives float [rows]: the higher, the less the
model believes in those classes. An untargeted attack climbs the loss of the labels, a targeted one descends the loss
of its target.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def logit_margin(logits: Tensor, classes: Tensor) -> Tensor:
    """Logit of the class minus the highest other logit: positive exactly where the class is predicted."""
    own = logits.gather(1, classes[:, None]).squeeze(1)
    others = logits.scatter(1, classes[:, None], float("-inf")).amax(1)
    return own - others


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """-log softmax(logits)[class] (Goodfellow et al., ICLR 2015; Madry et al., ICLR 2018)."""
    return F.cross_entropy(logits, classes, reduction="none")


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """Minus the logit margin (the f6 of Carlini and Wagner, S&P 2017): a gradient that softmax cannot saturate."""
    return -logit_margin(logits, classes)


def scaled_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of the logits divided by the distance between the two highest, which is held constant.

    No scale of the logits saturates it, and unlike the margin it looks at all classes. Near MIFPE: Yu and Xu,
    "Efficient loss function by minimizing the detrimental effect of floating-point errors on gradient-based attacks"
    (CVPR 2023).
    """
    falling = logits.detach().sort(dim=1, descending=True).values
    distance, spread = falling[:, 0] - falling[:, 1], falling[:, 0] - falling[:, -1]
    # At a tie any scale will do that keeps the quotient finite.
    scale = torch.maximum(distance, 1e-6 * spread).clamp_min(torch.finfo(logits.dtype).tiny)
    return cross_entropy((logits - falling[:, :1]) / scale[:, None], classes)


def dlr(logits: Tensor, classes: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein, ICML 2020): minus the margin over the first minus the third logit.

    With two classes there is no third, and the ratio would be constant: then it is the margin.
    """
    if logits.shape[1] < 3:
        return margin(logits, classes)
    falling = logits.sort(dim=1, descending=True).values
    return -logit_margin(logits, classes) / (falling[:, 0] - falling[:, 2]).clamp_min(1e-12)


SURE = 12.0
"""The distance of the two highest logits beyond which float32's softmax begins to lose its gradient."""


def probability_margin(logits: Tensor, classes: Tensor) -> Tensor:
    """The highest other probability minus that of the class, in [-1, 1]; of a softer model where this one is too sure.

    Where the two highest logits are more than `SURE` apart, all are divided, so that no scale of the logits leaves the
    loss without a gradient.
    """
    return -logit_margin(_probabilities(logits), classes)


def _probabilities(logits: Tensor) -> Tensor:
    highest = logits.detach().topk(2, dim=1).values
    return (logits / ((highest[:, :1] - highest[:, 1:]) / SURE).clamp_min(1)).softmax(1)


def targeted_loss(loss: str, logits: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    """The loss of that name turned towards one other class, [rows]: the higher, the more the model takes it for that.

    targets: int64 [rows], none of them its row's class. For dlr it is the paper's targeted one, whose denominator
    reaches from the first logit to the mean of the third and fourth; with fewer classes it is the difference of logits,
    because of three the ratio to the lowest would be constant.
    """
    if loss in ("ce", "scaled-ce"):
        return -LOSSES[loss](logits, targets)
    values = _probabilities(logits) if loss == "probability-margin" else logits
    ahead = (values.gather(1, targets[:, None]) - values.gather(1, classes[:, None])).squeeze(1)
    if loss != "dlr" or logits.shape[1] < 4:
        return ahead
    falling = logits.sort(dim=1, descending=True).values
    return ahead / (falling[:, 0] - falling[:, 2:4].mean(1)).clamp_min(1e-12)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "margin": margin,
    "scaled-ce": scaled_cross_entropy,
    "dlr": dlr,
    "probability-margin": probability_margin,
}
