"""Batch norms are folded where the result is the same function, without a trace that other threads would see."""

import copy
import threading

import pytest
import torch
from torch import nn

from robustbench_local.engine.folding import fold_batch_norm

IMAGES = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A convolution and a batch norm, combined in some way."""

    def __init__(self, combine):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.other = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        for norm in (self.norm, self.other):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
        self.combine = combine
        self.eval().requires_grad_(False)

    def forward(self, images):
        return self.combine(self, images)


def norms(module):
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


@pytest.mark.parametrize(
    ("combine", "folded"),
    [
        (lambda net, images: net.norm(net.conv(images)), 1),
        (lambda net, images: net.norm(net.conv(images)) if images.mean() < 2 else net.conv(images), 0),
        (lambda net, images: (lambda seen: net.norm(seen) + net.other(seen))(net.conv(images)), 0),
        (lambda net, images: net.norm(net.conv(net.conv(images).mean(1, keepdim=True))), 0),
        (lambda net, images: net.norm(net.conv(images).relu()), 0),
        (lambda net, images: net.other(net.norm(net.conv(images))), 1),
        (lambda net, images: (lambda seen: net.norm(seen) + seen.relu())(net.conv(images)), 0),
        (lambda net, images: (lambda seen: net.norm(seen) + net.other(input=seen))(net.conv(images)), 0),
        (lambda net, images: net.norm(net.conv(images).relu_()), 0),
        (lambda net, images: net.norm(net.conv(images)) * net.conv.weight.norm(), 0),
        (lambda net, images: net.norm(net.conv(images)) + net.norm.running_mean.sum(), 0),
    ],
    ids=[
        "plain",
        "branch",
        "two users",
        "called twice",
        "something between",
        "norm after norm",
        "a function also uses it",
        "a keyword",
        "changed in place",
        "weight used elsewhere",
        "statistics used elsewhere",
    ],
)
def test_only_a_norm_right_after_its_convolution_is_folded(combine, folded):
    net = Block(combine)
    result = fold_batch_norm(net, IMAGES[:2])
    assert norms(net) - norms(result) == folded
    torch.testing.assert_close(result(IMAGES), net(IMAGES), rtol=1e-5, atol=1e-5)
    assert not any(layer._forward_hooks for layer in result.modules())


@pytest.mark.parametrize("layer", ["conv", "norm"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_a_layer_with_hooks_is_not_folded(layer, kind):
    net = Block(lambda net, images: net.norm(net.conv(images)))
    hooks = {"forward": lambda part, args, output: output.sigmoid(), "forward_pre": lambda part, args: args[0].sin()}
    getattr(getattr(net, layer), f"register_{kind}_hook")(hooks[kind])
    result = fold_batch_norm(net, IMAGES[:2])
    torch.testing.assert_close(result(IMAGES), net(IMAGES), rtol=1e-5, atol=1e-5)


def test_a_norm_in_train_mode_stays():
    net = Block(lambda net, images: net.norm(net.conv(images)))
    net.norm.train()
    assert norms(fold_batch_norm(net, IMAGES[:2])) == 2


def test_a_forward_that_fails_folds_nothing_and_a_module_that_cannot_be_copied_gives_none():
    def fail(net, images):
        raise ValueError("no")

    assert norms(fold_batch_norm(Block(fail), IMAGES[:2])) == 2
    net = Block(fail)
    net.lock = threading.Lock()
    with pytest.raises(TypeError):
        copy.deepcopy(net)
    assert fold_batch_norm(net, IMAGES[:2]) is None


def test_other_threads_run_undisturbed_meanwhile():
    """`torch.fx` would replace `nn.Module.__call__` for all of them."""
    during = []

    def note(net, images):
        during.append(nn.Module.__call__)
        return net.norm(net.conv(images))

    before = nn.Module.__call__
    fold_batch_norm(Block(note), IMAGES[:2])
    assert during == [before]
