"""Which layers stop gradients, by name, and what a forward should not do."""

import pytest
import torch
from fronts import Front
from torch import nn

from robustbench_local import Classifier
from robustbench_local.diagnostics.gradient_flow import trace_gradients
from robustbench_local.models.metered import Metered

IMAGES = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def traced(function, wrap=lambda net: net):
    torch.manual_seed(0)
    front = nn.Sequential()
    front.add_module("squeeze", Front(function))
    net = nn.Sequential()
    net.add_module("defense", front)
    net.add_module("flat", nn.Flatten())
    net.add_module("last", nn.Linear(36, 3))
    return trace_gradients(Metered(Classifier(wrap(net), copy=False)), IMAGES)


@pytest.mark.parametrize(
    ("function", "stops", "calls"),
    [
        (lambda images: images * 2, {}, {}),
        (
            lambda images: images.detach() * 2,
            {"defense.squeeze": "cuts the gradient off"},
            {"defense.squeeze": "detach"},
        ),
        (lambda images: (images * 4).round() / 4, {"defense.squeeze": "has gradient 0"}, {"defense.squeeze": "round"}),
        (lambda images: (images > 0.5).float(), {"defense.squeeze": "cuts the gradient off"}, {}),
        (lambda images: images + images.sign().mean(), {}, {"defense.squeeze": "sign"}),
    ],
    ids=["plain", "detached", "rounded", "compared", "beside the path"],
)
def test_the_innermost_layer_is_named(function, stops, calls):
    found = traced(function)
    assert found.stops == stops
    assert found.functions == calls
    assert all(name in found.description for name in {**stops, **calls})


class Shape(nn.Module):
    """The sizes of a tensor, as an ONNX graph computes them."""

    def forward(self, points):
        return torch.tensor(points.shape)


class Ones(nn.Module):
    """A mask that depends on sizes alone."""

    def forward(self, points):
        return torch.ones_like(points)


class Codewords(nn.Module):
    """Every pixel becomes the index of its nearest codeword."""

    def forward(self, points):
        return (points[..., None] - torch.linspace(0, 1, 5)).abs().argmin(-1)


class Constant(nn.Module):
    """Detached, but the caller multiplies it by 0."""

    def forward(self, points):
        return points.detach().mean()


class Graph(nn.Module):
    """A network that uses one layer beside its path."""

    def __init__(self, layer, use):
        super().__init__()
        self.layer, self.use, self.last = layer, use, nn.Linear(36, 3)

    def forward(self, images):
        return self.last(self.use(images, self.layer(images)).flatten(1))


@pytest.mark.parametrize(
    ("layer", "use", "stops"),
    [
        (Shape(), lambda images, sizes: images.reshape(sizes.tolist()), {}),
        (Ones(), lambda images, mask: images * mask, {}),
        (Constant(), lambda images, mean: images + 0 * mean, {}),
        (Codewords(), lambda images, index: torch.linspace(0, 1, 5)[index], {"layer": "cuts the gradient off"}),
        (Codewords(), lambda images, index: images + 0.1 * index, {"layer": "cuts the gradient off"}),
        (Constant(), lambda images, mean: images - mean, {"layer": "cuts the gradient off"}),
    ],
    ids=["sizes", "mask of sizes", "times 0", "codewords", "codewords beside", "detached mean"],
)
def test_a_layer_stops_gradients_only_if_the_logits_depend_on_it(layer, use, stops):
    torch.manual_seed(0)
    assert trace_gradients(Metered(Classifier(Graph(layer, use), copy=False)), IMAGES).stops == stops


def halves(images, function):
    return torch.cat([function(images[..., :3]), images[..., 3:]], -1)


def without_grad(images):
    with torch.no_grad():
        return 2 * images


def rounded_in_place(images):
    left = images[..., :3].clone()
    left.mul_(4).round_().div_(4)
    return torch.cat([left, images[..., 3:]], -1)


@pytest.mark.parametrize(
    ("function", "beside"),
    [
        (lambda images: halves(images, torch.detach), "detach"),
        (lambda images: halves(images, lambda half: (half * 4).round() / 4), "round"),
        (lambda images: halves(images, without_grad), "no_grad"),
        (rounded_in_place, "round_"),
        (lambda images: images + images.sign().mean((1, 2, 3), keepdim=True) * images.mean(), ""),
        (lambda images: images - images.amax().detach() + images.amax().detach(), ""),
        (lambda images: images * (images.detach() > -1), ""),
    ],
    ids=["detached", "rounded", "no_grad", "in place", "constant sign", "cancels out", "constant mask"],
)
def test_what_blocks_a_part_is_beside_the_path(function, beside):
    found = traced(function)
    assert found.stops == {}
    assert found.beside == ({"defense.squeeze": beside} if beside else {})


def test_differentiation_inside_forward_is_seen():
    def purify(images):
        points = images.detach().requires_grad_(True)
        with torch.enable_grad():
            return images - 0.1 * torch.autograd.grad(points.square().sum(), points)[0]

    assert traced(purify).differentiates == ["torch.autograd.grad"]
    assert traced(lambda images: images).differentiates == []
    before = torch.autograd.grad
    traced(purify)
    assert torch.autograd.grad is before


def test_layers_that_train_while_they_run_are_named():
    class Stubborn(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, images):
            self.net.last.train()
            return self.net(images)

    assert traced(lambda images: images, Stubborn).training == ["net.last"]
    assert traced(lambda images: images).training == []


def test_hooks_are_gone_afterwards():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    trace_gradients(Metered(Classifier(net, copy=False)), IMAGES)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
