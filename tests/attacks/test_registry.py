"""Attacks register themselves, and their function forms have the dataclasses' own signatures."""

import dataclasses
import inspect
import pickle
import typing
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from robustbench_local import attacks
from robustbench_local.attacks import ATTACKS, PGD, ThreatModel, attack_function, pgd, run
from robustbench_local.attacks.divergence import DivergencePGD
from robustbench_local.attacks.registry import Registry, summary

BALL = ThreatModel("linf", 0.1)
FUNCTIONS = {
    "apgd": attacks.apgd,
    "fab": attacks.fab,
    "fgsm": attacks.fgsm,
    "pgd": attacks.pgd,
    "square": attacks.square,
}


def batch():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 16, generator=generator)
    images = torch.rand(6, 1, 4, 4, generator=generator)

    def model(points):
        return points.flatten(1) @ weights.T

    return model, images, model(images).argmax(1)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_signature_is_that_of_the_dataclass(name):
    kind = ATTACKS[name]
    function = FUNCTIONS.get(name, attack_function(kind))
    parameters = inspect.signature(function).parameters
    fields, hints = dataclasses.fields(kind), typing.get_type_hints(kind)
    assert list(parameters) == [
        "model",
        "images",
        "labels",
        "threat_model",
        *(field.name for field in fields),
        "seed",
        "indices",
    ]
    for field in fields:
        parameter = parameters[field.name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert (parameter.default, parameter.annotation) == (field.default, hints[field.name])
    assert (parameters["seed"].default, parameters["indices"].default) == (0, None)
    assert parameters["images"].annotation is Tensor
    assert typing.get_type_hints(function)["return"] is Tensor
    assert function.__name__ == name
    assert summary(kind) in function.__doc__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_function_runs_the_attack(name):
    model, images, labels = batch()
    settings = {} if name == "fgsm" else {"steps": 3}
    points = FUNCTIONS[name](model, images, labels, BALL, **settings, seed=2, indices=torch.arange(6) + 5)
    expected = run(ATTACKS[name](**settings), model, BALL, images, labels, seed=2, indices=torch.arange(6) + 5)
    assert torch.equal(points, expected)


@pytest.mark.parametrize("name", ATTACKS)
def test_unknown_settings_and_positional_settings_are_refused(name):
    model, images, labels = batch()
    function = attack_function(ATTACKS[name])
    with pytest.raises(TypeError, match="step_sise"):
        function(model, images, labels, BALL, step_sise=0.1)
    with pytest.raises(TypeError):
        function(model, images, labels, BALL, 3)
    with pytest.raises(TypeError):
        function(model, images, labels)


def test_values_that_the_attack_refuses_are_refused():
    with pytest.raises(ValueError, match="steps is 0"):
        pgd(*batch(), BALL, steps=0)


def test_a_function_can_be_pickled():
    assert pickle.loads(pickle.dumps(pgd)) is pgd


def test_a_new_attack_is_one_class():
    @dataclass(frozen=True, kw_only=True)
    class Small(PGD):
        """PGD with a small budget.

        The settings are PGD's.
        """

        name: ClassVar[str] = "small-pgd"
        steps: int = 2

    registry = Registry()
    assert registry.register(Small) is Small
    assert registry.describe() == {"small-pgd": "PGD with a small budget."}
    model, images, labels = batch()
    function = attack_function(Small)
    assert function.__name__ == "small_pgd"
    assert torch.equal(function(model, images, labels, BALL), run(Small(), model, BALL, images, labels))


def test_a_registry_refuses_what_it_cannot_list():
    registry = Registry()
    registry.register(PGD)
    with pytest.raises(ValueError, match="pgd"):
        registry.register(PGD)

    class NoDataclass:
        """It has no fields."""

        name = "none"

    @dataclass(frozen=True)
    class NoDocstring:
        name: ClassVar[str] = "none"
        steps: int = 1

    @dataclass
    class NotFrozen:
        """It can change."""

        name: ClassVar[str] = "none"

    for kind in (NoDataclass, NoDocstring, NotFrozen):
        with pytest.raises(TypeError, match=kind.__name__):
            registry.register(kind)
    assert list(registry) == ["pgd"]


def test_every_attack_has_a_one_line_description_and_names_its_paper():
    for name, description in ATTACKS.describe().items():
        assert description.endswith("."), name
        first_line = (inspect.getmodule(ATTACKS[name]).__doc__ or "").partition("\n")[0]
        assert "et al" in first_line or " and " in first_line, name
    assert DivergencePGD.name not in ATTACKS
