"""BPDA, EOT and random noise: linear models behind what stops gradients, whose optimum is known all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_local.attacks import BPDA, EOT, PGD, Descent, Noise, ThreatModel, run
from robustbench_local.attacks.attack import Rows
from robustbench_local.attacks.bpda import straight_through
from robustbench_local.attacks.randomness import sample_keys

SHAPE, EPS = (1, 4, 4), 0.1
BALLS = [ThreatModel("linf", 0.1), ThreatModel("l2", 0.5), ThreatModel("l1", 2.0)]


@torch.no_grad()
def unseen(images):
    return images * 1.0


def through_numpy_into_buffer(images):
    result = torch.zeros_like(images)
    for row, image in enumerate(images):
        result[row] = torch.from_numpy(image.detach().numpy().round(2))
    return result


def in_inference_mode(images):
    with torch.inference_mode():
        return (images * 255).round() / 255


def numpy_in_inference_mode(images):
    with torch.inference_mode():
        back = torch.from_numpy((images.numpy() * 255).round())
        back /= 255
        scale = torch.from_numpy(np.ones(1, "float32"))
        return back * scale


@torch.inference_mode()
def decorated_with_inference_mode(images):
    return images * 1.0


class Hidden(nn.Module):
    """Two classes behind a front that hides the input's gradient."""

    def __init__(self, front, weight):
        super().__init__()
        self.front, self.weight = front, nn.Parameter(weight, requires_grad=False)

    def forward(self, images):
        score = (self.front(images) * self.weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


FRONTS = {
    "round": lambda images: (images * 255).round() / 255,
    "bytes": lambda images: (images * 255).byte().float() / 255,
    "integer arithmetic": lambda images: ((images * 255).long() * 2 // 2).float() / 255,
    "detach": lambda images: images.detach(),
    "data": lambda images: images.data,
    "no_grad": unseen,
    "numpy": lambda images: torch.from_numpy(images.detach().numpy().copy()) + 0.0,
    "numpy bytes": lambda images: torch.from_numpy((images.detach().numpy() * 255).astype("uint8")).float() / 255,
    "levels in numpy": lambda images: (
        torch.from_numpy((images.detach() * 255).round().to(torch.uint8).cpu().numpy().copy()).to(images) / 255
    ),
    "image by image": lambda images: (
        torch.from_numpy(np.stack([np.asarray(image.detach().numpy() * 255, "uint8") for image in images])).float()
        / 255
    ),
    "levels image by image": lambda images: (
        torch.stack([torch.from_numpy(image.numpy().copy()) for image in (images * 255).byte()]).float() / 255
    ),
    "in place after numpy": lambda images: torch.from_numpy(images.detach().numpy() * 255).div_(255),
    "from numpy into a buffer": through_numpy_into_buffer,
    "inference mode": in_inference_mode,
    "numpy in inference mode": numpy_in_inference_mode,
    "decorated with inference mode": decorated_with_inference_mode,
    "comparisons": lambda images: sum((images > level / 50).float() for level in range(50)) / 50,
    "where": lambda images: torch.where(images > 0.5, torch.ones(()), torch.zeros(())) + 0 * images.detach(),
    "masked_fill": lambda images: torch.zeros_like(images).masked_fill(images > 0.5, 1.0),
    "and": lambda images: ((images > 0.3) & (images > 0.31)).float(),
}


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SHAPE, generator=generator)
    images = 0.3 + 0.4 * torch.rand((8, *SHAPE), generator=generator)
    return weight, images, torch.zeros(8, dtype=torch.int64)


@pytest.mark.parametrize("front", FRONTS)
def test_values_stay_and_gradients_pass(problem, front):
    weight, images, _ = problem
    model, points = Hidden(FRONTS[front], weight), images.clone().requires_grad_(True)
    exact = model(images)
    passing = straight_through(model)(points)
    assert torch.equal(passing.detach(), exact.detach())
    gradient = torch.autograd.grad(passing[:, 1].sum(), points)[0]
    alike = (gradient.sign() == weight.sign()).float().mean()
    assert alike > 0.97, f"{front}: the gradient leads along the weights at {alike:.0%} of the pixels"


@pytest.mark.parametrize("front", FRONTS)
def test_bpda_finds_the_optimum_that_pgd_is_blind_to(problem, front):
    weight, images, labels = problem
    model, ball = Hidden(FRONTS[front], weight), ThreatModel("linf", EPS)
    adversarial = run(BPDA(steps=20, loss="margin"), model, ball, images, labels)
    corner = (images + EPS * weight.sign()).clamp(0, 1)
    assert (model(adversarial)[:, 1] >= model(corner)[:, 1] - 1e-4).all()
    blind = run(PGD(steps=20, loss="margin"), model, ball, images, labels)
    assert (model(blind)[:, 1] < model(corner)[:, 1] - 1e-3).any(), "nothing was hidden"


def test_grey_levels_out_of_numpy_are_scaled_back(problem):
    _, images, _ = problem
    model, points = Hidden(FRONTS["numpy bytes"], torch.ones(SHAPE)), images.clone().requires_grad_(True)
    gradient = torch.autograd.grad(straight_through(model)(points)[:, 1].sum(), points)[0]
    assert torch.allclose(gradient, torch.ones_like(gradient), atol=0.02)


def test_where_leads_to_the_side_that_is_taken(problem):
    """|x - 0.5| by a comparison: it rises away from the middle on either side."""
    _, images, _ = problem
    folded = Hidden(lambda x: torch.where(x.detach() > 0.5, x - 0.5, 0.5 - x), torch.ones(SHAPE))
    points = images.clone().requires_grad_(True)
    gradient = torch.autograd.grad(straight_through(folded)(points)[:, 1].sum(), points)[0]
    assert ((gradient > 0) == (images > 0.5)).float().mean() > 0.9


@pytest.mark.parametrize(
    "front",
    [
        lambda x: (x * 255).round_() / 255,
        lambda x: torch.div(x * 255, 1, rounding_mode="floor") / 255,
        lambda x: (x * 255).floor_() / 255,
        lambda x: torch.floor_divide(x * 255, 1) / 255,
    ],
    ids=["round_", "div", "floor_", "floor_divide"],
)
def test_other_spellings_of_staircases(problem, front):
    weight, images, _ = problem
    model, points = Hidden(front, weight), images.clone().requires_grad_(True)
    passing = straight_through(model)(points)
    assert torch.equal(passing.detach(), model(images))
    gradient = torch.autograd.grad(passing[:, 1].sum(), points)[0]
    assert (gradient.sign() == weight.sign()).all()


def test_inference_mode_hides_nothing(problem):
    weight, images, _ = problem

    def front(values):
        with torch.inference_mode():
            return (values * 255).round() / 255

    points = images.clone().requires_grad_(True)
    gradient = torch.autograd.grad(straight_through(Hidden(front, weight))(points)[:, 1].sum(), points)[0]
    assert (gradient.sign() == weight.sign()).all()
    with torch.inference_mode():
        assert torch.is_inference_mode_enabled(), "as it was"


def test_what_a_model_keeps_is_left_without_a_gradient(problem):
    weight, images, _ = problem

    class Counting(Hidden):
        def __init__(self):
            super().__init__(lambda values: values, weight)
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, values):
            with torch.no_grad():
                self.mean.mul_(0.9).add_(values.mean(), alpha=0.1)
            return super().forward(values)

    model = Counting()
    run(BPDA(steps=3), model, ThreatModel("linf", EPS), images, torch.zeros(8, dtype=torch.int64))
    assert not model.mean.requires_grad
    assert float(model.mean) > 0


