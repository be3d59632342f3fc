"""FAB against what is known in closed form, against solvers, and against its authors' code."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, lsq_linear
from torch import nn

from robustbench_local import load_classifier, load_dataset
from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.attack import Rows, run
from robustbench_local.attacks.fab import DUAL, FAB, fab, nearest_boundary, to_hyperplane
from robustbench_local.attacks.norms import NORMS

SHAPE = (3, 5, 5)
CENTRE = {"linf": 0.03, "l2": 0.2, "l1": 1.0}
"""Radii at which the small net is fooled on some images and not on others."""


class Linear(nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, images):
        return images.flatten(1) @ self.weight.T + self.bias


def noise(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def small_net(classes=4):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(72, classes)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.copy_(noise(number, *parameter.shape) * 0.3)
    return net


def least_length(norm, points, values, gradient, low=0.0, high=1.0):
    """The shortest way to the hyperplane by a general solver, or None where the box has none. One row, float64."""
    points, gradient = points.numpy(), gradient.numpy()
    bounds = list(zip(low - points, high - points, strict=True))
    count = len(points)
    if norm == "l2":
        # The constraint as a heavily weighted residual; the bounds are the solver's own.
        heavy = 1e4
        system = [*[[float(i == j) for j in range(count)] for i in range(count)], heavy * gradient]
        adversarial = lsq_linear(
            torch.tensor([list(map(float, row)) for row in system]).numpy(),
            [0.0] * count + [-heavy * values],
            (low - points - 1e-12, high - points + 1e-12),
            method="bvls",
            tol=1e-14,
        )
        return float((adversarial.x**2).sum() ** 0.5) if abs(gradient @ adversarial.x + values) < 1e-4 else None
    # Variables: the perturbation, then its pixels' sizes; for ℓ∞ one size for all.
    sizes = 1 if norm == "linf" else count
    above = []
    for i, sign in itertools.product(range(count), (1, -1)):
        row = [0.0] * (count + sizes)
        row[i], row[count + (0 if norm == "linf" else i)] = sign, -1.0
        above.append(row)
    adversarial = linprog(
        [0.0] * count + [1.0] * sizes,
        A_ub=above,
        b_ub=[0.0] * len(above),
        A_eq=[[*gradient, *[0.0] * sizes]],
        b_eq=[-values],
        bounds=bounds + [(0, None)] * sizes,
    )
    return adversarial.fun if adversarial.status == 0 else None


VALUE = st.one_of(st.just(0.0), st.floats(-2, 2).map(lambda value: round(value, 3)))
PLACE = st.floats(0, 1).map(lambda value: round(value, 3))


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(PLACE, VALUE), min_size=1, max_size=7), VALUE)
def test_the_way_to_a_hyperplane_is_the_shortest_in_the_box(norm, random_points, value):
    points, gradient = torch.tensor(random_points, dtype=torch.float64).T
    values = torch.tensor([value], dtype=torch.float64)
    way = to_hyperplane(norm, points[None], values, gradient[None], (0.0, 1.0))[0]
    next_walk = points + way
    assert next_walk.min() >= -1e-12
    assert next_walk.max() <= 1 + 1e-12
    best = torch.where(gradient * value > 0, -points, 1 - points)  # as far as the box lets, to where the value falls
    reachable = (gradient * best).sum().abs() >= abs(value)
    if value and gradient.any() and not reachable:
        assert torch.allclose(way, torch.where(gradient == 0, 0, best)), "as near as the box lets"
        return
    assert abs(value + float(gradient @ way)) < 1e-9 or not gradient.any()
    expected = least_length(norm, points, value, gradient)
    if expected is not None and gradient.any():
        assert float(NORMS[norm].distance(way[None])) == pytest.approx(expected, abs=2e-4 if norm == "l2" else 1e-7)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_scale_of_the_gradient_does_not_matter(norm, scale):
    points, gradient, values = pixels(0, 6, 40), noise(1, 6, 40), noise(2, 6)
    expected = to_hyperplane(norm, points, values, gradient, (0.0, 1.0))
    scaled = to_hyperplane(norm, points, values * scale, gradient * scale, (0.0, 1.0))
    assert torch.allclose(scaled, expected, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_values_without_a_gradient_move_nothing(norm):
    points, zero = pixels(0, 3, *SHAPE), torch.zeros(3, *SHAPE)
    assert not to_hyperplane(norm, points, torch.tensor([1.0, -1.0, 0.0]), zero, (0.0, 1.0)).any()


@pytest.mark.parametrize("norm", NORMS)
def test_projections_agree_with_the_authors(norm):
    theirs = pytest.importorskip("pyautoattack.fab_projections")
    points, gradient, values = pixels(3, 60, 48), noise(4, 60, 48), 6 * noise(5, 60)
    expected = getattr(theirs, f"projection_{norm}")(points, gradient, (gradient * points).sum(1) - values)
    assert torch.allclose(to_hyperplane(norm, points, values, gradient, (0.0, 1.0)), expected, atol=2e-5)


def least_distance(norm, weight, places, needed):
    """How far weight · δ must reach to rise by `needed` in the box [0, 1], by bisection. One row, float64."""
    room, sizes = torch.where(weight > 0, 1 - places, places), weight.abs()
    falling = sizes.argsort(descending=True)

    def moves(level):
        if norm == "linf":
            return room.clamp(max=level)
        if norm == "l2":
            return torch.minimum(level * sizes, room)
        most = room[falling]
        costs = torch.minimum((level - most.cumsum(0) + most).clamp(min=0), most)
        return torch.zeros_like(room).scatter(0, falling, costs)

    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if sizes @ moves(middle) >= needed else (middle, high)
    return float(NORMS[norm].distance(moves(high)[None]))


@pytest.mark.parametrize("targets", [0, 9])
@pytest.mark.parametrize(("classes", "edges"), [(2, False), (3, False), (4, False), (3, True)])
@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_is_fooled_just_beyond_its_least_distance(norm, classes, targets, edges):
    images = pixels(1, 2, *SHAPE)
    if edges:  # most pixels cannot move far: the box decides
        images = images.round() * 0.98 + 0.01
    model = Linear(noise(2, classes, 75), noise(3, classes))
    labels = model(images).argmax(1)
    for image, label in zip(images, labels, strict=True):
        logits = model(image[None])[0].double()
        least = min(
            least_distance(
                norm,
                (model.weight[other] - model.weight[label]).double(),
                image.flatten().double(),
                float(logits[label] - logits[other]),
            )
            for other in range(classes)
            if other != label
        )
        for share in (0.99, 1.01):
            adversarial = fab(
                model, image[None], label[None], ThreatModel(norm, share * least), steps=12, targets=targets
            )
            assert bool(model(adversarial).argmax(1) != label) == (share > 1), share


@pytest.mark.parametrize("targets", [0, 9])
@pytest.mark.parametrize("norm", NORMS)
def test_with_a_goal_it_steers_to_that_class(norm, targets):
    net, threat_model = small_net(), ThreatModel(norm, 4 * CENTRE[norm], target=2)
    images = pixels(0, 40, *SHAPE)
    labels = net(images).argmax(1)
    images, labels = images[labels != 2], labels[labels != 2]
    success = net(fab(net, images, labels, threat_model, steps=20, targets=targets)).argmax(1) == 2
    assert success.float().mean() > 0.3, "what succeeds here is the goal alone"
    untargeted = fab(net, images, labels, ThreatModel(norm, 4 * CENTRE[norm]), steps=20)
    assert (net(untargeted).argmax(1) == 2).sum() < success.sum()


def walks(attack, net, threat_model, images, labels, targets):
    """The state after every step."""
    state = attack.start(threat_model, Rows(images, labels, torch.arange(len(images)), targets))
    for _ in range(attack.steps):
        state = attack.step(net, threat_model, state)
        yield state


@pytest.mark.parametrize("goal", [None, 1])
@pytest.mark.parametrize(("targets", "restarts"), [(0, 1), (9, 1), (0, 2)])
@pytest.mark.parametrize("norm", NORMS)
def test_only_what_is_in_ball_and_box_and_fools_is_ever_claimed(norm, targets, restarts, goal):
    net, threat_model = small_net(), ThreatModel(norm, CENTRE[norm], target=goal)
    images = pixels(0, 48, *SHAPE).round(decimals=1)
    labels = net(images).argmax(1)
    images, labels = images[labels != 1], labels[labels != 1]
    attack, outside = FAB(steps=15, targets=targets, restarts=restarts), 0
    for state in walks(attack, net, threat_model, images, labels, (labels + 1) % 4 if goal is None else labels * 0 + 1):
        for points in (state["points"], state["best_points"]):
            assert (threat_model.geometry.distance(points.double() - images.double()) <= CENTRE[norm] + 1e-7).all()
            assert points.min() >= 0
            assert points.max() <= 1
        claims, predicted = state["best_margin"] < 0, net(state["best_points"]).argmax(1)
        assert torch.equal(claims, predicted != labels if goal is None else predicted == goal)
        away = threat_model.geometry.distance(state["walk"] - images) > CENTRE[norm]
        outside += int((away & (net(state["walk"]).argmax(1) != labels)).sum())
        assert state["walk"].min() >= 0
        assert state["walk"].max() <= 1
    assert outside
    assert claims.any()
    assert not claims.all()


@pytest.mark.parametrize(("targets", "restarts"), [(0, 1), (3, 1), (0, 2)])
@pytest.mark.parametrize("norm", NORMS)
def test_every_row_has_its_own_clock_and_no_neighbours(norm, targets, restarts):
    """Rows that join and leave at different times give what they give alone, one at a time."""
    net, threat_model = small_net().double(), ThreatModel(norm, CENTRE[norm])
    images = pixels(2, 6, *SHAPE).double()
    labels, attack = net(images).argmax(1), FAB(steps=10, targets=targets, restarts=restarts)

    def begin(selection):
        selection = torch.tensor(selection)
        return attack.start(
            threat_model, Rows(images[selection], labels[selection], selection, (labels[selection] + 1) % 4)
        )

    state, finished = begin([0, 1, 2]), {}
    places = [0, 1, 2]
    for turn in range(20):
        if turn == 4:
            fresh, places = begin([5, 4, 3]), [*places, 5, 4, 3]
            state = {key: torch.cat([state[key], fresh[key]]) for key in state}
        state = attack.step(net, threat_model, state)
        for row, place in enumerate(places):
            if state["step"][row] == attack.steps:
                finished[place] = {key: value[row] for key, value in state.items()}
        keep = state["step"] < attack.steps
        places = [place for place, remaining in zip(places, keep, strict=True) if remaining]
        state = {key: value[keep] for key, value in state.items()}
        if not places:
            break
    assert sorted(finished) == list(range(6))
    for place, row in finished.items():
        alone = begin([place])
        for _ in range(attack.steps):
            alone = attack.step(net, threat_model, alone)
        for key, value in alone.items():
            assert torch.allclose(value[0], row[key], atol=1e-9), key


@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_boundary_is_that_of_a_loop(norm):
    net, images = small_net(), pixels(0, 9, *SHAPE)
    labels = torch.arange(9) % 4
    _, values, slope = nearest_boundary(net, ThreatModel(norm, 0.1), images, labels)
    for row in range(9):
        point, label = images[row : row + 1].requires_grad_(True), int(labels[row])
        ways = []
        for other in set(range(4)) - {label}:
            logits = net(point)[0]
            ahead = logits[other] - logits[label]
            gradient = torch.autograd.grad(ahead, point)[0]
            ahead = float(ahead.detach())
            ways.append((abs(ahead) / float(DUAL[norm].distance(gradient)), ahead, gradient[0]))
        _, ahead, gradient = min(ways, key=lambda way: way[0])
        assert float(values[row]) == pytest.approx(ahead, abs=1e-5)
        assert torch.allclose(slope[row], gradient, atol=1e-5)


@pytest.mark.parametrize("targets", [0, 3])
def test_what_a_step_costs(targets):
    net, passes = small_net(), {"forward": 0, "backward": 0}

    def counter(images):
        passes["forward"] += len(images)
        logits = net(images)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: passes.update(backward=passes["backward"] + len(gradient)))
        return logits

    images, threat_model = pixels(0, 5, *SHAPE), ThreatModel("linf", 0.01)
    labels, attack = net(images).argmax(1), FAB(targets=targets)
    attack.step(counter, threat_model, attack.start(threat_model, Rows(images, labels, labels, (labels + 1) % 4)))
    assert passes == ({"forward": 5, "backward": 5} if targets else {"forward": 10, "backward": 15})


@pytest.mark.parametrize("targets", [0, 2])
def test_models_that_give_nothing_to_go_by_are_survived(targets):
    images, labels = pixels(0, 4, *SHAPE), torch.zeros(4, dtype=torch.int64)
    stuck = lambda images: images.detach().flatten(1)[:, :3].round() - torch.tensor([-9.0, 0, 0])  # noqa: E731
    nan_rows = lambda images: images.flatten(1)[:, :3].sqrt() * float("nan")  # noqa: E731
    huge = lambda images: images.flatten(1)[:, :3] * 1e38 - torch.tensor([-3e38, 0, 0])  # noqa: E731
    for norm, model in itertools.product(NORMS, (stuck, nan_rows, huge)):
        threat_model = ThreatModel(norm, 0.1)
        adversarial = fab(model, images, labels, threat_model, steps=3, targets=targets)
        assert adversarial.isfinite().all()
        assert (threat_model.geometry.distance(adversarial - images) <= 0.1 + 1e-6).all()


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"targets": -1}, "targets"),
        ({"eta": 0.5}, "eta"),
        ({"alpha_max": 1.5}, "alpha_max"),
        ({"beta": -0.1}, "beta"),
        ({"eta": float("nan")}, "eta"),
    ],
)
def test_bad_settings_are_named(given, word):
    with pytest.raises(ValueError, match=word):
        FAB(**given)


@pytest.mark.parametrize("targets", [0, 9])
def test_inference_mode_is_refused_rather_than_blind(targets):
    images, labels, threat_model = pixels(0, 2, *SHAPE), torch.zeros(2, dtype=torch.int64), ThreatModel("l2", 0.1)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        fab(small_net(), images, labels, threat_model, targets=targets)


@pytest.mark.parametrize(
    ("norm", "eps", "targets"),
    [("linf", 0.17, 9), ("linf", 0.17, 0), ("l2", 0.7, 9), ("l2", 0.7, 0), ("l1", 2.0, 9), ("l1", 2.0, 0)],
)
def test_as_strong_as_the_authors(norm, eps, targets):
    theirs = pytest.importorskip("pyautoattack.fab_pt").FABAttack_PT
    model, digits = load_classifier("digits-cnn-robust"), load_dataset("digits")
    images, labels = digits.images(range(70)), digits.labels[:70]
    right = model(images).argmax(1) == labels
    images, labels, threat_model = images[right], labels[right], ThreatModel(norm, eps)
    spelled = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    reference = theirs(model, norm=spelled, eps=eps, n_iter=20, targeted=targets > 0, n_target_classes=9)
    with torch.random.fork_rng():  # it seeds the global generator
        other = reference.perturb(images, labels)
    inside = threat_model.geometry.distance(other.double() - images.double()) <= eps + 1e-6
    expected = int(((model(other).argmax(1) != labels) & inside).sum())
    adversarial = run(FAB(steps=20, targets=targets), model, threat_model, images, labels)
    fooled = int((model(adversarial).argmax(1) != labels).sum())
    print(f"{norm} {eps} targets={targets}: {fooled} fooled of {len(labels)}, by the authors' code {expected}")
    assert 0.1 * len(labels) < expected < 0.95 * len(labels), "a comparison that can fail"
    assert expected - 2 <= fooled <= expected + 5
