import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.losses import LOSSES, logit_margin

LOGITS = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, 4.0]])
CLASSES = torch.tensor([1, 0])


def test_values_by_hand():
    assert logit_margin(LOGITS, CLASSES).tolist() == [1.0, -4.0]
    assert LOSSES["margin"](LOGITS, CLASSES).tolist() == [-1.0, 4.0]
    expected = [(torch.tensor([-2.0, 0.0, -1.0]).exp().sum()).log(), (torch.tensor([0.0, -1.0, 4.0]).exp().sum()).log()]
    assert LOSSES["cross-entropy"](LOGITS, CLASSES).tolist() == pytest.approx([float(value) for value in expected])


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_loss_rises_as_its_class_is_believed_less(name, seed):
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    classes = logits.argmax(1)
    lower = logits - torch.nn.functional.one_hot(classes, 5)
    assert (LOSSES[name](lower, classes) > LOSSES[name](logits, classes)).all()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_per_sample(name):
    assert torch.allclose(LOSSES[name](LOGITS, CLASSES)[1:], LOSSES[name](LOGITS[1:], CLASSES[1:]))


def test_margin_says_who_has_won():
    labels = torch.tensor([1, 2])
    assert (ThreatModel("linf", 0.1).margin(LOGITS, labels) > 0).all(), "both are still classified correctly"
    assert ThreatModel("linf", 0.1, target=2).margin(LOGITS, labels).tolist() == [1.0, -4.0]


@pytest.mark.parametrize("classes", [2, 3, 4, 8, 10, 100, 1000])
def test_any_number_of_classes(classes):
    logits, labels = torch.randn(3, classes), torch.tensor([0, 1, classes - 1])
    assert all(torch.isfinite(loss(logits, labels)).all() for loss in LOSSES.values())
