"""Layers that change no legal image must not change how many stand, whatever their gradient at the edges of the box."""

import functools

import fronts
import pytest
from torch import nn
from torch.nn import functional

from robustbench_local import Classifier, ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.engine.precision import build_search_models
from robustbench_local.models.metered import Metered

evaluate = functools.partial(evaluate, diagnostics=False, device="cpu")
MEAN, STD = 0.485, 0.229
FRONTS = {
    **fronts.FRONTS,
    "normalized": fronts.normalized(MEAN, STD),
    "relu6": lambda x: functional.relu6(6 * x) / 6,
    "hardsigmoid": lambda x: functional.hardsigmoid(6 * x - 3),
    "wide": lambda x: x.clamp(-0.5, 1.0).clamp(0.0, 1.5),
}
THREATS = [("linf", 0.1), ("l2", 0.5), ("l1", 2.0)]


class Behind(nn.Module):
    """The bundled digits classifier behind a front."""

    def __init__(self, front):
        super().__init__()
        self.front, self.net = front, load_classifier("digits-cnn").module

    def forward(self, images):
        return self.net(self.front(images))


def standing(front, norm, eps, suite, images, **settings):
    result = evaluate(
        Classifier(Behind(front), input_shape=(1, 8, 8)),
        load_dataset("digits").subset(range(images)),
        ThreatModel(norm, eps),
        suite=suite,
        **settings,
    ).result
    return result.robust_accuracy.correct


@pytest.mark.parametrize(("norm", "eps"), THREATS)
@pytest.mark.parametrize("suite", ["fast", "standard"])
def test_as_many_stand_as_without_the_front(suite, norm, eps):
    names, images = (["clamp"], 16) if suite == "standard" else (["clamp", "relus", "normalized"], 40)
    bare = standing(nn.Identity(), norm, eps, suite, images)
    assert {name: standing(FRONTS[name], norm, eps, suite, images) for name in names} == dict.fromkeys(names, bare)


def test_version_1_leaves_more_standing_behind_a_clamp():
    """What version 2 is for; version 1 keeps its outcome."""
    bare, clamped = (standing(front, "linf", 0.1, "fast/1", 120) for front in (nn.Identity(), FRONTS["clamp"]))
    assert clamped >= bare + 10
    assert standing(nn.Identity(), "linf", 0.1, "fast/2", 120) == bare


@pytest.mark.parametrize("name", ["clamp", "signed"])
def test_low_precision_is_not_used_where_it_rounds_pixels_back_to_the_edge(name):
    """bfloat16 has no number between 1 - 1/256 and 1."""
    images = load_dataset("digits").images(range(12))
    chosen = {
        front: build_search_models(Metered(Classifier(Behind(FRONTS.get(front, nn.Identity())))), images, "bf16").name
        for front in ("bare", name)
    }
    assert chosen == {"bare": "bf16", name: "fp32"}
    assert standing(FRONTS[name], "linf", 0.1, "fast", 60, precision="bf16") == standing(
        nn.Identity(), "linf", 0.1, "fast", 60, precision="bf16"
    )


@pytest.mark.soak
@pytest.mark.parametrize(("norm", "eps"), THREATS)
@pytest.mark.parametrize("suite", ["fast", "standard", "exhaustive"])
@pytest.mark.parametrize("name", FRONTS)
def test_as_many_of_all_digits_stand(name, suite, norm, eps):
    images = 60 if suite == "exhaustive" else 360
    assert standing(FRONTS[name], norm, eps, suite, images) == bare_standing(norm, eps, suite, images)


@functools.cache
def bare_standing(norm, eps, suite, images):
    return standing(nn.Identity(), norm, eps, suite, images)
