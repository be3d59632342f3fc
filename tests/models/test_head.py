"""The last layer: found, named and replaced in every kind of network, the rest left as it was."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from robustbench_local.errors import UserError
from robustbench_local.models.architectures.registry import build_architecture
from robustbench_local.models.catalog import ARCHITECTURES
from robustbench_local.models.head import head_parameters, replace_head


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("efficientnet_b0", "classifier.1"),
        ("vgg11", "classifier.6"),
        ("densenet121", "classifier"),
        ("convnext_tiny", "classifier.2"),
        ("vit_b_16", "heads.head"),
        ("swin_t", "head"),
        ("squeezenet1_1", "classifier.1"),
        ("shufflenet_v2_x0_5", "fc"),
    ],
)
def test_the_head_of_torchvisions_networks(name, head):
    with torch.device("meta"):
        module = torchvision.models.get_model(name, weights=None)
        before = dict(module.named_parameters())
        assert head_parameters(module) == (f"{head}.weight", f"{head}.bias")
        replace_head(module, 5)
        after = dict(module.named_parameters())
        assert {key for key in after if after[key] is not before[key]} == {f"{head}.weight", f"{head}.bias"}
        assert after.keys() == before.keys()
        assert len(after[f"{head}.bias"]) == 5
        images = torch.empty(2, 3, 224, 224)
        assert module.eval()(images).shape == (2, 5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_head_of_our_own(name):
    with torch.device("meta"):
        module = build_architecture(name, 7)
        shapes = [tuple(module.get_parameter(key).shape) for key in head_parameters(module)]
    assert [shape[0] for shape in shapes] == [7, 7]
    assert [len(shape) for shape in shapes] == [2, 1]


def test_a_head_without_bias_stays_without():
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
    replace_head(module, 9)
    assert head_parameters(module) == ("2.weight",)
    assert module[2].weight.shape == (9, 3)


def test_networks_without_a_head():
    assert head_parameters(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4))) == ()
    for module in (nn.Flatten(), nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten())):
        with pytest.raises(UserError, match="does not end in a linear layer"):
            replace_head(module, 2)


def test_timms_networks_say_themselves_what_their_head_is():
    timm = pytest.importorskip("timm", reason="the timm extra is not installed")
    with torch.device("meta"):
        for name, keys in (("resnet10t", 2), ("levit_128", 8), ("caformer_s18", 6)):
            module = timm.create_model(name, num_classes=5)
            head = head_parameters(module)
            assert len(head) == keys, name
            assert all("head" in key or "fc" in key for key in head), name
            replace_head(module, 3)
            assert module(torch.empty(2, 3, 224, 224)).shape == (2, 3)
