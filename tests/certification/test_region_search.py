import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from robustbench_local import Classifier, ThreatModel
from robustbench_local.attacks import pgd
from robustbench_local.certification.region_search import reachable, search
from robustbench_local.certification.relu_network import PiecewiseLinear, pixel_bounds

SHAPE = (1, 2, 3)


def mlp(seed, hidden=(5, 5), classes=3, scale=2.0):
    """A random network with its normalisation, small enough for all its activation patterns to be enumerated."""
    generator = torch.Generator().manual_seed(seed)
    widths = [6, *hidden, classes]
    parts = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    module = nn.Sequential(*parts[:-1])
    for parameter in module.parameters():
        size = scale / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 0.5
        parameter.data = size * torch.randn(parameter.shape, generator=generator)
    return Classifier(module, mean=[0.5], std=[0.5])


def image_of(seed):
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def highest_by_enumeration(classifier, image, ahead, threat_model):
    """The highest min(ahead @ logits), one linear program for every activation pattern: no bounds, no relaxation."""
    linears = [part for part in classifier.module if isinstance(part, nn.Linear)]
    weights = [part.weight.double().numpy() for part in linears]
    biases = [part.bias.double().numpy() for part in linears]
    low, high = pixel_bounds(image, threat_model)
    best = -np.inf
    for signs in itertools.product((1, 0), repeat=sum(map(len, biases[:-1]))):
        matrix, constant = 2 * np.eye(6), -np.ones(6)
        under, most, place = [], [], 0
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            matrix, constant = weight @ matrix, weight @ constant + bias
            active = np.array(signs[place : place + len(bias)])
            place += len(bias)
            under.append(np.where(active, -1, 1)[:, None] * matrix)
            most.append(np.where(active, 1, -1) * constant)
            matrix, constant = active[:, None] * matrix, active * constant
        rows, shift = ahead @ weights[-1] @ matrix, ahead @ (weights[-1] @ constant + biases[-1])
        under.append(np.zeros((len(rows), 6)))
        under, column = np.concatenate(under), np.zeros((sum(map(len, biases[:-1])) + len(rows), 1))
        under[-len(rows) :], column[-len(rows) :] = -rows, 1
        result = linprog(
            [0] * 6 + [-1],
            np.hstack([under, column]),
            np.concatenate([*most, shift]),
            bounds=[*zip(low, high, strict=True), (None, None)],
        )
        if result.status == 0:
            best = max(best, -result.fun)
    return best


@pytest.mark.parametrize("target", [None, 2])
@pytest.mark.parametrize("seed", range(6))
def test_finds_an_adversarial_example_exactly_where_enumeration_says_there_is_one(seed, target):
    classifier, image = mlp(seed, hidden=(4, 3)), image_of(seed)
    label = int(classifier(image[None]).argmax())
    if label == target:
        target = 0
    network = PiecewiseLinear(classifier, SHAPE)
    classes = np.eye(3)
    for eps in (0.05, 0.15, 0.3):
        threat_model = ThreatModel("linf", eps, target=target)
        goals = [classes[[k]] - classes[[label]] for k in range(3) if k != label]
        if target is not None:
            goals = [np.delete(classes[target] - classes, target, axis=0)]
        highest = max(highest_by_enumeration(classifier, image, goal, threat_model) for goal in goals)
        assert abs(highest) > 1e-3, "too near to call"
        point, exhausted, _ = search(classifier, network, image, label, threat_model, image)
        logits = classifier(point[None])
        margin = float(threat_model.margin(logits, torch.tensor([label]))[0])
        assert (margin < 0) == (highest > 0) == (not exhausted)
        assert (point - image).abs().max() <= eps + 1e-6
        assert point.min() >= 0
        assert point.max() <= 1
        if not reachable(network, pixel_bounds(image, threat_model), label, target)[0]:
            assert highest < 0


