"""BPDA through layers that are flat over a range of pixels, in all the ways in which people write them."""

import pytest
import torch
from fronts import Front
from torch import nn
from torch.nn import functional

from robustbench_local import load_classifier, load_dataset
from robustbench_local.attacks import BPDA, PGD, ThreatModel, run
from robustbench_local.attacks.bpda import StraightThrough

LOW, HIGH = torch.tensor(0.02), torch.tensor(0.98)


def with_masks(points):
    points = points.clone()
    points[points > HIGH] = 0.98
    points[points < LOW] = 0.02
    return points


def with_fills(points):
    points = points.clone()
    points.masked_fill_(points > HIGH, 0.98)
    return points.masked_fill(points < LOW, 0.02)


CLIPPED = {
    "clamp": lambda x: x.clamp(0.02, 0.98),
    "clamp of tensors": lambda x: torch.clamp(x, LOW, HIGH),
    "clip": lambda x: x.clip(min=0.02, max=0.98),
    "one bound each": lambda x: x.clamp(min=0.02).clip(max=0.98),
    "clamp_min": lambda x: x.clamp_min(0.02).clamp_max(0.98),
    "in place": lambda x: x.clone().clamp_min_(0.02).clamp_max_(0.98),
    "minimum": lambda x: torch.minimum(torch.maximum(x, LOW), HIGH),
    "bound first": lambda x: torch.min(HIGH, torch.max(LOW, x)),
    "fmin": lambda x: torch.fmin(torch.fmax(x, LOW), HIGH),
    "where": lambda x: torch.where(x > HIGH, HIGH, torch.where(x < LOW, LOW, x)),
    "where of numbers": lambda x: torch.where(x > 0.98, 0.98, torch.where(x < 0.02, 0.02, x)),
    "where as a method": lambda x: x.where(x < HIGH, HIGH).where(x > LOW, LOW),
    "masks": with_masks,
    "fills": with_fills,
    "hardtanh": lambda x: functional.hardtanh(x, 0.02, 0.98),
    "Hardtanh": nn.Hardtanh(0.02, 0.98),
    "Hardtanh in place": lambda x: nn.Hardtanh(0.02, 0.98, inplace=True)(x.clone()),
    "threshold": lambda x: 1 - nn.Threshold(0.02, 0.02)(1 - nn.Threshold(0.02, 0.02)(x)),
    "relu": lambda x: 0.98 - functional.relu(0.96 - functional.relu(x - 0.02)),
    "relu as a method": lambda x: 0.98 - (0.96 - (x - 0.02).relu()).relu(),
    "ReLU in place": lambda x: 0.98 - nn.ReLU(inplace=True)(0.96 - nn.ReLU(inplace=True)(x - 0.02)),
}
"""The same function of pixels."""
SCALED = {
    "ReLU6": (lambda x: nn.ReLU6()(6.25 * x - 0.125), 6.25),
    "ReLU6 in place": (lambda x: nn.ReLU6(inplace=True)(6.25 * x - 0.125), 6.25),
    "Hardsigmoid": (lambda x: nn.Hardsigmoid()(6.25 * x - 3.125), 6.25 / 6),
    "hardsigmoid": (lambda x: functional.hardsigmoid(9 * x - 4.5), 1.5),
}


@pytest.fixture
def points():
    return torch.tensor([[0.0, 1e-6, 0.01, 0.5, 0.99, 1 - 1e-6, 1.0], [0.02, 0.98, 0.3, 0.0, 1.0, 0.7, 0.6]])


def passed(front, points, **options):
    points = points.clone().requires_grad_()
    with StraightThrough(**options):
        clipped = front(points)
    return clipped.detach(), torch.autograd.grad(clipped.sum(), points)[0]


