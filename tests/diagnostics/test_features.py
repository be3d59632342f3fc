"""Features are those of every row of every call, or the logits stand in."""

import pytest
import torch
from unusual_forwards import DEPENDENT, HONEST, SAME_ANSWER, EarlyExit, unusual

from robustbench_local import ThreatModel, evaluate, load_dataset
from robustbench_local.attacks import PGD
from robustbench_local.diagnostics.active_test import INNER_POINTS, active_test
from robustbench_local.diagnostics.features import Features, FeaturesMissing, Logits
from robustbench_local.diagnostics.transfer_attack import refitted
from robustbench_local.models.metered import Metered, ModelFailure

DIGITS = load_dataset("digits", split="test")
FEW = DIGITS.subset(range(30))
THREAT = ThreatModel("linf", "0.1")
IMAGES = DIGITS.images(range(8))


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 40), torch.nn.ReLU(), torch.nn.Linear(40, 4))


def test_features_are_what_the_last_linear_layer_is_given():
    one = net()
    assert torch.equal(Features(one)(IMAGES), one[:3](IMAGES))
    without = torch.nn.Flatten()
    assert torch.equal(Features(without)(IMAGES), without(IMAGES))
    assert INNER_POINTS > 40, "more points than features, or every readout would fit"


@pytest.mark.parametrize("name", ["shared", "tokens", "unused head", "gated", "early exit"])
def test_what_is_not_of_every_row_is_missing(name):
    with pytest.raises(FeaturesMissing):
        Features(unusual(name))(IMAGES)


def test_rows_in_another_order_are_noticed():
    features = Features(unusual("sorted"))
    values = features(IMAGES)
    assert values.shape == (8, 64)
    with pytest.raises(FeaturesMissing):
        features.require_own_rows(IMAGES, values)
    Features(net()).require_own_rows(IMAGES, Features(net())(IMAGES))


def test_a_model_that_refuses_a_batch_of_one_is_asked_about_a_pair():
    model = Metered(unusual("never alone"))
    with pytest.raises(ModelFailure):
        model(IMAGES[:1])
    model.model.refuses_one = True  # as the preflight has found
    for read in (Features(model), Logits(model)):
        assert torch.allclose(torch.cat([read(image) for image in IMAGES.split(1)]), read(IMAGES), atol=1e-4)


@pytest.mark.parametrize("name", [*HONEST, *DEPENDENT, *SAME_ANSWER])
def test_planting_and_refitting_take_any_forward(name):
    model = Metered(unusual(name))
    model.model.refuses_one = name == "never alone"
    found = active_test(model, THREAT, IMAGES[:3], PGD(steps=10, loss="margin"))
    assert 0 <= found.successes <= found.images <= 3
    surrogate = refitted(model, DIGITS, THREAT, torch.device("cpu"))
    with torch.no_grad():
        whole, alone = surrogate(IMAGES), torch.cat([surrogate(image) for image in IMAGES.split(1)])
    assert whole.shape == alone.shape == (8, 10)
    if name not in DEPENDENT:
        assert (whole.argmax(1) == model(IMAGES).argmax(1)).float().mean() >= 0.7


def test_the_surrogate_of_an_early_exit_is_one_function():
    """Which exit a row takes must not decide which surrogate answers for it."""
    surrogate = refitted(Metered(unusual("early exit")), DIGITS, THREAT, torch.device("cpu"))
    with torch.no_grad():
        logits = EarlyExit()(IMAGES)
        expected = surrogate(IMAGES)
        weight, bias = (expected[1:] - expected[:1]), (logits[1:] - logits[:1])
    fitted = torch.linalg.lstsq(bias.double(), weight.double()).solution
    assert torch.allclose(bias.double() @ fitted, weight.double(), atol=1e-3)


@pytest.mark.parametrize("name", ["early exit", "never alone", "in place"])
def test_an_evaluation_takes_any_forward(name):
    result = evaluate(unusual(name), FEW, THREAT, suite="fast", device="cpu").result
    assert result.robust_accuracy.n == 30
    assert (result.verdict.status == "trusted") == (name != "never alone")


@pytest.mark.soak
@pytest.mark.parametrize("suite", ["fast", "standard"])
@pytest.mark.parametrize("name", [*HONEST, *DEPENDENT, *SAME_ANSWER])
def test_every_suite_takes_any_forward(name, suite):
    result = evaluate(unusual(name), FEW, THREAT, suite=suite, device="cpu").result
    assert (result.verdict.status == "trusted") <= (name not in DEPENDENT)
