"""Defensive distillation (Papernot et al., S&P 2016) looks robust and is not (Carlini and Wagner, S&P 2017).

Trained here on Fashion-MNIST at T = 20; 2,000 test images. Takes about five minutes on one core.
"""

import gzip

import pytest

from robustbench_local import evaluate, load_classifier, load_dataset
from robustbench_local.attacks import FGSM, PGD
from robustbench_local.data import stratified_subset
from robustbench_local.training.recipe import resolve_recipe
from robustbench_local.training.run import run_training
from robustbench_local.training.settings import RuntimeSettings

pytestmark = pytest.mark.truth
SETTINGS = {"epochs": "10", "optimizer": "adamw", "lr": "6e-3", "weight_decay": "0"}
TWO_POINTS = 0.02


@pytest.fixture(scope="module")
def data_dir(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in (shared / "data" / "fashion-mnist").glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


@pytest.fixture(scope="module")
def evaluated(data_dir, tmp_path_factory):
    """By name: what FGSM, PGD-50 and standard/1 leave of the undefended and the distilled network."""
    test = load_dataset("fashion-mnist", split="test", data_dir=data_dir)
    test = test.subset(stratified_subset(test.labels, 2000, 0))
    results = {}
    for name, method in (("undefended", "standard"), ("distilled", "defensive-distillation:temperature=20")):
        recipe = resolve_recipe("fashion-mnist-cnn", {**SETTINGS, "method": method})
        folder = tmp_path_factory.mktemp(name) / "run"
        run_training(recipe, folder, runtime=RuntimeSettings(device="cpu", data_dir=data_dir))
        classifier, threat_model = load_classifier(str(folder)), recipe.threat_model()

        def of(classifier=classifier, threat_model=threat_model, **attack):
            return evaluate(classifier, test, threat_model, device="cpu", diagnostics=False, **attack).result

        results[name] = {
            "fgsm": of(attacks=[FGSM()]),
            "pgd": of(attacks=[PGD(steps=50)]),
            "standard": of(suite="standard/1"),
        }
        for attack, result in results[name].items():
            print(
                f"{name:<12} {attack:<10} clean {result.clean_accuracy.value:.1%} "
                f"robust {result.robust_accuracy.value:.1%}"
            )
    return results


def test_cross_entropy_attacks_report_a_robustness_that_is_not_there(evaluated):
    for attack in ("fgsm", "pgd"):
        claimed = evaluated["distilled"][attack].robust_accuracy.value
        honest = evaluated["undefended"][attack].robust_accuracy.value
        assert claimed > 0.4
        assert claimed > honest + 0.3


def test_standard_takes_the_distilled_network_to_within_two_points_of_the_undefended_one(evaluated):
    distilled, undefended = (evaluated[name]["standard"].robust_accuracy.value for name in ("distilled", "undefended"))
    assert abs(distilled - undefended) <= TWO_POINTS
    assert evaluated["distilled"]["standard"].clean_accuracy.value > 0.85


def test_diagnostics_say_that_gradients_are_missing(evaluated):
    for attack in ("pgd", "standard"):
        warned = {finding.slug for finding in evaluated["distilled"][attack].diagnostics if finding.status == "warn"}
        assert "gradients-reach-input" in warned
        assert evaluated["distilled"][attack].verdict.status == "doubtful"
    assert evaluated["undefended"]["standard"].verdict.status == "not-assessed"
