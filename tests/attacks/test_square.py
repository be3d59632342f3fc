"""Square against models whose best answer is known, against its paper's numbers and against its authors' code."""

import math

import pytest
import torch
from torch import nn

from robustbench_local.attacks.attack import Rows
from robustbench_local.attacks.losses import logit_margin
from robustbench_local.attacks.square import HALVINGS, SEARCHES, Square, Windows, planes, sides, sizes_of, square
from robustbench_local.attacks.threat_model import ThreatModel

SHAPE = (3, 6, 6)
EPS = {"linf": 0.1, "l2": 0.4, "l1": 3.0}


def linear(weight, bias=0.0):
    """Two classes; the margin of class 0 falls by 2 w·δ."""

    def model(images):
        score = (images * weight).flatten(1).sum(1) - bias
        return torch.stack([-score, score], 1)

    return model


def problem(rows=8, shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return weight, torch.rand((rows, *shape), generator=generator), torch.zeros(rows, dtype=torch.int64)


def begin(attack, threat_model, images, labels, indices=None):
    keys = torch.arange(len(images)) if indices is None else indices
    return attack.start(threat_model, Rows(images, labels, keys, labels))


def small_net(size=16):
    generator = torch.Generator().manual_seed(5)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * ((size - 1) // 2) ** 2, 5))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return net.eval()


def test_linf_finds_the_optimum_of_a_linear_model_also_where_the_box_binds():
    weight, images, labels = problem()
    best = (weight.sign() * torch.where(weight > 0, 1 - images, images).clamp(max=0.1) * weight).flatten(1).sum(1)
    adversarial = square(linear(weight), images, labels, ThreatModel("linf", 0.1), steps=4000, reschedule=True)
    gain = ((adversarial - images) * weight).flatten(1).sum(1)
    assert (gain <= best * (1 + 1e-5)).all(), "nothing beats the optimum"
    assert (gain >= best * 0.9999).all()


def test_linf_breaks_what_can_be_broken_and_nothing_else():
    """The biases put the optimum's margin 2 % of its gain on either side of success."""
    weight, images, labels = problem(rows=16)
    best = (weight.sign() * torch.where(weight > 0, 1 - images, images).clamp(max=0.1) * weight).flatten(1).sum(1)
    breakable = torch.arange(16) % 2 == 0
    bias = (images * weight).flatten(1).sum(1) + best * torch.where(breakable, 0.98, 1.02)
    adversarial = square(linear(weight, bias), images, labels, ThreatModel("linf", 0.1), steps=2000, reschedule=True)
    assert torch.equal(linear(weight, bias)(adversarial).argmax(1) == 1, breakable)


@pytest.mark.parametrize(("norm", "share"), [("l2", 0.7), ("l1", 0.6)])
def test_l2_and_l1_come_as_near_the_optimum_of_a_linear_model_as_bumps_can(norm, share):
    """The smallest are 3 by 3 pixels, so weights of white noise are beyond them."""
    weight, images, labels = problem(shape=(1, 6, 6))
    images = 0.25 + 0.5 * images
    eps = {"l2": 0.2, "l1": 0.25}[norm]
    best = eps * (weight.norm() if norm == "l2" else weight.abs().max())  # the box does not bind
    adversarial = square(linear(weight), images, labels, ThreatModel(norm, eps), steps=1000, reschedule=True)
    gain = ((adversarial - images) * weight).flatten(1).sum(1)
    assert (gain <= best * (1 + 1e-5)).all(), gain / best
    assert (gain >= best * share).all(), gain / best


@pytest.mark.parametrize(
    ("norm", "place"),
    [("linf", (0, 0, 0)), ("linf", (2, 5, 5)), ("linf", (1, 0, 5)), ("l2", (0, 3, 2)), ("l1", (2, 2, 3))],
)
def test_a_model_that_looks_at_one_pixel_is_broken_through_it(norm, place):
    """In corners too, which the authors' squares do not reach in the last line and column; bumps are low there."""

    def model(images):
        queries = images[(slice(None), *place)]
        return torch.stack([torch.full_like(queries, 0.55), queries], 1)

    images, labels = torch.full((8, *SHAPE), 0.5), torch.zeros(8, dtype=torch.int64)
    adversarial = square(model, images, labels, ThreatModel(norm, EPS[norm]), steps=400, reschedule=True)
    assert (model(adversarial).argmax(1) == 1).all()


def test_no_line_or_column_is_left_out_and_every_position_is_as_likely():
    images = torch.zeros(6000, 1, 4, 7)
    generator = torch.Generator().manual_seed(0)
    windows = Windows.random(torch.rand((6000, 2), generator=generator), torch.tensor([[2, 3]]).expand(6000, 2), images)
    counts = torch.bincount(windows.top * 7 + windows.left, minlength=28).view(4, 7)
    assert (counts[:3, :5] > 320).all()
    assert (counts[:3, :5] < 480).all()
    assert counts.sum() == counts[:3, :5].sum()
    assert (windows.mask(images).flatten(1).sum(1) == 6).all()


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 9, 9), (3, 6, 11), (12, 5), (30,), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 1.0)], ids=str)
@pytest.mark.parametrize("norm", EPS)
def test_every_proposal_lies_in_ball_and_box_and_the_best_margin_never_rises(norm, box, shape):
    weight, images, labels = problem(6, shape)
    images = (box[0] + (box[1] - box[0]) * images).round(decimals=1)  # some pixels at the very edge
    model, threat_model = linear(weight), ThreatModel(norm, EPS[norm], box)
    attack = Square(steps=120, reschedule=True)
    state = begin(attack, threat_model, images, labels)
    for _ in range(attack.steps):
        points, before = state["points"], state["best_margin"]
        lengths = threat_model.geometry.distance(points.double() - images.double())
        assert points.shape == images.shape
        assert points.dtype == images.dtype
        assert (lengths <= EPS[norm] + 1e-6).all()
        assert points.min() >= box[0]
        assert points.max() <= box[1]
        state = attack.step(model, threat_model, state)
        assert (state["best_margin"] <= before).all()
        assert torch.equal(state["best_margin"], threat_model.margin(model(state["best_points"]), labels))
    assert (state["best_margin"] < threat_model.margin(model(images), labels)).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_large_eps_on_large_images_stays_in_the_ball(norm):
    """150,000 roundings of one pixel value, all in one direction, would lead out of the ball."""
    images, labels = torch.full((1, 3, 224, 224), 0.7), torch.zeros(1, dtype=torch.int64)
    threat_model = ThreatModel(norm, {"linf": 4 / 255, "l2": 3.0}[norm])
    state = begin(Square(), threat_model, images, labels)
    for _ in range(3):
        lengths = threat_model.geometry.distance(state["points"].double() - images.double())
        assert threat_model.eps * 0.999 < lengths <= threat_model.eps + 1e-6
        state = Square().step(lambda points: points.flatten(1)[:, :2], threat_model, state)


