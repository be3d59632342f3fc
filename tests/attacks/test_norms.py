import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robustbench_local.attacks.norms import NORMS
from robustbench_local.attacks.randomness import sample_keys

SLACK = 1e-7  # L∞ alone rounds to nearest
pixels = hnp.arrays(np.float32, (3, 2, 4, 4), elements=st.floats(0, 1, width=32))
moves = hnp.arrays(np.float32, (3, 2, 4, 4), elements=st.floats(-3, 3, width=32))
norms = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


@norms
@given(images=pixels, moves=moves, eps=st.floats(0, 4))
@settings(max_examples=60, deadline=None)
def test_projection_is_in_ball_and_box_and_idempotent(norm, images, moves, eps):
    images, points = torch.from_numpy(images), torch.from_numpy(images + moves)
    projected = norm.project(points, images, eps, (0.0, 1.0))
    assert (norm.distance(projected.double() - images.double()) <= eps + SLACK).all()
    assert projected.min() >= 0
    assert projected.max() <= 1
    again = norm.project(projected, images, eps, (0.0, 1.0))
    assert torch.allclose(again, projected, atol=1e-5)


@norms
@given(images=pixels, moves=moves)
@settings(max_examples=30, deadline=None)
def test_points_inside_stay_where_they_are(norm, images, moves):
    images = torch.from_numpy(images)
    points = (images + torch.from_numpy(moves)).clamp(0, 1)
    eps = float(norm.distance(points - images).max()) * (1 + 1e-6)
    assert torch.allclose(norm.project(points, images, eps, (0.0, 1.0)), points, atol=1e-5)


@pytest.mark.parametrize("name", ["linf", "l1"])
@given(images=pixels, moves=moves, others=moves, eps=st.floats(0.01, 4))
@settings(max_examples=80, deadline=None)
def test_projection_gives_the_nearest_point_of_ball_and_box(name, images, moves, others, eps):
    """The projection y of x onto a convex set has (x - y)·(z - y) <= 0 for every z in it.

    ℓ2 is left out: clipping after the projection onto its ball is in the set, but need not be the nearest point.
    """
    norm = NORMS[name]
    images = torch.from_numpy(images).double()
    points, others = images + torch.from_numpy(moves).double(), torch.from_numpy(others).double()
    nearest = norm.project(points, images, eps, (0.0, 1.0))
    inside = images + others * (eps / norm.distance(others).clamp_min(eps)).view(-1, 1, 1, 1)
    inside = inside.clamp(0, 1)
    assert (((points - nearest) * (inside - nearest)).flatten(1).sum(1) <= 1e-6).all()


WIDE = (-100.0, 100.0)


@pytest.mark.parametrize(("name", "dual"), [("linf", 1), ("l2", 2)])
def test_steepest_step_reaches_the_dual_norm(name, dual):
    gradient = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    step = NORMS[name].steepest(gradient, torch.zeros_like(gradient), torch.full((5,), 0.5), WIDE)
    gain = (step * gradient).flatten(1).sum(1)
    assert torch.allclose(gain, 0.5 * gradient.flatten(1).norm(p=dual, dim=1), rtol=1e-5)


def test_l1_steps_on_its_largest_gradients_as_far_as_the_box_lets_them():
    gradient = torch.linspace(-1, 1, 300).view(1, 3, 10, 10)
    points = torch.full_like(gradient, 0.5)
    points.view(-1)[[0, 299]] = torch.tensor([0.0, 0.9])
    step = NORMS["l1"].steepest(gradient, points, torch.tensor([0.6]), (0.0, 1.0)).flatten()
    moved = {place: round(float(step[place]), 4) for place in step.nonzero().squeeze(1).tolist()}
    # Three of 300 pixels share the step, 0.2 each; pixel 0 is at the edge and pixel 299 has 0.1 left.
    assert moved == {299: 0.1, 1: -0.2, 298: 0.2, 2: -0.1}


@norms
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_steps_have_their_length_at_any_scale_of_the_gradient(norm, size):
    gradient = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(1)) * size
    gradient[3] = 0
    lengths = torch.tensor([0.3, 0.1, 20.0, 0.3])
    step = norm.steepest(gradient, torch.zeros_like(gradient), lengths, WIDE)
    assert torch.allclose(norm.distance(step), torch.tensor([0.3, 0.1, 20.0, 0.0]), rtol=1e-4)


@norms
def test_random_start_fills_the_ball(norm):
    images = torch.full((4000, 1, 2, 1), 0.5)
    noise = norm.random_start(images, 0.3, sample_keys(0, torch.arange(4000), "test", 0))
    lengths = norm.distance(noise)
    assert lengths.max() <= 0.3 + 1e-6
    # In two dimensions a uniform point is within half the radius with probability 1/4.
    assert (lengths < 0.15).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert noise.mean().abs() < 0.01


@pytest.mark.parametrize("kind", ["grey", "noise", "white"])
@pytest.mark.parametrize(("name", "eps"), [("l2", 0.5), ("l2", 3.0), ("l2", 10.0), ("l1", 12.0), ("l1", 75.0)])
def test_no_projection_of_a_large_image_ends_outside(name, eps, kind):
    """150,000 roundings to nearest would carry it out by up to 1e-5, and the engine would not believe the success."""
    generator = torch.Generator().manual_seed(0)
    images = {
        "grey": torch.full((2, 3, 224, 224), 0.5),
        "noise": torch.randint(0, 256, (2, 3, 224, 224), generator=generator) / 255,
        "white": torch.ones(2, 3, 224, 224),
    }[kind]
    norm, points = NORMS[name], images
    for _ in range(3):
        points = norm.project(points + torch.randn(points.shape, generator=generator), images, eps, (0.0, 1.0))
        lengths = norm.distance(points.double() - images.double())
        assert (lengths <= eps * (1 + 1e-12)).all()
    if kind == "grey":
        assert (lengths >= eps * (1 - 1e-3)).all(), "and little of the ball is given away"
