"""Twins: near enough to search with, never believed, left out where they differ."""

import pytest
import torch
from torch import nn

from robustbench_local import Classifier, ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import PGD
from robustbench_local.engine.precision import build_search_models, check_precision
from robustbench_local.errors import UserError
from robustbench_local.models import build_architecture
from robustbench_local.models.metered import Metered

THREAT = ThreatModel("linf", 0.1)


def normalised_network(seed=0):
    """A small residual network whose batch norms are not the identity."""
    torch.manual_seed(seed)
    net = build_architecture("cnn-small", in_channels=1, image_size=28)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.3, 0.3)
            part.running_var.uniform_(0.5, 2)
    return net


def test_batch_norm_is_folded_and_the_answers_stay():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    net(torch.rand(2, 1, 8, 8))
    net[1].running_mean.uniform_(-1, 1)
    net[1].running_var.uniform_(0.3, 3)
    classifier, images = Classifier(net, mean=[0.3], std=[0.5]), torch.rand(16, 1, 8, 8)
    search_models = build_search_models(Metered(classifier), images, "fp32")
    assert search_models.low_precision is None
    assert search_models.float32.model is not classifier
    assert search_models.name == "fp32"
    assert not any(isinstance(part, nn.BatchNorm2d) for part in search_models.float32.model.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in classifier.modules()), "the classifier is untouched"
    assert torch.allclose(search_models.float32.model(images), classifier(images), atol=1e-5)


class WithBranch(nn.Module):
    """Its path depends on the data, which no trace can follow."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))

    def forward(self, images):
        return self.net(images) if float(images.mean()) < 2 else images.flatten(1)[:, :10]


class StraightThrough(nn.Module):
    """Rounds its input and passes the gradient through, as an adaptive attack would have it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))

    def forward(self, images):
        rounded = (images * 4).round() / 4
        return self.net(images + (rounded - images).detach())


@pytest.mark.parametrize("kind", [WithBranch, StraightThrough])
def test_what_cannot_be_traced_still_gives_the_same_answers_and_gradients(kind):
    torch.manual_seed(0)
    classifier, images = Classifier(kind()), torch.rand(12, 1, 8, 8)
    twin = build_search_models(Metered(classifier), images, "fp32").float32.model
    points = [images.clone().requires_grad_(True) for _ in range(2)]
    logits = [model(each) for model, each in zip((classifier, twin), points, strict=True)]
    assert torch.allclose(*logits, atol=1e-5)
    gradients = [torch.autograd.grad(value.amax(1).sum(), each)[0] for value, each in zip(logits, points, strict=True)]
    assert torch.allclose(*gradients, atol=1e-5)
    assert gradients[0].abs().sum() > 0


class Fickle(nn.Module):
    """Random, so that no twin can be compared with it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))

    def forward(self, images):
        return self.net(images) + torch.randn(len(images), 10)


def test_a_twin_that_differs_is_left_out():
    classifier = Classifier(Fickle())
    search_models = build_search_models(Metered(classifier), torch.rand(12, 1, 8, 8), "bf16")
    assert search_models.low_precision is None
    assert search_models.float32.model is classifier
    assert search_models.float32.margin_tolerance == 0


def test_networks_without_convolutions_search_as_they_are():
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    assert build_search_models(Metered(classifier), torch.rand(4, 1, 8, 8), "bf16").name == "fp32"


def test_comparing_twins_is_counted():
    metered = Metered(Classifier(normalised_network()))
    build_search_models(metered, torch.rand(9, 1, 28, 28), "fp32")
    assert (metered.passes.forward, metered.passes.backward) == (2 * 9 + 2 * 8, 2 * 8)


@pytest.mark.parametrize(("text", "words"), [("fp16", "auto, fp32, tf32, bf16"), ("tf32", "NVIDIA")])
def test_a_precision_that_is_not_there_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        check_precision(text, torch.device("cpu"))


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.mark.parametrize("name", ["digits-cnn", "digits-cnn-robust"])
def test_low_precision_finds_what_float32_finds(digits, name):
    """float32 verifies every success and goes on with the rest, so little is lost and nothing false is gained."""
    model = load_classifier(name)
    found = {
        precision: evaluate(model, digits, THREAT, attacks=[PGD(steps=20, loss="scaled-ce")], precision=precision)
        for precision in ("fp32", "bf16")
    }
    assert found["bf16"].result.config["precision"] == "bf16"
    robust = {name: [sample.robust for sample in each.samples] for name, each in found.items()}
    differ = sum(one != other for one, other in zip(*robust.values(), strict=True))
    assert differ <= 0.02 * len(digits)
    for sample in found["bf16"].samples:
        assert (sample.margin < 0) == (not sample.robust)


class Flattering(nn.Module):
    """In bfloat16 it says that everything has been fooled; in float32 nothing ever is."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, images):
        signal = self.conv(images).flatten(1).sum(1, keepdim=True) + images.flatten(1).sum(1, keepdim=True)
        moved = (images * 16 - (images * 16).round()).abs().amax((1, 2, 3))[:, None] > 1e-4
        flipped = moved & torch.tensor(images.dtype == torch.bfloat16)
        logits = torch.cat([signal * 0 + 1, signal * 0], dim=1)
        return torch.where(flipped, -logits, logits) + signal * 1e-4


def test_low_precision_successes_that_float32_denies_are_counted_and_searched_on(digits):
    part = digits.subset((digits.labels == 0).nonzero().squeeze(1)[:20])
    result = evaluate(Classifier(Flattering()), part, THREAT, attacks=[PGD(steps=10)], precision="bf16").result
    report = result.attacks[0]
    assert result.robust_accuracy.correct == 20
    assert report.fooled == 0
    assert report.low_precision_unconfirmed == 20
    assert report.unconfirmed == 0
    assert report.backward_passes > 20 * 2, "float32 went on"
