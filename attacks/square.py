"""Square, the paper by Andriushchenko, Croce, Flammarion and Hein (ECCV 2020).

"Square Attack: a query-efficient black-box adversarial attack via random search"; its ℓ1 form is that of Croce and
Hein, "Mind the box" (ICML 2021).
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robustbench_local.attacks import randomness
from robustbench_local.attacks.attack import ATTACKS, Model, Rows, State, initial_state, keep_best, require_counts
from robustbench_local.attacks.function_form import attack_function
from robustbench_local.attacks.norms import expand_rows, nonzero
from robustbench_local.attacks.threat_model import ThreatModel

HALVINGS, SPAN = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000), 10_000
"""After each of these steps, out of `SPAN`, squares cover half as many pixels."""
TINY = 1e-12
"""Replaces a length of 0 in a division."""


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class Square:
    """Black-box random search: change one square of pixels at a time, and keep the change if it reduces the margin.

    It uses logits only, one query per step, so missing or misleading gradients have no effect. steps: queries per run.
    restarts: independent runs. share: the fraction of pixels that the first squares cover; halved at `HALVINGS`.
    reschedule: scale `HALVINGS` from `SPAN` steps to `steps`.
    """

    name: ClassVar[str] = "square"
    targets: ClassVar[int] = 0
    steps: int = 5000
    restarts: int = 1
    share: float = 0.8
    reschedule: bool = False

    def __post_init__(self) -> None:
        require_counts(self)
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}, but must be above 0 and at most 1")

    def start(self, threat_model: ThreatModel, rows: Rows) -> State:
        points = SEARCHES[threat_model.norm].first(threat_model, planes(rows.images), rows.keys)
        return initial_state(rows, points.reshape(rows.images.shape))

    @torch.no_grad()
    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State:
        # A copy, because some models change their input in place.
        state = keep_best(state, threat_model.margin(model(state["points"].clone()), state["labels"]))
        images, step = planes(state["images"]), state["step"]
        search = SEARCHES[threat_model.norm]
        sizes = sizes_of(search, self.share, *images.shape[2:], images.dtype, images.device)
        points = search.next(
            threat_model,
            images,
            planes(state["best_points"]),
            sizes,
            self.level(step, sizes.halvings),
            randomness.fold_in(state["keys"], step),
        )
        return {**state, "points": points.reshape(state["points"].shape), "step": step + 1}

    def level(self, step: Tensor, halvings: Tensor) -> Tensor:
        """The number of halvings at every row's step, int64 [rows]. halvings: `HALVINGS`."""
        return torch.bucketize(step * SPAN // self.steps if self.reschedule else step, halvings)


def planes(images: Tensor) -> Tensor:
    """Images as [rows, channels, height, width].

    From that shape, [rows, height, width] or [rows, features], which become a single line of pixels. Raises ValueError
    for any other shape.
    """
    if not 2 <= images.dim() <= 4:
        raise ValueError(
            f"square needs images of shape [channels, height, width], [height, width] or [features], not "
            f"{list(images.shape[1:])}"
        )
    return images.reshape(len(images), *([1] * (4 - images.dim())), *images.shape[1:])


def sides(area: float, height: int, width: int, *, odd: bool) -> tuple[int, int]:
    """Height and width of a square of `area` pixels; a longer rectangle where the image is too small for the square.

    odd: make both odd and at least 3, unless the image is smaller.
    """
    side = math.sqrt(area)
    exact = (area / width if side > width else side, area / height if side > height else side)
    fitting = [max(round(length), 3) // 2 * 2 + 1 if odd else max(round(length), 1) for length in exact]
    return min(fitting[0], height), min(fitting[1], width)


class Sizes(NamedTuple):
    """Tables that depend only on the number of halvings, from 0 to 9.

    halvings: `HALVINGS`. sides: int64 [10, 2], heights and widths of squares. bumps: [10 · 2 · height · width], upright
    and transposed, at the upper left of an image that is 0 elsewhere.
    """

    halvings: Tensor
    sides: Tensor
    bumps: Tensor


@functools.lru_cache(maxsize=8)
def sizes_of(search: Search, share: float, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Sizes:
    """The tables for images of this size, cached. share: as in `Square`."""
    areas = [share * height * width / 2**number for number in range(len(HALVINGS) + 1)]
    levels = [sides(area, height, width, odd=search.odd) for area in areas]
    bumps = torch.zeros(len(levels), 2, height, width)
    for pair, (tall, broad) in zip(bumps, levels, strict=True):
        for image, turned in zip(pair, (False, True), strict=True):
            image[:tall, :broad] = search.bump(tall, broad, turned=turned)
    halvings = torch.tensor(HALVINGS, device=device)
    return Sizes(halvings, torch.tensor(levels, device=device), bumps.to(device, dtype).flatten())


class Windows(NamedTuple):
    """One rectangle per row, int64 [rows] each."""

    top: Tensor
    left: Tensor
    tall: Tensor
    broad: Tensor

    @classmethod
    def random(cls, draws: Tensor, sides: Tensor, images: Tensor) -> Windows:
        """Uniform in the image. draws: uniform [rows, 2]. sides: int64 [rows, 2], heights and widths."""
        height, width = images.shape[2:]
        (tall, broad), (down, across) = sides.unbind(1), draws.unbind(1)
        top, left = (down * (height - tall + 1)).long(), (across * (width - broad + 1)).long()
        return cls(top, left, tall, broad)

    def mask(self, images: Tensor) -> Tensor:
        """1 inside and 0 outside, [rows, 1, height, width]."""
        down, across = (torch.arange(size, device=images.device) for size in images.shape[2:])
        from_top, from_left = down - self.top[:, None], across - self.left[:, None]
        lines = ((from_top >= 0) & (from_top < self.tall[:, None])).to(images.dtype)
        columns = ((from_left >= 0) & (from_left < self.broad[:, None])).to(images.dtype)
        return (lines[:, :, None] * columns[:, None]).unsqueeze(1)

    def cut(self, tables: Tensor, choice: Tensor, images: Tensor) -> Tensor:
        """The content of a table's upper left, moved to the window: [rows, 1, height, width].

        tables: [tables · height · width], 0 outside the upper left. choice: int64 [rows], which table.
        """
        (height, width), device = images.shape[2:], images.device
        # Positions before the window wrap around to where the table is 0.
        lines = (torch.arange(height, device=device) - self.top[:, None]) % height
        columns = (torch.arange(width, device=device) - self.left[:, None]) % width
        places = ((choice[:, None] * height + lines) * width)[:, :, None] + columns[:, None]
        return tables.index_select(0, places.flatten()).view(len(places), 1, height, width)


def signs(draws: Tensor) -> Tensor:
    """-1 or 1, in the shape of draws, uniform numbers in [0, 1)."""
    return torch.where(draws < 0.5, -1.0, 1.0)


class Search(ABC):
    """The random search of one norm. images, points: [rows, channels, height, width]; all points in ball and box."""

    odd: ClassVar[bool]
    """Whether the sides of squares are odd, so that a bump has a central pixel."""

    @abstractmethod
    def bump(self, tall: int, broad: int, *, turned: bool) -> Tensor:
        """The shape of a change, [tall, broad]. turned: transposed."""

    @abstractmethod
    def first(self, threat_model: ThreatModel, images: Tensor, keys: Tensor) -> Tensor:
        """The first points."""

    @abstractmethod
    def next(
        self, threat_model: ThreatModel, images: Tensor, best: Tensor, sizes: Sizes, level: Tensor, keys: Tensor
    ) -> Tensor:
        """The best points, changed in one square. level: int64 [rows], the number of halvings."""


class Stripes(Search):
    """ℓ∞: start with vertical stripes, then squares of one color; every pixel at the edge of the ball or the box."""

    odd = False

    def bump(self, tall: int, broad: int, *, turned: bool) -> Tensor:  # noqa: ARG002
        return torch.ones(tall, broad)

    def first(self, threat_model: ThreatModel, images: Tensor, keys: Tensor) -> Tensor:
        stripes = signs(randomness.uniform(keys, (images.shape[1], 1, images.shape[3])))
        return threat_model.project(images + threat_model.eps * stripes, images)

    def next(
        self, threat_model: ThreatModel, images: Tensor, best: Tensor, sizes: Sizes, level: Tensor, keys: Tensor
    ) -> Tensor:
        draws, eps = randomness.uniform(keys, (2 + images.shape[1],)), threat_model.eps
        square = Windows.random(draws[:, :2], sizes.sides[level], images)
        push = 2 * eps * signs(draws[:, 2:])[:, :, None, None] * square.mask(images)
        # Not `project`, which could move pixels outside the square by a rounding error in every step.
        return torch.clamp(best + push, images - eps, images + eps).clamp_(*threat_model.box)


class Bumps(Search):
    """ℓ2 and ℓ1: start with a grid of bumps; then a square gets a bump, with the budget of another square added."""

    odd = True
    order: ClassVar[int]
    fall: ClassVar[int]
    """How fast a bump decreases: from its layer k of pixels to layer k + 1 by 1 / k to this power."""

    @abstractmethod
    def budget(self, whole: Tensor, both: Tensor, eps: float) -> Tensor:
        """The new norm of the square in every channel, [rows, channels].

        whole: [rows, 1], the norm of the perturbation. both: [rows, channels], its norm inside both squares.
        """

    @abstractmethod
    def place(self, threat_model: ThreatModel, images: Tensor, perturbation: Tensor) -> Tensor:
        """Images + perturbation, projected into ball and box."""

    def bump(self, tall: int, broad: int, *, turned: bool) -> Tensor:
        """Two hills of opposite signs and equal norms, one above the other or, turned, side by side; of norm 1."""
        if turned:
            return self.bump(broad, tall, turned=False).T
        upper, lower = (self._hill(height, broad) for height in (tall // 2, tall - tall // 2))
        both = torch.cat([upper, -lower])
        length: Tensor = torch.linalg.vector_norm(both, self.order)
        return both / length

    def _hill(self, tall: int, broad: int) -> Tensor:
        """Square layers of pixels around the center, the higher the closer: [tall, broad], of norm 1."""
        down, across = ((torch.arange(size) - size // 2).abs() for size in (tall, broad))
        layer = torch.maximum(down[:, None], across)
        steps = torch.arange(1, max(tall // 2, broad // 2) + 2, dtype=torch.float64) ** -self.fall
        heights = steps.flip(0).cumsum(0).flip(0)[layer].float()
        return heights / nonzero(torch.linalg.vector_norm(heights, self.order), heights.dtype)

    def first(self, threat_model: ThreatModel, images: Tensor, keys: Tensor) -> Tensor:
        (channels, height, width), rows = images.shape[1:], len(images)
        tall, broad = max(1, height // 5), max(1, width // 5)
        down, across = height // tall, width // broad
        heights = signs(randomness.uniform(keys, (channels, down, across)))
        turned = randomness.uniform(keys, (1, down, across), draw=channels) < 0.5
        straight, lying = (self.bump(tall, broad, turned=turned).to(images) for turned in (False, True))
        tiles = torch.where(turned[..., None, None], lying, straight) * heights[..., None, None].to(images.dtype)
        grid = tiles.transpose(3, 4).reshape(rows, channels, down * tall, across * broad)
        perturbation = torch.zeros_like(images)
        top, left = (height - down * tall) // 2, (width - across * broad) // 2
        perturbation[:, :, top : top + down * tall, left : left + across * broad] = grid
        return self.place(threat_model, images, perturbation)

    def next(
        self, threat_model: ThreatModel, images: Tensor, best: Tensor, sizes: Sizes, level: Tensor, keys: Tensor
    ) -> Tensor:
        channels, distance = images.shape[1], threat_model.geometry.distance
        draws = randomness.uniform(keys, (5 + channels,))
        square = Windows.random(draws[:, :2], sizes.sides[level], images)
        giver = Windows.random(draws[:, 2:4], sizes.sides[level], images)

        def lengths(perturbation: Tensor) -> Tensor:
            return distance(perturbation.flatten(0, 1)).clamp_min(TINY).view(-1, channels, 1, 1)

        perturbation, inside = best - images, square.mask(images)
        old, unchanged = perturbation * inside, perturbation * ((1 - inside) * (1 - giver.mask(images)))
        bumps = square.cut(sizes.bumps, 2 * level + (draws[:, 4] < 0.5), images)
        whole = distance(perturbation).view(-1, 1, 1, 1)
        budget = self.budget(whole, lengths(perturbation.sub_(unchanged)), threat_model.eps)
        # In place wherever possible: for small models, allocating memory takes longer than the arithmetic.
        new = old.div_(lengths(old)).addcmul_(bumps, signs(draws[:, 5:])[:, :, None, None].to(old.dtype))
        return self.place(threat_model, images, new.mul_(budget / lengths(new)).add_(unchanged))


class L2Bumps(Bumps):
    """The search in ℓ2 balls."""

    order, fall = 2, 2

    def budget(self, whole: Tensor, both: Tensor, eps: float) -> Tensor:
        return ((eps**2 - whole**2).clamp_min(0) / both.shape[1] + both**2).sqrt()

    def place(self, threat_model: ThreatModel, images: Tensor, perturbation: Tensor) -> Tensor:
        # Not `distance`, which is less exact for large images than a sum.
        lengths = perturbation.square().flatten(1).sum(1).sqrt().clamp_min(TINY)
        scale = radius(threat_model, images, self.order) / lengths
        return torch.addcmul(images, perturbation, expand_rows(scale, perturbation)).clamp_(*threat_model.box)


class L1Bumps(Bumps):
    """The search in ℓ1 balls."""

    order, fall = 1, 4
    rounds = 10
    """Iterations of the search for the projection's threshold."""

    def budget(self, whole: Tensor, both: Tensor, eps: float) -> Tensor:
        """More than is available in images with several channels: the projection then makes the perturbation sparse."""
        return (eps - whole).clamp_min(0) + both.shape[1] * both

    def place(self, threat_model: ThreatModel, images: Tensor, perturbation: Tensor) -> Tensor:
        """Nearly the same as `project`, without sorting, which takes longer than a small model."""
        low, high = threat_model.box
        sizes, sign, most = perturbation.abs(), perturbation.sign(), radius(threat_model, images, self.order)
        room = (sign * ((high - low) / 2)).add_((low + high) / 2).sub_(images).abs_()
        nothing = torch.zeros((), dtype=images.dtype, device=images.device)

        def shrunk(threshold: Tensor) -> Tensor:
            return (sizes - expand_rows(threshold, sizes)).clamp_(nothing, room)

        less, more = torch.zeros_like(images[:, 0, 0, 0]), sizes.flatten(1).amax(1)
        over, under = shrunk(less).flatten(1).sum(1) - most, torch.full_like(less, most)
        for _ in range(self.rounds):
            threshold = less + (more - less) * (over / nonzero(over + under, over.dtype)).clamp(0, 1)
            excess = shrunk(threshold).flatten(1).sum(1) - most
            beyond = excess > 0
            less, more = torch.where(beyond, threshold, less), torch.where(beyond, more, threshold)
            # Illinois method: the secant method, with the value at the end that does not change halved.
            over, under = torch.where(beyond, excess, over / 2), torch.where(beyond, under / 2, -excess)
        # The point of exactly the allowed length is on the line between both ends.
        longer, shorter = shrunk(less), shrunk(more)
        span, short = (longer - shorter).flatten(1).sum(1), most - shorter.flatten(1).sum(1)
        sizes = shorter.lerp_(longer, expand_rows((short / nonzero(span, span.dtype)).clamp(0, 1), images))
        return sizes.mul_(sign).add_(images).clamp_(low, high)


SEARCHES: dict[str, Search] = {"linf": Stripes(), "l2": L2Bumps(), "l1": L1Bumps()}


def radius(threat_model: ThreatModel, images: Tensor, order: int) -> float:
    """The radius eps minus what rounding of pixels and sums could add to the norm of a perturbation."""
    rounding = torch.finfo(images.dtype).eps
    pixels: float = rounding / 2 * max(map(abs, threat_model.box)) * math.prod(images.shape[1:]) ** (1 / order)
    return max(threat_model.eps * (1 - 8 * rounding) - pixels, 0.0)


square = attack_function(Square)
