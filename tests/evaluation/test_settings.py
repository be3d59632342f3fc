"""The settings of an evaluation: as an object, as keywords, and what is refused."""

import dataclasses

import pytest
import torch

from robustbench_local import ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import FGSM
from robustbench_local.errors import UserError
from robustbench_local.evaluation.settings import EvaluationSettings, with_overrides
from robustbench_local.gates.stopping import GateStoppingRule

THREAT = ThreatModel("linf", "0.1")
RULE = GateStoppingRule("gate.yaml", 0.05, None, 0.5)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits").subset(range(60))


@pytest.fixture(scope="module")
def model():
    return load_classifier("digits-cnn")


def test_keywords_are_fields_of_the_settings(model, digits):
    settings = EvaluationSettings(attacks=[FGSM()], samples=30, seed=3, diagnostics=False)
    by_object = evaluate(model, digits, THREAT, settings)
    by_keywords = evaluate(model, digits, THREAT, attacks=[FGSM()], samples=30, seed=3, diagnostics=False)
    assert by_object.samples == by_keywords.samples
    overridden = evaluate(model, digits, THREAT, settings, seed=4)
    assert overridden.result.config["seed"] == 4
    assert overridden.result.data.n == 30


@pytest.mark.parametrize(
    ("name", "field"), [("sample", "samples"), ("stopping", "stopping_rule"), ("batchsize", "batch_size")]
)
def test_an_unknown_keyword_names_the_nearest_field(model, digits, name, field):
    with pytest.raises(TypeError, match=f"{name!r}.*{field!r}"):
        evaluate(model, digits, THREAT, **{name: 1})


def test_settings_are_frozen():
    settings = EvaluationSettings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 1
    assert with_overrides(settings, {"seed": 1}, "evaluate").seed == 1
    assert settings.seed == 0


@pytest.mark.parametrize(
    ("fields", "slug"),
    [
        ({"suite": "fast", "attacks": [FGSM()]}, "suite-and-attacks"),
        ({"attacks": []}, "no-attacks"),
        ({"samples": 10, "stopping_rule": RULE}, "samples-and-stopping-rule"),
    ],
)
def test_contradictions_are_refused(fields, slug):
    with pytest.raises(UserError) as caught:
        EvaluationSettings(**fields)
    assert caught.value.slug == slug


def gradient_sign(model, images, labels, threat_model):
    """FGSM as a plain function."""
    points = images.clone().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(points), labels, reduction="sum")
    step = threat_model.eps * torch.autograd.grad(loss, points)[0].sign()
    return (images + step).clamp(0, 1)


def test_an_attack_is_an_object_a_spec_or_a_function(model, digits):
    fooled = [
        evaluate(model, digits, THREAT, attacks=[attack], diagnostics=False).robust_accuracy.correct
        for attack in (FGSM(), "fgsm", gradient_sign)
    ]
    assert len(set(fooled)) == 1
    assert fooled[0] < 50


def test_the_samples_in_scope_are_counted(model, digits):
    targeted = evaluate(model, digits, ThreatModel("linf", "0.1", target=3), attacks=["fgsm"], diagnostics=False)
    assert targeted.result.data.available == int((digits.labels != 3).sum())
    for threat_model, slug in (
        (ThreatModel("linf", "0.1", target=3, source=4), "source-class-empty"),
        (ThreatModel("linf", "0.1", target=3), "only-target-class"),
    ):
        with pytest.raises(UserError) as caught:
            evaluate(model, digits.subset((digits.labels == 3).nonzero().squeeze(1)), threat_model)
        assert caught.value.slug == slug
