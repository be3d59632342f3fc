"""Training methods and add-ons register themselves; any number of add-ons goes with a method."""

import contextlib
import inspect
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from robustbench_local.attacks.registry import Registry
from robustbench_local.defenses import ADD_ONS, AWP, OBJECTIVES, AddOn, Objective, Standard
from robustbench_local.errors import UserError
from robustbench_local.training.recipe import Recipe


@pytest.mark.parametrize("registry", [OBJECTIVES, ADD_ONS], ids=["objectives", "add-ons"])
def test_every_entry_has_a_one_line_description(registry):
    for name, description in registry.describe().items():
        assert registry[name].name == name
        assert description.endswith("."), name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_method_names_its_paper(name):
    kind = OBJECTIVES[name]
    documents = (inspect.getmodule(kind).__doc__ or "") + kind.__doc__
    assert name == "standard" or "et al" in documents or " and " in documents


def test_a_method_is_not_an_add_on():
    assert not set(OBJECTIVES) & set(ADD_ONS)
    assert all(issubclass(kind, Objective) for kind in OBJECTIVES.values())
    assert all(issubclass(kind, AddOn) for kind in ADD_ONS.values())


@dataclass(frozen=True, kw_only=True)
class Shift(AddOn):
    """Move all weights by a constant."""

    name: ClassVar[str] = "shift"
    amount: float = 1.0

    @contextlib.contextmanager
    def perturb(self, weights, gradients):
        gradients()
        with torch.no_grad():
            before = [weight.clone() for weight in weights]
            for weight in weights:
                weight += self.amount
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, old in zip(weights, before, strict=True):
                    weight.copy_(old)


@pytest.fixture
def with_shift(monkeypatch):
    registry = Registry(ADD_ONS)
    registry.register(Shift)
    monkeypatch.setattr("robustbench_local.defenses.ADD_ONS", registry)


@pytest.mark.usefixtures("with_shift")
def test_a_new_add_on_is_one_class():
    assert Recipe(method="standard+shift:amount=1/2").add_ons() == (Shift(amount=0.5),)
    assert Recipe(method="standard+awp:warmup=1+shift").add_ons() == (AWP(warmup=1), Shift())
    assert Recipe(method="standard").add_ons() == ()
    assert Recipe(method="standard+shift").objective() == Standard()


@pytest.mark.parametrize(
    ("method", "slug"),
    [
        ("awp", "add-on-without-method"),
        ("awp+awp", "add-on-without-method"),
        ("trades+mart", "unknown-add-on"),
        ("trades+", "unknown-add-on"),
        ("trades+awp+awp:warmup=2", "add-on-twice"),
        ("trade", "unknown-method"),
    ],
)
def test_what_is_no_method_with_add_ons_is_refused(method, slug):
    recipe = Recipe(method=method)
    with pytest.raises(UserError) as caught:
        recipe.objective(), recipe.add_ons()
    assert caught.value.slug == slug
    assert method in str(caught.value) or "awp" in str(caught.value)
