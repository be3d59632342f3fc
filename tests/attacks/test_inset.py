"""Gradients just inside the box: a layer that clips its input to the box has none at the edges."""

import dataclasses

import fronts
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn import functional

from robustbench_local.attacks import APGD, BPDA, EOT, FAB, FGSM, PGD, Descent, ThreatModel, pgd, run
from robustbench_local.attacks.attack import Rows, run_steps
from robustbench_local.attacks.norms import NORMS

INSET = 1e-6
MEAN, STD = 0.4816, 0.0039
FRONTS = {**fronts.FRONTS, "normalized": fronts.normalized(MEAN, STD), "bright": lambda x: (x + 3).clamp(3, 4) - 3}
SLACK = 1e-7
"""Perturbations of length at most 1 are rounded to float32."""
THREATS = [("linf", 0.1), ("l2", 0.5), ("l1", 2.0)]


def corner_images(rows=6, seed=0):
    """Images of which half of the pixels are black or white."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(rows, 2, 4, 4, generator=generator)
    extreme = torch.rand(images.shape, generator=generator) < 0.5
    return torch.where(extreme, images.round(), images)


class Linear(nn.Module):
    """Class 1 minus class 0 is 2 · (w·x - bias), behind a front."""

    def __init__(self, front):
        super().__init__()
        self.front = front
        self.weight = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))

    def forward(self, images):
        score = (self.front(images) * self.weight).flatten(1).sum(1) - 9
        return torch.stack([-score, score], 1)


def small_net(front=lambda x: x):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
    return lambda images: net(front(images))


pixel = st.one_of(st.sampled_from([0.0, 1.0, 1e-7, 0.9999999]), st.floats(2**-20, 1, width=32))
pixels = hnp.arrays(np.float32, (3, 2, 3, 3), elements=pixel)


@pytest.mark.parametrize("norm", NORMS)
@given(images=pixels, others=pixels, eps=st.floats(1e-3, 1), inset=st.sampled_from([1e-6, 1e-4, 0.01]))
@settings(max_examples=80, deadline=None)
def test_moved_points_are_legal_and_strictly_inside(norm, images, others, eps, inset):
    images, threat_model = torch.from_numpy(images), ThreatModel(norm, eps)
    points = threat_model.project(torch.from_numpy(others), images)
    moved = threat_model.move_inside(points, images, inset)
    assert (threat_model.geometry.distance(moved.double() - images.double()) <= eps + SLACK).all()
    assert (moved > 0).all()
    assert (moved < 1).all()
    # The way back into the ball is no longer than the way off the edges.
    off, both = ((each - points).double() for each in (points.clamp(inset, 1 - inset), moved))
    distance = threat_model.geometry.distance
    assert (distance(both) <= 2 * distance(off) + 18 * 2**-23).all(), "18 pixels, each rounded once"


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.0, 1e-9, 1e-7, 5e-7, 1e-6])
def test_a_ball_smaller_than_the_inset_is_not_left(norm, eps):
    images = corner_images()
    moved = ThreatModel(norm, eps).move_inside(images, images, INSET)
    assert (NORMS[norm].distance(moved.double() - images.double()) <= eps + SLACK).all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (moved == images).all() or eps > 0


@pytest.mark.parametrize("norm", NORMS)
def test_without_an_inset_points_stay_the_same_tensor(norm):
    images = corner_images()
    assert ThreatModel(norm, 0.1).move_inside(images, images, 0.0) is images


def test_the_inset_is_a_fraction_of_the_width_of_the_box():
    threat_model = ThreatModel("linf", 8, box=(-128, 127))
    images = torch.tensor([[-128.0, 127.0, 0.0]])
    moved = threat_model.move_inside(images, images, 0.01)
    assert torch.allclose(moved, torch.tensor([[-125.45, 124.45, 0.0]]))


@pytest.mark.parametrize("attack", [FGSM, PGD, APGD, FAB, BPDA, EOT, Descent])
@pytest.mark.parametrize("inset", [-1e-6, 0.5, float("nan")])
def test_an_inset_without_a_box_is_refused(attack, inset):
    with pytest.raises(ValueError, match="inset"):
        attack(inset=inset)


@pytest.mark.parametrize("front", FRONTS.values(), ids=FRONTS)
def test_the_optimum_of_a_linear_model_behind_a_front(front):
    """In L∞ the best perturbation is known: every pixel as far towards its weight's sign as ball and box allow."""
    images, labels, eps = corner_images(), torch.zeros(6, dtype=torch.int64), 0.1
    model = Linear(front)
    room = torch.where(model.weight > 0, 1 - images, images).clamp(max=eps)
    best = (model.weight.abs() * room).flatten(1).sum(1)

    def gain(inset):
        points = pgd(model, images, labels, ThreatModel("linf", eps), steps=40, random_start=False, inset=inset)
        return ((points - images) * model.weight).flatten(1).sum(1)

    assert torch.allclose(gain(INSET), best, rtol=1e-4)
    assert (gain(0.0) < 0.9 * best).all(), "black and white pixels have no gradient"


