"""The threat model: which perturbations the attacker may use, and what counts as success."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robustbench_local.attacks import losses
from robustbench_local.attacks.norms import NORMS, Box, Norm, expand_rows, to_float64
from robustbench_local.numbers import parse_eps

GRAY_LEVELS = 255
"""Steps from one end of the box to the other in an image file of 8 bits per channel."""
SAME_LEVEL = 1e-4
"""Differences from a whole gray level, in gray levels, that are rounding errors of float32."""


@dataclass(frozen=True)
class ThreatModel:
    """A ball around every image, the box of valid pixels, and what counts as success.

    norm: "linf", "l2" or "l1". eps: the ball's radius in pixel units, a number or a text such as "8/255". box: lowest
    and highest pixel value. target: the class that the model must predict for success; by default any wrong class.
    source: with a target, the class whose images are attacked; by default all classes but the target. reject: for
    untargeted attacks, the class with which the model rejects an image; predicting it is no success.
    Raises ValueError for an unknown norm, an eps that is not a finite number of at least 0, or an L∞ eps wider than the
    box, which is usually 8 instead of 8/255.
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
            raise ValueError("a source class needs a target class: add the class that its images must be predicted as")
        if self.target is not None and self.target == self.source:
            raise ValueError(f"source and target are both class {self.target}, but must be different classes")
        if self.reject is not None and self.reject < 0:
            raise ValueError(f"the reject class is {self.reject}, but must be at least 0")
        if self.reject is not None and self.target is not None:
            raise ValueError("a reject class has no effect on an attack with a target: leave one of them out")
        object.__setattr__(self, "eps_text", self.eps_text or str(self.eps))
        object.__setattr__(self, "eps", eps)

    @property
    def geometry(self) -> Norm:
        return NORMS[self.norm]

    def scaled(self, factor: float) -> ThreatModel:
        """The same threat model with eps multiplied by factor; in L∞, eps is at most the width of the box."""
        eps = self.eps * factor
        return replace(self, eps=min(eps, self.box[1] - self.box[0]) if self.norm == "linf" else eps, eps_text="")

    def project(self, points: Tensor, images: Tensor) -> Tensor:
        """The points, projected into the ball around their images and into the box."""
        return self.geometry.project(points, images, self.eps, self.box)

    def move_inside(self, points: Tensor, images: Tensor, inset: float) -> Tensor:
        """The points moved off the edges of the box, still in the ball around their images.

        A layer that clips its input to the box changes no legal image, but has gradient 0 where a pixel lies on an
        edge. inset: distance to keep from both edges, as a fraction of the box's width; less is kept where the ball
        leaves no room for it. With 0, the points themselves.
        """
        if not inset:
            return points
        return self.geometry.shrink(points.clamp(*self.inner_box(inset)), images, self.eps, self.box)

    def to_gray_levels(self, points: Tensor, images: Tensor) -> Tensor:
        """The points moved towards their images until every pixel differs from its image by whole gray levels.

        Where a pixel of the image is one that a file of 8 bits per channel can hold, so is that of the point; elsewhere
        the perturbation alone is whole. points: float [rows, ...] in ball and box. images, result: float like points.
        """
        low, step = self.box[0], self.gray_level
        levels = (to_float64(points) - to_float64(images)) / step
        levels = (levels + SAME_LEVEL * levels.sign()).trunc()
        places = (to_float64(images) - low) / step
        places = torch.where((places - places.round()).abs() < SAME_LEVEL, places.round(), places)
        whole = torch.where(levels == 0, images, (low + (places + levels) * step).to(images.dtype)).clamp(*self.box)
        length = self.geometry.distance(to_float64(whole) - to_float64(images))
        outside = expand_rows(length > self.eps + torch.finfo(torch.float32).eps * max(map(abs, self.box)), images)
        return torch.where(outside, self.geometry.shrink(whole, images, self.eps, self.box), whole)

    @property
    def gray_level(self) -> float:
        """The distance of two neighboring gray levels, in pixel units."""
        return (self.box[1] - self.box[0]) / GRAY_LEVELS

    def inner_box(self, inset: float) -> Box:
        """The box without a rim as wide as `inset`, a fraction of the box's width."""
        low, high = self.box
        return (low + inset * (high - low), high - inset * (high - low))

    def margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The distance to success in logits, [rows]: negative exactly where the attacker has succeeded.

        Success depends on the prediction, the first of the highest logits: it is the target or, without one, neither
        the label nor the reject class. NaN logits predict no class: a success, unless there is a target. All margins
        are finite.
        """
        predicted, nan = logits.argmax(1), logits.isnan().any(1)
        if self.target is None:
            margin = losses.logit_margin(*self.without_reject_class(logits, labels))
            success = (predicted != labels) | nan
            if self.reject is not None:
                success &= (predicted != self.reject) | nan
        else:
            target = torch.full_like(labels, self.target)
            margin, success = -losses.logit_margin(logits, target), (predicted == target) & ~nan
        largest, smallest = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny
        margin = torch.where(nan, torch.where(success, -largest, largest).to(margin.dtype), margin)
        # Tied logits have margin 0, whichever of them is predicted.
        return torch.where(success, margin.clamp(-largest, -smallest), margin.clamp(0, largest))

    def without_reject_class(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and labels without the reject class, for which no success is possible by rejection.

        The label's logit becomes the higher of its own and the reject class's. Without a reject class, both unchanged.
        logits: float [rows, classes] -> [rows, classes - 1]. labels: int64 [rows].
        """
        if self.reject is None:
            return logits, labels
        highest = torch.maximum(logits.gather(1, labels[:, None]), logits[:, self.reject, None])
        columns = [number for number in range(logits.shape[1]) if number != self.reject]
        return logits.scatter(1, labels[:, None], highest)[:, columns], labels - (labels > self.reject).long()

    def number_of_targets(self, classes: int) -> int:
        """How many of the model's classes an attack can target."""
        if self.target is not None:
            return 1
        return classes - 1 - (self.reject is not None)

    def attack_loss(self, loss: str, logits: Tensor, labels: Tensor, aims: Tensor | None = None) -> Tensor:
        """The loss of that name, [rows], with the sign for which maximizing it leads to success.

        aims: int64 [rows], classes to target; ignored if the threat model has a target.
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
        """Which samples are attacked under this threat model, bool [rows]."""
        if self.target is None:
            return torch.ones_like(labels, dtype=torch.bool)
        return labels == self.source if self.source is not None else labels != self.target