def test_finds_what_gradients_miss():
    """A dead first step: around the image every ReLU of the path to success is off, so all gradients are 0."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 1), nn.ReLU(), nn.Linear(1, 2))
    module[1].weight.data, module[1].bias.data = torch.ones(1, 6), torch.tensor([-4.7])
    module[3].weight.data, module[3].bias.data = torch.tensor([[0.0], [20.0]]), torch.tensor([1.0, 0.0])
    classifier, image = Classifier(module), torch.full(SHAPE, 0.5)
    threat_model, labels = ThreatModel("linf", 0.3), torch.tensor([0])
    point = pgd(classifier, image[None], labels, threat_model, restarts=5)
    assert classifier(point).argmax() == 0
    point = search(classifier, PiecewiseLinear(classifier, SHAPE), image, 0, threat_model, point[0]).point
    assert classifier(point[None]).argmax() == 1


def test_is_the_same_twice_and_never_worse_than_its_start():
    classifier, image = mlp(3, hidden=(20, 20)), image_of(3)
    label, threat_model = int(classifier(image[None]).argmax()), ThreatModel("linf", 0.02)
    network, start = PiecewiseLinear(classifier, SHAPE), threat_model.project(image + 0.02, image)
    found = [search(classifier, network, image, label, threat_model, start, programs=5).point for _ in range(2)]
    assert torch.equal(*found)
    labels = torch.tensor([label])
    before, after = (threat_model.margin(classifier(point[None]), labels) for point in (start, found[0]))
    assert after <= before


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), eps=st.sampled_from([0.01, 0.1, 0.5]))
def test_bounds_hold_at_random_points(seed, eps):
    classifier, image = mlp(seed, hidden=(8, 7, 6), classes=4), image_of(seed)
    network, (low, high) = PiecewiseLinear(classifier, SHAPE), pixel_bounds(image, ThreatModel("linf", eps))
    points = low + np.random.default_rng(seed).random((200, 6)) * (high - low)
    points[:100] = np.where(points[:100] > image.flatten().numpy(), high, low)
    *values, logits = network.forward(points)
    bounds = network.neuron_bounds((low, high))
    for (least, most), value in zip(bounds, values, strict=True):
        assert (value >= least - 1e-9).all()
        assert (value <= most + 1e-9).all()
    rows = np.random.default_rng(seed).standard_normal((5, 4))
    assert (logits @ rows.T <= network.upper_bounds(rows, 3, bounds, (low, high)) + 1e-9).all()


class Residual(nn.Module):
    """Everything that is affine between two ReLUs: convolution, batch norm, pooling, a skip, an in-place ReLU."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 1, 1)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)
        self.pool, self.last = nn.AvgPool2d(2), nn.Linear(16, 5)

    def forward(self, images):
        images = torch.relu(self.norm(self.first(images)))
        images = nn.functional.relu_(self.second(images) + images)
        return self.last(self.pool(images).flatten(1))


def test_reads_a_residual_network_and_leaves_it_as_it_was():
    torch.manual_seed(0)
    classifier = Classifier(Residual(), mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    network = PiecewiseLinear(classifier, (3, 4, 4))
    assert network.neurons == [64, 64]
    assert set(network.layers[1].weights) == {1}
    assert set(network.layers[2].weights) == {2}
    images = torch.rand(20, 3, 4, 4)
    logits = network.forward(images.double().flatten(1).numpy())[-1]
    assert np.allclose(logits, classifier(images).numpy(), atol=1e-4)
    assert all(
        value.dtype == before[key].dtype and torch.equal(value, before[key])
        for key, value in classifier.state_dict().items()
    )


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Softmax(1), nn.GELU()])
def test_refuses_what_is_not_piecewise_linear(activation):
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), activation, nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="not piecewise linear"):
        PiecewiseLinear(Classifier(module), SHAPE)


def test_refuses_too_large_a_network_and_other_norms():
    classifier, image = mlp(0), image_of(0)
    with pytest.raises(ValueError, match="10 ReLUs"):
        PiecewiseLinear(classifier, SHAPE, most_neurons=9)
    with pytest.raises(ValueError, match="L∞"):
        search(classifier, PiecewiseLinear(classifier, SHAPE), image, 0, ThreatModel("l2", 0.1), image)


def test_a_network_without_relus_is_one_region():
    """Linear: the optimum is known in closed form."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    classifier, image = Classifier(module), torch.full(SHAPE, 0.5)
    module = classifier.module
    module[1].weight.copy_(torch.tensor([[1.0, -1, 1, -1, 1, -1], [0] * 6]))
    module[1].bias.copy_(torch.tensor([1.0, 0.0]))
    network = PiecewiseLinear(classifier, SHAPE)
    for eps, broken in ((0.16, False), (0.17, True)):  # the margin is 1 - 6 · eps
        point = search(classifier, network, image, 0, ThreatModel("linf", eps), image).point
        assert bool(classifier(point[None]).argmax() == 1) == broken