@pytest.mark.parametrize("norm", EPS)
def test_rows_that_joined_at_different_times_give_what_they_give_alone(norm):
    weight, images, labels = problem(5)
    model, threat_model = linear(weight), ThreatModel(norm, EPS[norm])
    attack = Square(steps=60, reschedule=True)
    alone = []
    for row in range(5):
        state = begin(attack, threat_model, images[row : row + 1], labels[:1], torch.tensor([row]))
        for _ in range(attack.steps):
            state = attack.step(model, threat_model, state)
        alone.append(state)
    joined = begin(attack, threat_model, images[:2], labels[:2], torch.arange(2))
    for _ in range(25):
        joined = attack.step(model, threat_model, joined)
    late = begin(attack, threat_model, images[2:], labels[2:], torch.arange(2, 5))
    joined = {key: torch.cat([late[key], joined[key]]) for key in joined}
    for _ in range(35):
        joined = attack.step(model, threat_model, joined)
    early = {key: value[3:] for key, value in joined.items()}
    joined = {key: value[:3] for key, value in joined.items()}
    for _ in range(25):
        joined = attack.step(model, threat_model, joined)
    for key in ("points", "best_points", "best_margin", "step"):
        together = torch.cat([early[key], joined[key]])
        assert torch.equal(together, torch.cat([state[key] for state in alone])), key