def write_out(values):
    """Torch refuses `out=` for tensors that require gradients; the product with 0 leaves the plain path."""
    return values + 0 * torch.mul(values.detach(), 2, out=torch.empty(values.shape))


def write_to_view(values):
    with torch.no_grad():
        view = (values * 1)[:1]
        view.unbind()[0].add_(1)
    return values


@pytest.mark.parametrize("front", [write_out, write_to_view])
def test_a_model_that_breaks_when_gradients_pass_is_attacked_as_it_is(problem, front):
    weight, images, labels = problem
    model, ball = Hidden(front, weight), ThreatModel("linf", EPS)
    with pytest.raises(RuntimeError):
        straight_through(model)(images.clone().requires_grad_(True))
    adversarial = run(BPDA(steps=20, loss="margin"), model, ball, images, labels)
    corner = (images + EPS * weight.sign()).clamp(0, 1)
    assert (model(adversarial)[:, 1] >= model(corner)[:, 1] - 1e-4).all()


def test_descent_wins_where_the_loss_is_turned_round(problem):
    """Logits whose margin is shown as far from 0 as it is near, with the same class: up leads away from success."""
    weight, images, labels = problem

    class Turned(nn.Module):
        def forward(self, points):
            score = (points * weight).flatten(1).sum(1) - 4
            shown = torch.where(score < 0, -10 - score, score)
            return torch.stack([torch.zeros_like(score), shown], 1)

    model, ball = Turned(), ThreatModel("linf", 0.4)
    assert (model(images).argmax(1) == 0).all()
    honest = (images + 0.4 * weight.sign()).clamp(0, 1)
    reachable = model(honest).argmax(1) == 1
    assert reachable.any()
    up, down = (run(kind(steps=20, loss="margin"), model, ball, images, labels) for kind in (PGD, Descent))
    assert (model(down).argmax(1) == 1)[reachable].all()
    assert not (model(up).argmax(1) == 1)[reachable].all()


def test_saturation_is_passed_only_when_asked(problem):
    weight, images, _ = problem
    flat = Hidden(lambda values: torch.tanh(1000 * (values + 1)), weight)
    points = images.clone().requires_grad_(True)
    for saturating in (False, True):
        gradient = torch.autograd.grad(straight_through(flat, saturating=saturating)(points)[:, 1].sum(), points)[0]
        assert bool((gradient != 0).all()) is saturating


