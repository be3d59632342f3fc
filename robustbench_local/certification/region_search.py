"""Search over the activation regions of a ReLU network for adversarial examples that gradients miss.

After Zhang et al., "A branch and bound framework for stronger adversarial attacks of ReLU networks" (BaB-Attack, ICML
2022), with the linear programs solved by HiGHS (`scipy.optimize.linprog`). Fix the phases of some ReLUs and relax the
others to their triangles (Ehlers, ATVA 2017): the largest difference of two logits is then a linear program. Its value
bounds what the attacker can reach, and gradient ascent starts again at its image. Fixing ReLUs one by one gives a tree.
Once the tree is exhausted, the target cannot be reached in the network as `PiecewiseLinear` represents it. That
representation is compared with the model on random points only, so an exhausted search is no certificate.
"""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sparse
import torch
from scipy.optimize import linprog
from torch import Tensor

from robustbench_local.attacks.attack import Model
from robustbench_local.attacks.pgd import ascend
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.certification.relu_network import Bounds, PiecewiseLinear, pixel_bounds

_MIN_DIFFERENCE = 1e-5  # the smallest difference of logits, relative to their size, that float32 resolves
_MIN_GAIN = 1e-4  # the gain in margin, relative to the logits' size, that is worth a linear program
_DIVE_PROGRAMS = 16  # linear programs between two gradient ascents
_FIRST_ROUND = 64  # linear programs for the top target in round 1; the k-th target gets 1/k of it; rounds double
_ASCENT_STEPS = 20


class Outcome(NamedTuple):
    """The outcome of a search.

    point: float32 [C, H, W] in ball and box, with the smallest margin. exhausted: no success, and no region left that
    could contain one in the network's linear representation, within the tolerances of float64 and HiGHS. programs:
    linear programs solved.
    """

    point: Tensor
    exhausted: bool
    programs: int


