"""Defensive distillation, in seconds on digits: what cross-entropy attacks claim of it, and what stands.

The same with Fashion-MNIST and 2,000 images is a published truth (tests/truth/test_distillation.py).
"""

from __future__ import annotations

import pytest

from robustbench_local import evaluate, load_classifier, load_dataset
from robustbench_local.attacks import FGSM, PGD
from robustbench_local.training.recipe import resolve_recipe
from robustbench_local.training.run import run_training
from robustbench_local.training.settings import RuntimeSettings


@pytest.fixture(scope="module")
def robust(tmp_path_factory):
    """Robust accuracies by network and attack."""
    digits, found = load_dataset("digits").subset(range(0, 360, 3)), {}
    flags = {
        "method": "defensive-distillation:temperature=50",
        "optimizer": "adamw",
        "lr": "1e-2",
        "weight_decay": "0",
        "epochs": "40",
    }
    recipe, folder = resolve_recipe("digits-cnn", flags), tmp_path_factory.mktemp("distilled") / "run"
    run_training(recipe, folder, runtime=RuntimeSettings(device="cpu"))
    for name, classifier in (
        ("undefended", load_classifier("digits-cnn")),
        ("distilled", load_classifier(str(folder))),
    ):
        for attack, asked in (
            ("fgsm", {"attacks": [FGSM()]}),
            ("pgd", {"attacks": [PGD(steps=50)]}),
            ("standard", {"suite": "standard"}),
        ):
            evaluation = evaluate(classifier, digits, recipe.threat_model(), device="cpu", diagnostics=False, **asked)
            found[name, attack] = evaluation.robust_accuracy.value
    return found


def test_distillation_looks_robust_to_attacks_on_the_cross_entropy(robust):
    assert robust["distilled", "fgsm"] > 0.85
    assert robust["distilled", "pgd"] > 0.85
    assert robust["distilled", "pgd"] > robust["undefended", "pgd"] + 0.25


def test_standard_leaves_no_more_of_it_than_of_the_undefended_network(robust):
    assert robust["distilled", "standard"] <= robust["undefended", "standard"] + 0.02