def plain_pgd(model, images, labels, threat_model, steps, inset):
    """PGD on the cross-entropy without a random start, written as a loop; the margin and the point of every step."""
    low, high = inset, 1 - inset
    points, seen = images, []
    for _ in range(steps):
        inside = []
        for point, image in zip(points, images, strict=True):
            moved = point.clamp(low, high)
            length = NORMS[threat_model.norm].distance((moved - image)[None]).item()
            inside.append(image + (moved - image) * min(1.0, threat_model.eps / length) if length else moved)
        points = torch.stack(inside).requires_grad_()
        logits = model(points)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, labels, reduction="sum"), points)
        points = points.detach()
        seen.append((threat_model.margin(logits.detach(), labels), points))
        length = torch.full((len(points),), 2.5 * threat_model.eps / steps)
        step = threat_model.geometry.steepest(gradient, points, length, (0.0, 1.0))
        points = threat_model.project(points + step, images)
    margins = torch.stack([margin for margin, _ in seen])
    best = margins.argmin(0)
    return margins.amin(0), torch.stack([seen[step][1][row] for row, step in enumerate(best.tolist())])


@pytest.mark.parametrize(("norm", "eps"), [*THREATS, ("linf", 0.5), ("l1", 0.01), ("l2", 0.01)])
@pytest.mark.parametrize("inset", [1e-6, 1e-3])
def test_it_agrees_with_a_plain_loop(norm, eps, inset):
    model, images, threat_model = small_net(FRONTS["clamp"]), corner_images(8), ThreatModel(norm, eps)
    with torch.no_grad():
        labels = model(images).argmax(1)
    attack = PGD(steps=10, random_start=False, inset=inset)
    state = attack.start(threat_model, Rows(images, labels, torch.arange(8), labels))
    state = run_steps(attack, model, threat_model, state)
    margin, points = plain_pgd(model, images, labels, threat_model, 10, inset)
    assert torch.allclose(state["best_margin"], margin, atol=1e-4)
    assert torch.allclose(state["best_points"], points, atol=1e-4)


GRADIENT_ATTACKS = [
    FGSM(),
    PGD(steps=8),
    PGD(steps=8, momentum=0.25, schedule="cosine", loss="margin", targets=2),
    APGD(steps=8),
    FAB(steps=8, targets=4),
    FAB(steps=8, restarts=2),
    BPDA(steps=8),
    EOT(steps=4, draws=3, radius=0.3),
]


@pytest.mark.parametrize(("norm", "eps"), THREATS)
@pytest.mark.parametrize("attack", GRADIENT_ATTACKS, ids=lambda attack: f"{attack.name}")
def test_a_front_that_changes_no_legal_image_changes_no_attack(attack, norm, eps):
    """The claimed points too: each was evaluated where it is, in the ball and strictly inside the box."""
    attack, threat_model, images = dataclasses.replace(attack, inset=INSET), ThreatModel(norm, eps), corner_images(16)
    bare = small_net()
    with torch.no_grad():
        labels = bare(images).argmax(1)
    expected = run(attack, bare, threat_model, images, labels)
    for name in ("clamp", "hardtanh"):
        assert torch.equal(run(attack, small_net(FRONTS[name]), threat_model, images, labels), expected)
    rows = Rows(images, labels, torch.arange(16), (labels + 1) % 5)
    state = run_steps(attack, bare, threat_model, attack.start(threat_model, rows))
    evaluated = state["best_margin"].isfinite()
    points = state["best_points"][evaluated]
    with torch.no_grad():
        margin = threat_model.margin(bare(points), labels[evaluated])
    assert evaluated.any()
    if not isinstance(attack, EOT):
        assert torch.allclose(margin, state["best_margin"][evaluated], atol=1e-5)
    assert points.min() > 0
    assert points.max() < 1


@pytest.mark.parametrize("attack", GRADIENT_ATTACKS, ids=lambda attack: f"{attack.name}")
def test_an_inset_takes_no_further_passes(attack):
    images, passes = corner_images(4), []
    bare = small_net()

    def counted(points):
        passes[-1] += len(points)
        return bare(points)

    for inset in (0.0, INSET):
        passes.append(0)
        labels = bare(images).argmax(1)
        state = dataclasses.replace(attack, inset=inset).start(
            ThreatModel("linf", 0.01), Rows(images, labels, torch.arange(4), (labels + 1) % 5)
        )
        run_steps(dataclasses.replace(attack, inset=inset), counted, ThreatModel("linf", 0.01), state)
    assert passes[0] == passes[1]