@pytest.mark.parametrize("front", CLIPPED.values(), ids=CLIPPED)
def test_gradients_pass_every_way_to_clip(front, points):
    values, gradient = passed(front, points, saturating=True)
    assert torch.equal(values, front(points)), "the values stay exact"
    assert torch.allclose(values, points.clamp(0.02, 0.98), atol=1e-6)
    assert torch.allclose(gradient, torch.ones_like(points))


@pytest.mark.parametrize(("front", "slope"), SCALED.values(), ids=SCALED)
def test_with_the_slope_that_they_have_between_their_ends(front, slope, points):
    values, gradient = passed(front, points, saturating=True)
    assert torch.equal(values, front(points))
    assert torch.allclose(gradient, torch.full_like(points, slope))


NONLINEARITIES = {
    "relu": torch.relu,
    "ReLU": nn.ReLU(),
    "in place": nn.ReLU(inplace=True),
    "clamp": lambda x: x.clamp(min=0),
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
}


@pytest.mark.parametrize("mix", [nn.Linear(7, 7), lambda x: x @ torch.eye(7), lambda x: torch.einsum("bi->bi", x)])
@pytest.mark.parametrize("name", NONLINEARITIES)
def test_the_nonlinearities_of_a_network_stay(mix, name, points):
    """Passed through unchanged, they would make it a linear one."""
    function = NONLINEARITIES[name]
    _, gradient = passed(lambda x: function(mix(x) - 0.5), points, saturating=True)
    _, expected = passed(lambda x: function(mix(x) - 0.5), points)
    assert torch.equal(gradient, expected)


def test_a_mask_of_two_functions_of_the_image_is_no_clipping(points):
    def front(images):
        return torch.where(images > 0.5, 2 * images, 0.5 * images)

    assert torch.equal(passed(front, points, saturating=True)[1], passed(front, points)[1])


def test_where_as_a_method_is_where_as_a_function(points):
    _, method = passed(lambda x: (2 * x).where(x > 0.5, -x), points)
    _, function = passed(lambda x: torch.where(x > 0.5, 2 * x, -x), points)
    assert torch.allclose(method, function)


@pytest.fixture(scope="module")
def digits_images():
    dataset = load_dataset("digits")
    return dataset.images(torch.arange(80)), dataset.labels[:80]


def standing(model, points, labels):
    with torch.no_grad():
        return int((model(points).argmax(1) == labels).sum())


def best_behind_the_clipping(net, images, labels, eps):
    """How many stand where the attack works on what the net sees, whose reachable values are known in L∞."""
    low, high = ((images + move).clamp(0.02, 0.98) for move in (-eps, eps))
    points, fooled = images.clamp(0.02, 0.98), torch.zeros(len(images), dtype=torch.bool)
    for step in range(60):
        points = points.detach().requires_grad_()
        logits = net(points)
        fooled |= logits.argmax(1) != labels
        others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        (gradient,) = torch.autograd.grad((others - logits.gather(1, labels[:, None])[:, 0]).sum(), points)
        size = 2 * eps * (1 - step / 60)
        points = torch.minimum(torch.maximum(points.detach() + size * gradient.sign(), low), high)
    return int((~fooled).sum())


@pytest.mark.parametrize("name", ["clamp", "minimum", "where as a method", "relu", "masks"])
def test_behind_such_a_layer_bpda_finds_what_an_attack_on_its_output_finds(digits_images, name):
    net, (images, labels) = load_classifier("digits-cnn").module, digits_images
    model, threat_model = nn.Sequential(Front(CLIPPED[name]), net), ThreatModel("linf", 0.1)
    left = standing(
        model, run(BPDA(steps=50, saturating=True, inset=1e-6), model, threat_model, images, labels), labels
    )
    assert left <= best_behind_the_clipping(net, images, labels, 0.1) + 1
    plain = run(PGD(steps=50, loss="scaled-ce", inset=1e-6), model, threat_model, images, labels)
    assert standing(model, plain, labels) >= left + 8, "the gradients are missing at black and white pixels"