def test_named_layers_are_the_identity_on_the_way_back(problem):
    weight, images, _ = problem

    class Squashed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.square()

        @staticmethod
        def backward(ctx, gradient):
            return torch.zeros_like(gradient)

    class Front(nn.Module):
        def forward(self, values):
            return Squashed.apply(values)

    model, points = Hidden(Front(), weight), images.clone().requires_grad_(True)
    for layers, expected in (((), 0 * weight), (("front",), weight), (("elsewhere",), 0 * weight)):
        gradient = torch.autograd.grad(straight_through(model, layers)(points)[:, 1].sum(), points)[0]
        assert torch.equal(gradient, expected.expand_as(images))
    assert not model.front._forward_hooks, "the model is as it was"


def small_network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))


@pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)
@pytest.mark.parametrize("settings", [{"targets": 3}, {"loss": "margin", "restarts": 2}])
def test_where_nothing_is_hidden_bpda_and_one_draw_are_pgd(ball, settings):
    model, images = small_network(), torch.rand(6, *SHAPE)
    labels = model(images).argmax(1)
    common = {"steps": 10, "loss": "scaled-ce", "schedule": "cosine", "momentum": 0.25, **settings}
    rows = Rows(images, labels, sample_keys(0, torch.arange(6), "same", 0), (labels + 1) % 4)
    ends = []
    for attack in (PGD(**common), BPDA(**common), EOT(draws=1, **common)):
        state = attack.start(ball, rows)
        for _ in range(attack.steps):
            state = attack.step(model, ball, state)
        ends.append(state["points"])
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(
    "attack", [BPDA(steps=5), EOT(steps=5, draws=3, radius=0.5), Noise(steps=20)], ids=lambda attack: attack.name
)
@pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)
def test_points_stay_in_ball_and_box_whatever_their_batch(attack, ball):
    model, images = small_network(), (1.4 * torch.rand(7, *SHAPE) - 0.2).clamp(0, 1)
    labels = model(images).argmax(1)
    adversarial = run(attack, model, ball, images, labels)
    assert (ball.geometry.distance(adversarial - images) <= ball.eps + 1e-6).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    alone = run(attack, model, ball, images[3:4], labels[3:4], indices=torch.tensor([3]))
    torch.testing.assert_close(alone[0], adversarial[3], rtol=0, atol=1e-6)


def test_eot_climbs_the_mean_of_a_random_model(problem):
    """Each look adds noise a hundred times as strong as the signal: one look goes astray, many find the corner."""
    weight, images, labels = problem
    torch.manual_seed(0)
    noisy = Hidden(lambda values: values * (1 + 3 * torch.randn_like(values)), weight)
    ball = ThreatModel("linf", EPS)
    agreements = {}
    for draws in (1, 200):
        state = EOT(steps=1, draws=draws, loss="margin", schedule="constant", step_size=EPS, random_start=False)
        start = state.start(ball, Rows(images, labels, torch.arange(8), labels))
        steps_taken = state.step(noisy, ball, start)["points"] - images
        agreements[draws] = float((steps_taken.sign() == weight.sign()).float().mean())
    assert agreements[200] > 0.95 > 0.8 > agreements[1]


def test_looks_around_the_point_see_over_a_comb(problem):
    """A fine comb lies over the slope: its gradient at a point leads anywhere, the mean over the ball along it."""
    weight, images, labels = problem
    comb = Hidden(lambda values: values + 0.02 * torch.sin(2000 * values), weight)
    ball = ThreatModel("linf", EPS)
    agreement = {}
    for radius in (0.0, 1.0):
        attack = EOT(
            steps=1, draws=300, radius=radius, loss="margin", schedule="constant", step_size=EPS, random_start=False
        )
        steps_taken = attack.step(comb, ball, attack.start(ball, Rows(images, labels, torch.arange(8), labels)))[
            "points"
        ]
        agreement[radius] = float(((steps_taken - images).sign() == weight.sign()).float().mean())
    assert agreement[1.0] > agreement[0.0] + 0.1


def test_noise_is_uniform_and_reaches_the_edge():
    ball, images = ThreatModel("linf", 0.2), torch.full((500, *SHAPE), 0.5)
    attack = Noise(steps=2)
    state = attack.start(ball, Rows(images, torch.zeros(500, dtype=torch.int64), torch.arange(500), None))
    inside = (state["points"] - images).flatten()
    assert abs(float(inside.mean())) < 0.01
    assert abs(float(inside.std()) - 0.4 / 12**0.5) < 0.005
    state = attack.step(small_network(), ball, state)
    edge = (state["points"] - images).flatten()
    assert torch.allclose(edge.abs(), torch.tensor(0.2))
    assert abs(float(edge.mean())) < 0.01


@pytest.mark.parametrize(
    ("kind", "settings", "word"),
    [
        (EOT, {"draws": 0}, "draws"),
        (EOT, {"radius": 1.5}, "radius"),
        (EOT, {"radius": -0.1}, "radius"),
        (Noise, {"steps": 0}, "steps"),
        (BPDA, {"loss": "nll"}, "nll"),
    ],
)
def test_impossible_settings_are_refused(kind, settings, word):
    with pytest.raises(ValueError, match=word):
        kind(**settings)
