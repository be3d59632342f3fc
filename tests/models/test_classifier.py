"""The wrapper: arithmetic in closed form, the caller's module untouched, whatever shape the output comes in."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from tiny_networks import tiny
from torch import nn

from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.models import Classifier, fingerprint
from robustbench_local.models.classifier import ClassifierInfo


class Returns(nn.Module):
    """Gives what a function of the images gives."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def test_normalisation_is_subtract_then_divide():
    pixels = torch.tensor([[[[0.5]], [[0.25]], [[1.0]]]])
    classifier = Classifier(nn.Flatten(), mean=[0.5, 0.0, 0.25], std=[0.1, 0.5, 0.25])
    assert torch.allclose(classifier(pixels), torch.tensor([[0.0, 0.5, 3.0]]))
    assert classifier.normalization == {"mean": [0.5, 0.0, 0.25], "std": [0.1, 0.5, 0.25]}
    assert Classifier(nn.Flatten()).normalization is None


def test_one_value_serves_every_channel():
    classifier = Classifier(nn.Flatten(), mean=[0.5], std=[0.25])
    assert torch.equal(classifier(torch.ones(2, 3, 1, 1)), torch.full((2, 3), 2.0))


def test_gradient_passes_the_normalisation():
    images = torch.rand(2, 3, 1, 1, requires_grad=True)
    classifier = Classifier(nn.Flatten(), mean=[0, 0, 0], std=[0.5, 0.25, 0.125])
    (gradient,) = torch.autograd.grad(classifier(images).sum(), images)
    assert torch.allclose(gradient[0].flatten(), torch.tensor([2.0, 4.0, 8.0]))


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ([0.5], [0.0], "above 0"),
        ([0.5], [-1.0], "above 0"),
        ([math.nan], [1.0], "finite"),
        ([0.1, 0.2], [1.0, 1.0, 1.0], "2 means and 3"),
        ([], [1.0], "0 means"),
    ],
)
def test_impossible_normalisation_is_refused(mean, std, said):
    with pytest.raises(UserError, match=said):
        Classifier(nn.Flatten(), mean=mean, std=std)


def test_grey_images_do_not_broadcast_into_a_colour_normalisation():
    classifier = Classifier(nn.Flatten(), mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(UserError, match="1 channels, but the model is normalized for 3"):
        classifier(torch.rand(2, 1, 4, 4))


def test_the_callers_module_comes_back_as_it_was():
    module = tiny().train()
    module[1].eval()
    module[0].weight.requires_grad_(False)
    module(torch.rand(4, 1, 8, 8)).sum().backward()
    before = copy.deepcopy(module.state_dict())
    gradient = module[5].weight.grad.clone()
    classifier = Classifier(module, mean=[0.5], std=[0.5])
    classifier(torch.rand(4, 1, 8, 8))
    assert [part.training for part in module] == [True, False, True, True, True, True]
    assert [p.requires_grad for p in module.parameters()] == [False, True, True, True, True, True]
    assert torch.equal(module[5].weight.grad, gradient)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_it_is_frozen_and_cannot_leave_eval():
    classifier = Classifier(tiny())
    for change in (classifier.train, lambda: nn.Sequential(classifier).train()):
        change()
        assert not any(part.training for part in classifier.modules())
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(classifier(images), classifier(images))


def test_without_copy_it_is_the_same_module():
    module = tiny()
    assert Classifier(module, copy=False).module is module


def test_probabilities_become_their_logarithm():
    scores = torch.tensor([[1.0, 2.0, 3.0], [-200.0, 0.0, 200.0]])
    classifier = Classifier(
        Returns(lambda images: scores.softmax(1) + 0 * images.sum()), info=ClassifierInfo(probabilities=True)
    )
    logits = classifier(torch.zeros(2, 1, 1, 1))
    assert torch.allclose(logits[0], scores[0].log_softmax(0), atol=1e-6)
    assert torch.isfinite(logits).all()
    assert logits[1].argmax() == 2
    classifier.probabilities = False
    assert torch.allclose(classifier(torch.zeros(2, 1, 1, 1)).sum(1), torch.ones(2))


def test_probabilities_keep_a_finite_gradient():
    images = torch.tensor([[80.0, 0.0, -300.0]]).view(1, 3, 1, 1).requires_grad_()
    logits = Classifier(nn.Sequential(nn.Flatten(), nn.Softmax(1)), info=ClassifierInfo(probabilities=True))(images)
    (gradient,) = torch.autograd.grad(logits[0, 1], images)
    assert torch.isfinite(gradient).all()
    assert gradient.flatten()[1] == pytest.approx(1.0)


SCORES = torch.tensor([[1.0, 2.0]])


@pytest.mark.parametrize(
    "output",
    [
        SCORES,
        (SCORES, None),
        [SCORES],
        {"logits": SCORES},
        {"out": SCORES, "aux": None},
        SimpleNamespace(logits=SCORES, hidden=None),
        SCORES.view(1, 2, 1, 1),
        SCORES.half(),
        SCORES.bfloat16(),
    ],
)
def test_logits_are_found_in_what_models_return(output):
    logits = Classifier(Returns(lambda images: output), copy=False)(torch.zeros(1, 1, 1, 1))
    assert torch.equal(logits, SCORES)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("text", "a str"),
        ({"boxes": SCORES}, "a dict"),
        ((), "a tuple"),
        (torch.zeros(1, 2, 4, 4), r"\(1, 2, 4, 4\)"),
        (torch.zeros(2), r"\(2,\)"),
    ],
)
def test_other_outputs_are_refused(output, said):
    with pytest.raises(UserError, match=said):
        Classifier(Returns(lambda images: output), copy=False)(torch.zeros(1, 1, 1, 1))


