"""Which layers stop gradients, by name, and what a forward should not do."""

import pytest
import torch
from torch import nn

from robustbench_local import Classifier
from robustbench_local.diagnostics.gradient_flow import trace_gradients
from robustbench_local.models.metered import Metered

IMAGES = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Front(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


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
