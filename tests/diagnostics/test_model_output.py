"""Of several tensors that a model returns, the one that explains the labels is attacked, and that is told."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustbench_local import Classifier, ThreatModel, evaluate
from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.errors import UserError

K = 4
IMAGES = torch.rand((40, 1, 4, 4), generator=torch.Generator().manual_seed(0))
LABELS = IMAGES.flatten(1)[:, :K].argmax(1)
DATA = ArrayDataset(IMAGES, LABELS)


class Net(nn.Module):
    """Its logits are the first pixels; `returned` makes an output of pixels and logits."""

    def __init__(self, returned):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.returned = returned

    def forward(self, images):
        pixels = images.flatten(1)
        return self.returned(pixels, self.scale * pixels[:, :K])


def outcome(returned, dataset=DATA):
    result = evaluate(
        Classifier(Net(returned)), dataset, ThreatModel("linf", 0.01), attacks=["fgsm"], device="cpu", diagnostics=False
    ).result
    return result, next((each for each in result.diagnostics if each.slug == "logits-among-outputs"), None)


@pytest.mark.parametrize(
    ("returned", "key"),
    [
        (lambda pixels, logits: (pixels, logits), "1"),
        (lambda pixels, logits: [pixels[:, 4:8], logits], "1"),  # as many columns, no labels
        (lambda pixels, logits: {"features": pixels, "scores": logits}, "scores"),
        (lambda pixels, logits: {"out": pixels, "heads": (logits, pixels)}, "heads.0"),
        (lambda pixels, logits: (pixels, logits, logits.softmax(1)), "1"),
        (lambda pixels, logits: ((pixels, logits[:, :3]), logits), "1"),
    ],
)
def test_what_explains_the_labels_is_taken_and_warned_of(returned, key):
    result, found = outcome(returned)
    assert result.model.classes == K
    assert result.clean_accuracy.value == 1
    assert result.verdict.status == "doubtful"
    assert (found.status, found.value) == ("warn", key)
    assert f"{key!r} (N×4)" in found.advice


@pytest.mark.parametrize(
    "returned",
    [
        lambda pixels, logits: (logits, pixels),
        lambda pixels, logits: (logits, logits),
        lambda pixels, logits: SimpleNamespace(hidden=pixels, logits=logits),
        lambda pixels, logits: (logits.sum(), logits),
        lambda pixels, logits: (pixels.view(-1, 1, 4, 4), logits),
        lambda pixels, logits: (logits.argmax(1), logits),
    ],
)
def test_the_convention_and_the_only_possible_tensor_are_no_warning(returned):
    result, found = outcome(returned)
    assert result.clean_accuracy.value == 1
    assert found.status == "pass"
    assert "is taken" in found.advice


@pytest.mark.parametrize(
    "returned",
    [
        lambda pixels, logits: logits,
        lambda pixels, logits: (logits, None),
        lambda pixels, logits: OrderedDict(logits=logits),
        lambda pixels, logits: {"logits": logits, "attention": pixels.view(-1, 1, 4, 4)},
    ],
)
def test_nothing_is_said_where_there_is_no_choice(returned):
    result, found = outcome(returned)
    assert result.clean_accuracy.value == 1
    assert found is None


@pytest.mark.parametrize(
    "returned",
    [
        lambda pixels, logits: (pixels[:, 4:], pixels[:, 6:]),
        lambda pixels, logits: (logits[:, :2], logits[:, :3]),
        lambda pixels, logits: {"a": pixels[:, 4:], "b": pixels[:, 7:]},
    ],
)
def test_tensors_that_explain_nothing_are_refused_by_name(returned):
    with pytest.raises(UserError, match=r"'(0|a)' \(N×\d+\), '(1|b)' \(N×\d+\), and") as caught:
        outcome(returned)
    assert caught.value.slug == "no-output-fits-labels"


def test_a_subset_of_the_classes_does_not_mislead():
    few = ArrayDataset(IMAGES[LABELS < 3], LABELS[LABELS < 3])
    result, _ = outcome(lambda pixels, logits: (pixels[:, 4:7], logits), few)
    assert result.clean_accuracy.value == 1
    assert result.model.classes == K


def test_the_callers_classifier_stays_as_it_was():
    classifier = Classifier(Net(lambda pixels, logits: (pixels, logits)))
    evaluate(classifier, DATA, ThreatModel("linf", 0.01), attacks=["fgsm"], device="cpu", diagnostics=False)
    assert classifier.output is None
