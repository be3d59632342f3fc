import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.losses import LOSSES, logit_margin, targeted_loss

LOGITS = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, 4.0]])
CLASSES = torch.tensor([1, 0])


def test_values_by_hand():
    assert logit_margin(LOGITS, CLASSES).tolist() == [1.0, -4.0]
    assert LOSSES["margin"](LOGITS, CLASSES).tolist() == [-1.0, 4.0]
    assert LOSSES["dlr"](LOGITS, CLASSES).tolist() == [-0.5, pytest.approx(0.8)]
    chances = LOGITS.softmax(1)
    expected = [float(chances[0, 2] - chances[0, 1]), float(chances[1, 2] - chances[1, 0])]
    assert LOSSES["probability-margin"](LOGITS, CLASSES).tolist() == pytest.approx(expected)
    expected = [(torch.tensor([-2.0, 0.0, -1.0]).exp().sum()).log(), (torch.tensor([0.0, -1.0, 4.0]).exp().sum()).log()]
    assert LOSSES["ce"](LOGITS, CLASSES).tolist() == pytest.approx([float(value) for value in expected])


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_climbing_a_loss_takes_from_its_class_and_gives_to_others(name, seed):
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).double().requires_grad_(True)
    classes = logits.argmax(1)
    (gradient,) = torch.autograd.grad(LOSSES[name](logits, classes).sum(), logits)
    own = gradient.gather(1, classes[:, None]).squeeze(1)
    assert (own < 0).all()
    # The ratio of dlr also rises as its third logit nears the first.
    assert name == "dlr" or (gradient.scatter(1, classes[:, None], 0) >= 0).all()
    assert torch.allclose(gradient.sum(1), torch.zeros(4).double(), atol=1e-6), "a shift of all logits changes nothing"


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_scaled_loss_does_not_see_the_scale_of_logits(scale):
    """Cross-entropy does: its gradient dies in float32 where the logits are large."""
    logits = (LOGITS * scale).requires_grad_(True)
    loss = LOSSES["scaled-ce"]
    assert torch.allclose(loss(logits, LOGITS.argmax(1)), loss(LOGITS, LOGITS.argmax(1)), rtol=1e-4)
    (gradient,) = torch.autograd.grad(loss(logits, LOGITS.argmax(1)).sum(), logits)
    assert (gradient != 0).any(1).all()


def test_tied_logits_give_finite_losses_and_gradients():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 1.0, 5.0], [3e30, 3e30, 0.0, -3e30]]).requires_grad_(True)
    for loss in LOSSES.values():
        values = loss(logits, torch.tensor([0, 3, 1]))
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert torch.isfinite(values).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_per_sample(name):
    assert torch.allclose(LOSSES[name](LOGITS, CLASSES)[1:], LOSSES[name](LOGITS[1:], CLASSES[1:]))


def test_margin_says_who_has_won():
    labels = torch.tensor([1, 2])
    assert (ThreatModel("linf", 0.1).margin(LOGITS, labels) > 0).all(), "both are still classified correctly"
    assert ThreatModel("linf", 0.1, target=2).margin(LOGITS, labels).tolist() == [1.0, -4.0]


def test_ties_go_to_whoever_is_predicted():
    logits, labels = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]), torch.tensor([0, 1])
    margin = ThreatModel("linf", 0.1).margin(logits, labels)
    assert margin[0] == 0, "the first of the highest logits is predicted"
    assert margin[1] < 0
    margins = ThreatModel("linf", 0.1, target=0).margin(logits, labels)
    assert (margins < 0).all()


def test_logits_that_are_not_numbers_predict_nothing():
    logits, labels = torch.tensor([[float("nan"), 1.0], [0.0, float("-inf")]]), torch.tensor([0, 0])
    margin = ThreatModel("linf", 0.1).margin(logits, labels)
    assert margin[0] < 0 < margin[1]
    assert margin.isfinite().all()
    assert (ThreatModel("linf", 0.1, target=1).margin(logits, labels) > 0).all()


@pytest.mark.parametrize("classes", [2, 3, 4, 8, 10, 100, 1000])
def test_any_number_of_classes(classes):
    logits, labels = torch.randn(3, classes), torch.tensor([0, 1, classes - 1])
    assert all(torch.isfinite(loss(logits, labels)).all() for loss in LOSSES.values())


def test_targeted_dlr_is_the_papers():
    logits = torch.tensor([[3.0, 1.0, 2.0, -1.0, 0.5]])
    labels, targets = torch.tensor([0]), torch.tensor([3])
    # (z_t - z_y) / (z_1 - (z_3 + z_4) / 2)
    assert targeted_loss("dlr", logits, labels, targets).item() == pytest.approx((-1 - 3) / (3 - (1 + 0.5) / 2))
    for classes in (2, 3):
        assert targeted_loss("dlr", logits[:, :classes], labels, torch.tensor([1])).item() == pytest.approx(1 - 3)


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"dlr"}))  # whose denominator may outweigh a far target
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_climbing_towards_a_class_raises_it_over_the_label(loss, classes):
    torch.manual_seed(0)
    logits = torch.randn(20, classes, requires_grad=True)
    labels = logits.argmax(1).detach()
    targets = (labels + 1) % classes
    gradient = torch.autograd.grad(targeted_loss(loss, logits, labels, targets).sum(), logits)[0]
    ahead = (gradient.gather(1, targets[:, None]) - gradient.gather(1, labels[:, None])).squeeze(1)
    assert (ahead > 0).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_the_scale_of_the_logits_leaves_the_probability_margin_a_gradient(scale):
    torch.manual_seed(0)
    logits = (scale * torch.randn(20, 10)).requires_grad_(True)
    labels = logits.argmax(1).detach()
    for values in (
        LOSSES["probability-margin"](logits, labels),
        targeted_loss("probability-margin", logits, labels, (labels + 1) % 10),
    ):
        gradient = torch.autograd.grad(values.sum(), logits)[0]
        assert (gradient.abs().amax(1) > 0).all()
        assert gradient.isfinite().all()
