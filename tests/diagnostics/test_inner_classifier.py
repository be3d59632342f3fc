"""The network inside a defense is found where there is one."""

from __future__ import annotations

import torch
from fronts import Front
from torch import nn

from robustbench_local import Classifier, load_classifier, load_dataset
from robustbench_local.diagnostics.inner_classifier import inner_classifier
from robustbench_local.models.metered import Metered

IMAGES = load_dataset("digits").images(range(12))


def network():
    return load_classifier("digits-cnn").module


class Behind(nn.Module):
    """A network behind a function of the images, and before one of the logits."""

    def __init__(self, front, core):
        super().__init__()
        self.front, self.core = Front(front), core

    def forward(self, images):
        return 4 * self.core(self.front(images))


class Choosy(nn.Module):
    """Logits for the images it is given inside, and none for the images themselves."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, images):
        return self.net(images) if float(images.min()) >= 0.5 else images.flatten(1)[:, :0]


def test_the_network_behind_a_front_is_found_and_its_passes_counted():
    core = network()
    model = Metered(Classifier(Behind(lambda images: (images * 8).round() / 8, core), copy=False))
    inside = inner_classifier(model, IMAGES)
    before = model.passes.forward
    assert torch.equal(inside(IMAGES), core(IMAGES))
    assert model.passes.forward == before + len(IMAGES)


def test_the_images_are_normalized_for_it_as_for_the_model():
    core = network()
    model = Metered(Classifier(Behind(lambda images: images, core), mean=[0.3], std=[0.5], copy=False))
    assert torch.allclose(inner_classifier(model, IMAGES)(IMAGES), core((IMAGES - 0.3) / 0.5), atol=1e-5)


def test_a_plain_network_has_none():
    assert inner_classifier(Metered(load_classifier("digits-cnn")), IMAGES) is None


def test_what_answers_otherwise_is_none():
    assert inner_classifier(Metered(Classifier(Behind(lambda images: 1 - images, network()))), IMAGES) is None


def test_what_gives_no_logits_for_the_images_is_passed_over():
    choosy = Choosy()
    inside = inner_classifier(Metered(Classifier(Behind(lambda images: images / 2 + 0.5, choosy), copy=False)), IMAGES)
    assert inside.model.module is choosy.net