def search(
    model: Model,
    network: PiecewiseLinear,
    image: Tensor,
    label: int,
    threat_model: ThreatModel,
    start: Tensor,
    *,
    programs: int = 2500,
    seconds: float = 120.0,
) -> Outcome:
    """Search one image's ball for an adversarial example; the point with the smallest margin is returned.

    model: float32 [rows, C, H, W] -> logits; it alone decides what a success is. network: the layers of that model.
    image: float32 [C, H, W] in the box. start: float32 [C, H, W] in ball and box, the best point so far. programs: the
    most linear programs solved, which is the same work on any machine. seconds: an additional time limit.
    Raises ValueError unless the ball is L∞.
    """
    box = pixel_bounds(image, threat_model)
    best = _BestPoint(model, image, label, threat_model, start)
    if best.margin < 0:
        return Outcome(best.point, False, 0)
    targets, bounds = reachable(network, box, label, threat_model.target)
    if not targets:
        return Outcome(best.point, True, 0)
    regions = Regions.of(network, box, bounds)
    deadline = time.monotonic() + seconds
    targets = sorted(targets, key=lambda target: -float(best.logits[target]))
    trees = [_Tree(best, network, regions, target, deadline) for target in targets]
    left, share = programs, _FIRST_ROUND
    while left > 0 and best.margin >= 0 and time.monotonic() < deadline and any(tree.open for tree in trees):
        for place, tree in enumerate(trees, 1):
            left -= tree.grow(min(left, -(-share // place)))
        share *= 2
    exhausted = best.margin >= 0 and all(tree.complete and not tree.open for tree in trees)
    return Outcome(best.point, exhausted, programs - left)


def reachable(
    network: PiecewiseLinear, box: Bounds, label: int, target: int | None = None
) -> tuple[list[int], list[Bounds]]:
    """The classes that bounds cannot rule out for the images in box, and the bounds on every ReLU there.

    A class is ruled out where the label's logit stays above its logit; a given target, where any other logit does. An
    empty list proves that the attacker cannot succeed.
    """
    bounds = network.neuron_bounds(box)
    classes = np.eye(len(network.layers[-1].shift))
    ahead = classes - classes[label] if target is None else classes[target] - classes
    possible = network.upper_bounds(ahead, len(bounds), bounds, box) >= 0
    if target is None:
        return [k for k in range(len(classes)) if possible[k] and k != label], bounds
    return [target] if np.delete(possible, target).all() else [], bounds


@dataclass(frozen=True)
class Regions:
    """The linear program of one image's ball over (pixels, a, s): outputs a and negative parts s of unstable ReLUs.

    Stable ReLUs are multiplied out. equal @ variables = shift means: a - s is the value before the ReLU. triangle @
    variables <= most means: a / high + s / -low <= 1. limits: [variables, 2], lowest and highest. logits: float64
    [classes, pixels + a + 1], affine, with the constant in the last column. unstable: by layer, which ReLUs have an a.
    """

    equal: sparse.csr_array
    shift: np.ndarray
    triangle: sparse.csr_array
    most: np.ndarray
    limits: np.ndarray
    logits: np.ndarray
    unstable: list[np.ndarray]

    @classmethod
    def of(cls, network: PiecewiseLinear, box: Bounds, bounds: list[Bounds]) -> Regions:
        unstable = [np.flatnonzero((low < 0) & (high > 0)) for low, high in bounds]
        pixels, count = len(box[0]), sum(map(len, unstable))
        place, width = pixels, pixels + count + 1
        sources, before = [np.eye(pixels, width)], [np.zeros((0, width))]
        for index, layer in enumerate(network.layers):
            values = np.asarray(sum(np.asarray(weights @ sources[k]) for k, weights in layer.weights.items()))
            values = values + np.outer(layer.shift, np.eye(width)[-1])
            if index == len(bounds):
                break
            free = unstable[index]
            output = np.where(bounds[index][0][:, None] >= 0, values, 0)
            output[free] = np.eye(len(free), width, place)
            before.append(values[free])
            sources.append(output)
            place += len(free)
        rows = np.concatenate(before)
        rows[abs(rows) < 1e-9] = 0  # HiGHS drops what is smaller than this
        ranges = [np.stack(sides)[:, free] for sides, free in zip(bounds, unstable, strict=True)]
        low, high = np.concatenate([np.zeros((2, 0)), *ranges], axis=1)
        unit = np.eye(count)
        equal = np.concatenate([-rows[:, :pixels], unit - rows[:, pixels:-1], -unit], axis=1)
        most = np.minimum(high, -low)  # times which no coefficient of the triangles is above 1
        triangle = np.concatenate([np.zeros((count, pixels)), unit * (most / high), unit * (most / -low)], axis=1)
        limits = np.stack([np.concatenate([box[0], np.zeros(2 * count)]), np.concatenate([box[1], high, -low])], axis=1)
        return cls(sparse.csr_array(equal), rows[:, -1], sparse.csr_array(triangle), most, limits, values, unstable)

    def phases(self, network: PiecewiseLinear, pixels: np.ndarray) -> np.ndarray:
        """The phase of every unstable ReLU at an image, float64 [pixels]: 1 where the ReLU is active, else -1."""
        values = network.forward(pixels[None])
        signs = [np.where(value[0, free] > 0, 1, -1) for value, free in zip(values, self.unstable, strict=False)]
        return np.concatenate([np.zeros(0, dtype=int), *signs])


class _BestPoint:
    """The best point of one sample's search, as the model evaluates it."""

    def __init__(self, model: Model, image: Tensor, label: int, threat_model: ThreatModel, start: Tensor) -> None:
        self.model, self.image, self.label, self.threat_model = model, image, label, threat_model
        self.margin = float("inf")
        self.evaluate(start[None])
        self.scale = float(self.logits.abs().max())

    def rivals(self, target: int) -> list[int]:
        """The classes that the target must beat: the label, or all others where the threat model has a target."""
        if self.threat_model.target is None:
            return [self.label]
        return [k for k in range(len(self.logits)) if k != target]

    @torch.no_grad()
    def evaluate(self, points: Tensor) -> np.ndarray:
        """The margins [rows] of points float32 [rows, C, H, W] in ball and box; the best of them is kept."""
        logits = self.model(points)
        labels = torch.full((len(points),), self.label, device=points.device)
        margin = self.threat_model.margin(logits, labels)
        row = int(margin.argmin())
        if margin[row] < self.margin:
            self.margin, self.point, self.logits = float(margin[row]), points[row].clone(), logits[row]
        return margin.cpu().double().numpy()

    def at(self, pixels: np.ndarray) -> Tensor:
        """The points float32 [rows, C, H, W] in ball and box nearest to pixels float64 [rows, pixels]."""
        points = torch.from_numpy(pixels.astype(np.float32)).to(self.image).view(-1, *self.image.shape)
        return self.threat_model.project(points, self.image[None])

    def ascend(self, points: Tensor, target: int) -> Tensor:
        """The points after projected gradient ascent on the target's logit minus the highest of its rivals."""
        rivals = self.rivals(target)

        def lead(points: Tensor) -> Tensor:
            logits = self.model(points.clone())
            return logits[:, target] - logits[:, rivals].amax(1)

        sizes = [0.25 * self.threat_model.eps * (1 - step / _ASCENT_STEPS) for step in range(_ASCENT_STEPS)]
        return ascend(lead, points, self.image[None], self.threat_model, sizes)


class _Tree:
    """Branch and bound for one target: a node fixes phases; dives begin at the open node with the highest bound."""

    def __init__(
        self, best: _BestPoint, network: PiecewiseLinear, regions: Regions, target: int, deadline: float
    ) -> None:
        self.best, self.network, self.regions, self.target, self.deadline = best, network, regions, target, deadline
        self.solved, self.complete, self.least = 0, True, _MIN_DIFFERENCE * best.scale
        self.number = itertools.count()
        self.open = [(-np.inf, next(self.number), np.zeros(len(regions.shift), dtype=int))]
        ahead = regions.logits[target] - regions.logits[best.rivals(target)]
        count, pixels = len(regions.shift), regions.logits.shape[1] - 1 - len(regions.shift)
        self.pixels, self.outputs = pixels, slice(pixels, pixels + count)
        self.negatives = slice(pixels + count, pixels + 2 * count)
        # Every program maximizes one more variable, the minimum of the rows of `ahead`.
        rows = np.concatenate([-ahead[:, :-1], np.zeros((len(ahead), count)), np.ones((len(ahead), 1))], axis=1)
        self.equal = sparse.hstack([regions.equal, sparse.csr_array((count, 1))], format="csr")
        triangle = sparse.hstack([regions.triangle, sparse.csr_array((count, 1))])
        self.under = sparse.vstack([triangle, sparse.csr_array(rows)], format="csr")
        self.most = np.concatenate([regions.most, ahead[:, -1]])
        self.costs = -np.eye(1, rows.shape[1], rows.shape[1] - 1)[0]

    def grow(self, programs: int) -> int:
        """Search until a success, the end of the tree, the deadline or the limit; return the programs solved."""
        before = self.solved
        while self.open and self.best.margin >= 0 and self.solved < before + programs and self._time() > 0:
            images = self._dive(min(before + programs, self.solved + _DIVE_PROGRAMS))
            if images and self.best.margin >= 0:
                self._climb(np.stack(images), before + programs)
        return self.solved - before

    def _dive(self, programs: int) -> list[np.ndarray]:
        """The images of the programs from the best open node downwards; sibling nodes stay open.

        programs: the total number of solved programs at which the dive ends.
        """
        images: list[np.ndarray] = []
        cost, _, phases = heapq.heappop(self.open)
        while self.solved < programs:
            solution = self._solve(phases)
            if solution is None:
                return images
            cost, image, doubt = solution
            images.append(image)
            if self._succeeds(image):
                return images
            if not doubt.any():  # the exact optimum of a region, which the float32 model does not confirm
                self.complete = False
                return images
            split = int(doubt.argmax())
            phase = self.regions.phases(self.network, image)[split]
            beside, phases = phases.copy(), phases.copy()
            phases[split], beside[split] = phase, -phase
            heapq.heappush(self.open, (cost, next(self.number), beside))
        heapq.heappush(self.open, (cost, next(self.number), phases))
        return images

    def _climb(self, images: np.ndarray, programs: int) -> None:
        """Gradient ascent from all images, then region by region from the best of them while the margin improves."""
        best = self.best
        points = best.ascend(best.at(images), self.target)
        lowest = np.inf
        while True:
            margins = best.evaluate(points)
            if best.margin < 0 or self.solved >= programs or not margins.min() < lowest - _MIN_GAIN * best.scale:
                return
            lowest, point = margins.min(), points[margins.argmin()]
            phases = self.regions.phases(self.network, point.double().flatten().cpu().numpy())
            solution = self._solve(phases, least=-np.inf)
            if solution is None:
                return
            landed = best.at(solution[1][None])
            points = torch.cat([landed, best.ascend(landed, self.target)])

    def _succeeds(self, image: np.ndarray) -> bool:
        self.best.evaluate(self.best.at(image[None]))
        return self.best.margin < 0

    def _solve(self, phases: np.ndarray, least: float | None = None) -> tuple[float, np.ndarray, np.ndarray] | None:
        """Solve the program of a node.

        phases: [unstable], 1 (active), -1 (inactive) or 0 (open). Returns the lowest cost, which is minus the highest
        value; its image [pixels]; how much the relaxation of every open ReLU contributes to it [unstable]. None where
        no value reaches `least`, and where HiGHS does not finish, which leaves the tree incomplete.
        """
        self.solved += 1
        limits = np.concatenate([self.regions.limits, [[self.least if least is None else least, np.inf]]])
        limits[self.outputs, 1][phases < 0] = 0
        limits[self.negatives, 1][phases > 0] = 0
        result = linprog(
            self.costs,
            self.under,
            self.most,
            self.equal,
            self.regions.shift,
            limits,
            method="highs-ds",
            options={"presolve": False, "time_limit": max(1e-3, self._time())},
        )
        if result.status != 0:
            self.complete &= result.status == 2
            return None
        gap = np.minimum(result.x[self.outputs], result.x[self.negatives])
        doubt = np.where(gap > 1e-7, gap * (abs(result.eqlin.marginals) + 1e-6), 0)
        return result.fun, result.x[: self.pixels], doubt

    def _time(self) -> float:
        """Seconds left."""
        return self.deadline - time.monotonic()
