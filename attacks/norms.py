"""Norms: lengths, projections, steepest directions and random starts. All other code is independent of the norm.

Shapes: images, points, perturbations and gradients are float32 [rows, ...] of any image rank; lengths are [rows].
Units: pixels in the box, so `eps` is in the units of the images.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from robustbench_local.attacks import randomness

Box = tuple[float, float]


def expand_rows(values: Tensor, like: Tensor) -> Tensor:
    """[rows] -> [rows, 1, 1, ...], ready to multiply `like`."""
    return values.view(-1, *([1] * (like.dim() - 1)))


def nonzero(lengths: Tensor, dtype: torch.dtype) -> Tensor:
    """Lengths to divide by: zero becomes the smallest positive number."""
    return lengths.clamp_min(torch.finfo(dtype).tiny)


def to_float64(tensor: Tensor) -> Tensor:
    """The same numbers in float64, if the device supports it."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def _inside(images: Tensor, perturbation: Tensor, box: Box) -> Tensor:
    """Images + perturbation in the box, every pixel rounded towards its image, so that no length grows.

    Rounded to nearest, a perturbation of 150,000 pixels can become 1e-5 longer than the radius of its ball.
    """
    points = (images + perturbation.to(images.dtype)).clamp(*box)
    outside = (to_float64(points) - to_float64(images)).abs() > perturbation.abs()
    return torch.where(outside, torch.nextafter(points, images), points)


class Norm(ABC):
    """An ℓp norm. Every method treats rows independently."""

    name: str

    @abstractmethod
    def distance(self, perturbation: Tensor) -> Tensor:
        """The norm of every row's perturbation, [rows]."""

    @abstractmethod
    def project(self, points: Tensor, images: Tensor, eps: float, box: Box) -> Tensor:
        """Points projected into the ball of radius eps around images and into the box; points inside do not change."""

    def shrink(self, points: Tensor, images: Tensor, eps: float, box: Box) -> Tensor:
        """Points moved straight towards their images, into the ball; every pixel then lies between the two.

        Unlike the projection, it brings no pixel back to the image. points: in the box. Returns float like images.
        """
        perturbation = to_float64(points) - to_float64(images)
        lengths = nonzero(self.distance(perturbation), perturbation.dtype)
        return _inside(images, perturbation * expand_rows((eps / lengths).clamp(max=1), perturbation), box)

    @abstractmethod
    def steepest(self, gradient: Tensor, points: Tensor, length: Tensor, box: Box) -> Tensor:
        """The step of the length of every row, [rows], that increases the loss most; 0 where the gradient is 0."""

    @abstractmethod
    def random_start(self, images: Tensor, eps: float, keys: Tensor) -> Tensor:
        """A perturbation drawn uniformly from the ball, one per key."""


class Linf(Norm):
    """The largest absolute change of a pixel."""

    name = "linf"

    def distance(self, perturbation: Tensor) -> Tensor:
        return perturbation.flatten(1).abs().amax(1)

    def project(self, points: Tensor, images: Tensor, eps: float, box: Box) -> Tensor:
        return (images + (points - images).clamp(-eps, eps)).clamp(*box)

    def shrink(self, points: Tensor, images: Tensor, eps: float, box: Box) -> Tensor:
        """The projection: it moves every pixel by itself, and none back to its image."""
        return self.project(points, images, eps, box)

    def steepest(self, gradient: Tensor, points: Tensor, length: Tensor, box: Box) -> Tensor:  # noqa: ARG002
        return expand_rows(length, gradient) * gradient.sign()

    def random_start(self, images: Tensor, eps: float, keys: Tensor) -> Tensor:
        return eps * (2 * randomness.uniform(keys, images.shape[1:]) - 1)


