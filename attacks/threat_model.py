"""What the attacker may do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robustbench_local.attacks import losses
from robustbench_local.attacks.norms import NORMS, Box, Norm
from robustbench_local.numbers import parse_eps


@dataclass(frozen=True)
class ThreatModel:
    """A ball around every image, the box of valid pixels, and what counts as success.

    norm: "linf", "l2" or "l1". eps: the ball's radius in pixel units, a number or a text such as "8/255".
    box: lowest and highest pixel value. target: the class that images must be taken for; without one, any wrong class
    will do. source: with a target, the class whose images are attacked; without one, every class but the target.
    reject: without a target, the class that stands for a refusal, which is no success: the image must be accepted.
    Raises ValueError for an unknown norm, an eps that is not a finite number of at least 0, or an L∞ eps wider than the
    box, which is what 8 written for 8/255 looks like.
    """

    norm: str
    eps: float
    box: Box = (0.0, 1.0)
    target: int | None = None
    source: int | None = None
    reject: int | None = None
    eps_text: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"unknown norm {self.norm!r}: choose one of {', '.join(NORMS)}")
        eps = parse_eps(self.eps, self.norm, self.box)
        if self.source is not None and self.target is None:
            raise ValueError("a source class needs a target class: say which class its images must be taken for")
        if self.target is not None and self.target == self.source:
            raise ValueError(f"source and target are both class {self.target}: an image of it is that already")
        if self.reject is not None and self.reject < 0:
            raise ValueError(f"the reject class is {self.reject}, but classes count from 0")
        if self.reject is not None and self.target is not None:
            raise ValueError("a target is reached or not, so a reject class changes nothing: leave one of them out")
        object.__setattr__(self, "eps_text", self.eps_text or str(self.eps))
        object.__setattr__(self, "eps", eps)

    @property
    def geometry(self) -> Norm:
        return NORMS[self.norm]

    def scaled(self, factor: float) -> ThreatModel:
        """The same with a ball so many times as wide, though in L∞ never wider than the box."""
        eps = self.eps * factor
        return replace(self, eps=min(eps, self.box[1] - self.box[0]) if self.norm == "linf" else eps, eps_text="")

    def project(self, points: Tensor, images: Tensor) -> Tensor:
        """The points moved into the ball around their images and into the box."""
        return self.geometry.project(points, images, self.eps, self.box)

    def margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """How far the attacker is from success, [rows] in logits: negative exactly where it has succeeded.

        Success is what the prediction, the first of the highest logits, says: another class than the label and than
        the reject class, or the target. Logits that are not numbers predict nothing, so they are a success unless there
        is a target. All margins are finite numbers.
        """
        predicted, broken = logits.argmax(1), logits.isnan().any(1)
        if self.target is None:
            margin, reached = (
                losses.logit_margin(*self.without_reject_class(logits, labels)),
                (predicted != labels) | broken,
            )
            if self.reject is not None:
                reached &= (predicted != self.reject) | broken
        else:
            target = torch.full_like(labels, self.target)
            margin, reached = -losses.logit_margin(logits, target), (predicted == target) & ~broken
        largest, smallest = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny
        margin = torch.where(broken, torch.where(reached, -largest, largest).to(margin.dtype), margin)
        # Tied logits have margin 0 whichever of them is predicted.
        return torch.where(reached, margin.clamp(-largest, -smallest), margin.clamp(0, largest))

    def without_reject_class(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and labels for an attacker whom a refusal does not help: the reject class is gone, and what must be
        beaten is the higher of its logit and the label's. The same, where there is no reject class.

        logits: float [rows, classes] -> [rows, classes - 1]. labels: int64 [rows].
        """
        if self.reject is None:
            return logits, labels
        hurdle = torch.maximum(logits.gather(1, labels[:, None]), logits[:, self.reject, None])
        kept = [number for number in range(logits.shape[1]) if number != self.reject]
        return logits.scatter(1, labels[:, None], hurdle)[:, kept], labels - (labels > self.reject).long()

    def number_of_targets(self, classes: int) -> int:
        """How many of so many classes an attack can steer to."""
        if self.target is not None:
            return 1
        return classes - 1 - (self.reject is not None)

    def attack_loss(self, loss: str, logits: Tensor, labels: Tensor, aims: Tensor | None = None) -> Tensor:
        """The loss of that name with the sign that leads to success when it is climbed, [rows].

        aims: int64 [rows], classes to steer to; where any wrong class will do, the way there is the attack's choice.
        """
        if self.target is None:
            if aims is not None and self.reject is not None:
                aims = aims - (aims > self.reject).long()
            logits, labels = self.without_reject_class(logits, labels)
            if aims is not None:
                return losses.targeted_loss(loss, logits, labels, aims)
            return losses.LOSSES[loss](logits, labels)
        return -losses.LOSSES[loss](logits, torch.full_like(labels, self.target))

    def in_scope(self, labels: Tensor) -> Tensor:
        """Which samples this threat speaks of, bool [rows]."""
        if self.target is None:
            return torch.ones_like(labels, dtype=torch.bool)
        return labels == self.source if self.source is not None else labels != self.target
