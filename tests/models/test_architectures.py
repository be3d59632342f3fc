"""Our architectures: shapes, names that public checkpoints have, sizes."""

from __future__ import annotations

import pytest
import torch

from robustbench_local.errors import UserError
from robustbench_local.models import build_architecture
from robustbench_local.models.architectures.registry import count_parameters
from robustbench_local.models.architectures.wide_resnet import WideResNet
from robustbench_local.models.catalog import ARCHITECTURES

# Parameter counts stated in the papers and repositories that the networks come from.
SIZES = {"resnet18": 11_173_962, "preact-resnet18": 11_172_170, "wide-resnet-28-10": 36_479_194}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_size_is_the_published_one(name, size):
    assert count_parameters(name) == size


def test_the_bundled_one_is_small():
    assert 20_000 <= count_parameters("digits-cnn") <= 40_000
    assert not any("Norm" in type(part).__name__ for part in build_architecture("digits-cnn").modules())


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("digits-cnn", (1, 8, 8), {}),
        ("cnn-small", (3, 32, 32), {}),
        ("cnn-small", (1, 28, 28), {"image_size": 28}),
        ("cnn-medium", (1, 28, 28), {}),
        ("cnn-medium", (3, 48, 48), {}),
        ("resnet18", (3, 32, 32), {}),
        ("preact-resnet18", (1, 28, 28), {}),
        ("preact-resnet18", (3, 32, 32), {"final_norm": False}),
    ],
)
def test_gives_one_row_per_image(name, shape, options):
    module = build_architecture(name, num_classes=7, in_channels=shape[0], **options).eval()
    assert module(torch.rand(2, *shape)).shape == (2, 7)


def test_a_wide_network_computes():
    assert WideResNet(num_classes=5, depth=10, widen=1).eval()(torch.rand(2, 3, 16, 16)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "keys"),
    {
        "resnet18": (
            "conv1.weight",
            "bn1.running_var",
            "layer1.0.conv1.weight",
            "layer2.0.shortcut.0.weight",
            "layer2.0.shortcut.1.running_mean",
            "layer4.1.bn2.bias",
            "linear.weight",
        ),
        "preact-resnet18": ("conv1.weight", "layer1.0.bn1.weight", "layer3.0.shortcut.0.weight", "bn.weight"),
        "wide-resnet-28-10": (
            "conv1.weight",
            "block1.layer.0.bn1.weight",
            "block1.layer.0.convShortcut.weight",
            "block3.layer.3.conv2.weight",
            "bn1.running_mean",
            "fc.weight",
        ),
    }.items(),
)
def test_names_are_those_of_public_checkpoints(name, keys):
    with torch.device("meta"):
        state = build_architecture(name).state_dict()
    assert set(keys) <= set(state)
    assert "layer1.0.shortcut.0.weight" not in state
    assert "block1.layer.1.convShortcut.weight" not in state


def test_the_default_number_of_channels_is_the_architectures_own():
    assert build_architecture("digits-cnn").conv1.in_channels == 1
    assert {name: build_architecture(name).conv1.in_channels for name in ("cnn-small", "resnet18")} == {
        "cnn-small": 3,
        "resnet18": 3,
    }


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [("resnet81", {}, "Did you mean 'resnet18'"), ("resnet18", {"image_size": 28}, "takes no image_size")],
)
def test_refusals(name, options, said):
    with pytest.raises(UserError, match=said):
        build_architecture(name, **options)
    assert len(ARCHITECTURES) == 6