class L2(Norm):
    """The Euclidean norm."""

    name = "l2"

    def distance(self, perturbation: Tensor) -> Tensor:
        lengths: Tensor = perturbation.flatten(1).norm(dim=1)
        return lengths

    def project(self, points: Tensor, images: Tensor, eps: float, box: Box) -> Tensor:
        """First into the ball, then into the box: clipping moves pixels towards their images, inside the ball."""
        return self.shrink(points, images, eps, box)

    def steepest(self, gradient: Tensor, points: Tensor, length: Tensor, box: Box) -> Tensor:  # noqa: ARG002
        # Divided by the largest entry first: the square of a tiny gradient would underflow in float32.
        scaled = gradient / expand_rows(nonzero(gradient.flatten(1).abs().amax(1), gradient.dtype), gradient)
        return scaled * expand_rows(length / nonzero(self.distance(scaled), gradient.dtype), gradient)

    def random_start(self, images: Tensor, eps: float, keys: Tensor) -> Tensor:
        shape = images.shape[1:]
        direction = randomness.normal(keys, shape)
        radius = eps * randomness.uniform(keys, (1,), draw=2 * math.prod(shape)).squeeze(1) ** (1 / math.prod(shape))
        return direction * expand_rows(radius / nonzero(self.distance(direction), direction.dtype), direction)


class L1(Norm):
    """The sum of absolute changes; its steps are sparse.

    A step changes the pixels with the largest gradients, at least 1 % of all: Tramèr and Boneh, "Adversarial training
    and robustness for multiple perturbations" (NeurIPS 2019).
    """

    name = "l1"
    share = 0.01

    def distance(self, perturbation: Tensor) -> Tensor:
        return perturbation.flatten(1).abs().sum(1)

    def project(self, points: Tensor, images: Tensor, eps: float, box: Box) -> Tensor:
        """The nearest point of ball and box together (Croce and Hein, "Mind the box", ICML 2021).

        It is sign(δ) · clip(|δ| - λ, 0, room) with the smallest λ >= 0 for which the length is at most eps. Projecting
        into one after the other would waste the length that clipping to the box removes.
        """
        places = to_float64(images).flatten(1)
        perturbation = to_float64(points).flatten(1) - places
        sizes = perturbation.abs()
        room = torch.where(perturbation > 0, box[1] - places, places - box[0])
        # As λ decreases, pixel i grows from λ = |δ_i| on and stops growing at λ = |δ_i| - room_i.
        marks, order = torch.cat([sizes, sizes - room], dim=1).sort(dim=1, descending=True)
        growing = torch.where(order < sizes.shape[1], 1.0, -1.0).to(sizes.dtype).cumsum(1)
        steps = growing[:, :-1] * (marks[:, :-1] - marks[:, 1:])
        lengths = torch.cat([torch.zeros_like(marks[:, :1]), steps.cumsum(1)], dim=1)
        last = ((lengths <= eps).sum(1, keepdim=True) - 1).clamp_min(0)
        slope = growing.gather(1, last).clamp_min(1)
        threshold = (marks.gather(1, last) - (eps - lengths.gather(1, last)) / slope).clamp_min(0)
        δ = torch.minimum((sizes - threshold).clamp_min(0), room) * perturbation.sign()
        return _inside(images, δ.view_as(images), box)

    def steepest(self, gradient: Tensor, points: Tensor, length: Tensor, box: Box) -> Tensor:
        """Pixels in descending order of their gradients, each up to its share of the length or the edge of the box.

        Without the edge of the box, a pixel close to it would use its share of every step without moving.
        """
        flat, places = gradient.flatten(1), points.flatten(1)
        room = torch.where(flat > 0, box[1] - places, places - box[0])
        length = length[:, None]
        most = torch.minimum(room.clamp_min(0), length / max(1, round(self.share * flat.shape[1])))
        order = flat.abs().argsort(dim=1, descending=True, stable=True)
        most = most.gather(1, order)
        before = most.cumsum(1) - most
        sizes = torch.minimum(most, (length - before).clamp_min(0))
        return (torch.zeros_like(flat).scatter(1, order, sizes) * flat.sign()).view_as(gradient)

    def random_start(self, images: Tensor, eps: float, keys: Tensor) -> Tensor:
        shape = images.shape[1:]
        count = math.prod(shape)
        # Exponential sizes with random signs, scaled to length 1, are uniform on the sphere of the ℓ1 ball.
        sizes = -torch.log1p(-randomness.uniform(keys, shape))
        signs = torch.where(randomness.uniform(keys, shape, draw=1) < 0.5, -1.0, 1.0)
        radius = eps * randomness.uniform(keys, (1,), draw=2 * count).squeeze(1) ** (1 / count)
        return sizes * signs * expand_rows(radius / nonzero(self.distance(sizes), sizes.dtype), sizes)


NORMS: dict[str, Norm] = {norm.name: norm for norm in (Linf(), L2(), L1())}