@pytest.mark.parametrize("shape", [(3, 1), (3,), (3, 1, 1, 1)])
def test_one_logit_per_image_is_two_classes(shape):
    z = torch.tensor([-2.0, 0.5, 3.0])
    classifier = Classifier(Returns(lambda images: z.view(shape) + 0 * images.sum()))
    assert not classifier.single_output
    assert torch.equal(classifier(torch.zeros(3, 1, 1, 1)), torch.stack([torch.zeros(3), z], 1))
    assert classifier.single_output


def test_one_logit_gives_the_sigmoids_probabilities_and_gradient():
    images = torch.tensor([[0.3], [-4.0]]).view(2, 1, 1, 1).requires_grad_()
    logits = Classifier(nn.Flatten())(images)
    assert torch.allclose(logits.softmax(1)[:, 1], images.flatten().sigmoid())
    (gradient,) = torch.autograd.grad(
        nn.functional.cross_entropy(logits, torch.tensor([1, 1]), reduction="sum"), images
    )
    assert torch.allclose(gradient.flatten(), images.flatten().sigmoid() - 1)


def test_one_probability_is_two_classes_with_finite_gradients():
    images = torch.tensor([[0.25], [1.0], [0.0]]).view(3, 1, 1, 1).requires_grad_()
    logits = Classifier(nn.Flatten(), info=ClassifierInfo(probabilities=True))(images)
    assert torch.allclose(logits.exp(), torch.tensor([[0.75, 0.25], [0.0, 1.0], [1.0, 0.0]]))
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert torch.isfinite(gradient).all()


def test_several_logits_stay_as_they_are():
    classifier = Classifier(nn.Flatten())
    classifier(torch.rand(2, 3, 1, 1))
    assert not classifier.single_output


def test_fingerprint_tells_weights_and_normalisation_apart():
    one = fingerprint(Classifier(tiny()))
    assert one == fingerprint(Classifier(tiny()))
    assert len(one) == 64
    others = [Classifier(tiny(seed=2)), Classifier(tiny(), mean=[0.5], std=[1.0]), Classifier(tiny()).double()]
    assert len({one, *map(fingerprint, others)}) == 4


def test_description_is_kept():
    resize = Resize(9, 8)
    classifier = Classifier(
        tiny(), name="mine", class_names=("a", "b", "c"), input_shape=(1, 8, 8), info=ClassifierInfo(resize=resize)
    )
    assert (classifier.name, classifier.class_names, classifier.input_shape) == ("mine", ["a", "b", "c"], (1, 8, 8))
    assert classifier.resize == Resize(9, 8, "bilinear")