def test_it_asks_for_no_gradients_and_does_not_mind_a_model_without():
    def model(images):
        assert not torch.is_grad_enabled()
        assert not images.requires_grad
        images.mul_(4).round_()  # in place, as some models do
        return torch.stack([torch.full((len(images),), 2.0), images.flatten(1).mean(1)], 1)

    images, labels = torch.full((4, *SHAPE), 0.48), torch.zeros(4, dtype=torch.int64)
    for context in (torch.enable_grad(), torch.inference_mode()):
        with context:
            adversarial = square(model, images, labels, ThreatModel("linf", 0.2), steps=400, reschedule=True)
        with torch.no_grad():
            assert (model(adversarial.clone()).argmax(1) == 1).all()
            assert (adversarial - images).abs().max() <= 0.2 + 1e-6


def test_targeted_search_leads_to_the_target():
    net, images = small_net(), torch.rand((20, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    labels, rare = net(images).argmax(1), int(net(images).mean(0).argmin())
    selection = labels != rare
    threat_model = ThreatModel("linf", 0.3, target=rare)
    adversarial = square(net, images[selection], labels[selection], threat_model, steps=300, reschedule=True)
    assert (net(adversarial).argmax(1) == rare).float().mean() > 0.8


def test_squares_shrink_when_the_paper_says():
    steps, halvings = torch.arange(10_001), torch.tensor(HALVINGS)
    level = Square(steps=10_000).level(steps, halvings)
    assert (level.diff().nonzero().squeeze(1)).tolist() == [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    assert level[0] == 0
    assert level[-1] == 9
    assert torch.equal(Square(steps=5000).level(steps, halvings), level), "by the number of queries, not their share"
    assert torch.equal(Square(steps=1000, reschedule=True).level(steps[:1001], halvings), level[::10])


def test_squares_cover_their_share_in_images_of_any_shape():
    assert [sides(0.8 * 1024 / 2**n, 32, 32, odd=False)[0] for n in range(10)] == [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]
    assert [sides(0.8 * 1024 / 2**n, 32, 32, odd=True)[0] for n in range(10)] == [29, 21, 15, 11, 7, 5, 5, 3, 3, 3]
    assert sides(0.8 * 100, 1, 100, odd=False) == (1, 80), "in a line, as far as it takes"
    assert sides(0.8 * 2000, 20, 100, odd=False) == (20, 80)
    assert sides(0.1 * 2000, 100, 20, odd=False) == (14, 14)
    assert sides(0.001, 9, 9, odd=False) == (1, 1)
    assert sides(0.001, 2, 9, odd=True) == (2, 3)


def test_the_l1_search_ends_where_a_projection_would():
    images = torch.rand((50, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    sizes = torch.rand((50, 1, 1, 1), generator=torch.Generator().manual_seed(1)) * 10
    perturbation = torch.randn(images.shape, generator=torch.Generator().manual_seed(2)) * sizes
    threat_model = ThreatModel("l1", 5.0)
    adversarial = SEARCHES["l1"].place(threat_model, images, perturbation)
    exact = threat_model.project(images + perturbation, images)
    assert threat_model.geometry.distance(adversarial - exact).max() < 0.01
    steep = SEARCHES["l1"].place(threat_model, images, 10 * (perturbation / sizes) ** 3)
    assert ((threat_model.geometry.distance(steep - images) - 5).abs() < 1e-3).all(), "on the ball in any case"
    inside = SEARCHES["l1"].place(threat_model, images, perturbation * 1e-4)
    assert torch.allclose(inside, (images + perturbation * 1e-4).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"share": 0.0}, "share"),
        ({"share": 1.1}, "share"),
        ({"share": math.nan}, "share"),
    ],
)
def test_bad_settings_are_named(settings, word):
    with pytest.raises(ValueError, match=word):
        Square(**settings)


def test_other_shapes_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"height, width.*not \[2, 3, 4, 5\]"):
        planes(torch.zeros(1, 2, 3, 4, 5))


@pytest.mark.parametrize(("norm", "theirs"), [("l2", "L2"), ("l1", "L1")])
def test_bumps_are_the_authors(norm, theirs):
    peer = pytest.importorskip("pyautoattack.square").SquareAttack(None, norm=theirs, eps=1.0, device="cpu")
    for size in (2, 3, 5, 6, 11, 44):
        ours = [SEARCHES[norm].bump(size, size, turned=turned) for turned in (False, True)]
        with torch.random.fork_rng():
            windows = [peer.eta(size) for _ in range(12)]
        matches = torch.tensor([[torch.allclose(one, bump, atol=1e-6) for bump in ours] for one in windows])
        assert matches.any(1).all()
        assert matches.any(0).all()


def test_a_bump_stays_whole_wherever_its_square_lies():
    images, sizes = torch.zeros(40, 1, 9, 7), sizes_of(SEARCHES["l2"], 0.3, 9, 7, torch.float32, torch.device("cpu"))
    level = torch.arange(40) % 10
    window = Windows.random(torch.rand((40, 2), generator=torch.Generator().manual_seed(0)), sizes.sides[level], images)
    cut = window.cut(sizes.bumps, 2 * level + 1, images)
    for row in range(40):
        top, margins_left, tall, broad = (int(values[row]) for values in window)
        bump = SEARCHES["l2"].bump(tall, broad, turned=True)
        assert torch.equal(cut[row, 0, top : top + tall, margins_left : margins_left + broad], bump)
    assert torch.equal((cut != 0).float() * window.mask(images), (cut != 0).float()), "and is 0 elsewhere"


@pytest.mark.parametrize(("norm", "theirs", "eps"), [("linf", "Linf", 0.06), ("l2", "L2", 0.8), ("l1", "L1", 5.0)])
def test_it_fools_as_many_images_as_the_authors_code(norm, theirs, eps):
    """Compares the mean of three seeds on 150 images with 150 queries.

    The authors' code draws one square for a whole batch, so its counts differ between seeds with a standard deviation
    of up to 6, ours with 3: the means of three differ by 4.
    """
    peer = pytest.importorskip("pyautoattack.square").SquareAttack
    net, images = small_net(), torch.rand((150, 3, 16, 16), generator=torch.Generator().manual_seed(3))
    counts, margins_left = torch.zeros(3, 2), torch.zeros(3, 2)
    with torch.no_grad(), torch.random.fork_rng():
        labels = net(images).argmax(1)
        for seed in range(3):
            other = peer(net, norm=theirs, eps=eps, n_queries=150, resc_schedule=False, device="cpu")
            other.init_hyperparam(images)
            torch.manual_seed(seed)
            ours = square(net, images, labels, ThreatModel(norm, eps), steps=150, seed=seed)
            for number, points in enumerate((ours, other.attack_single_run(images, labels)[1])):
                margin = logit_margin(net(points), labels)
                counts[seed, number], margins_left[seed, number] = (margin < 0).sum(), margin.clamp_min(0).mean()
    (mine, authors), (my_margin, their_margin) = counts.mean(0), margins_left.mean(0)
    assert 50 < mine < 120
    assert (mine - authors).abs() <= 8, counts
    assert (my_margin - their_margin).abs() <= 0.12 * their_margin, margins_left
