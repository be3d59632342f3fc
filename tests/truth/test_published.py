"""What others published about their checkpoints, and what a mixed-integer solver proved, holds here too.

`certified <= exact <= attacked`: a certificate can only be too low, an attack only too high.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from robustbench_local import ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import PGD
from robustbench_local.engine.protocol import resolve_attack

pytestmark = pytest.mark.truth
FOLDER = Path(os.environ.get("ROBUST_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "published"
ROWS: list[str] = []


def checks():
    manifest = FOLDER / "manifest.json"
    if not manifest.is_file():
        return []
    models = json.loads(manifest.read_text())["models"]
    return [
        pytest.param(entry, check, id=f"{entry['name']}-{check.get('norm', 'clean')}-{check.get('eps', 0):.4g}")
        for entry in models
        for check in entry["checks"]
    ]


def load(entry):
    normalization = ":".join(",".join(map(repr, entry["normalisation"][key])) for key in ("mean", "std"))
    factory = f"{FOLDER / 'architectures.py'}:{entry['architecture']}"
    return load_classifier(factory, checkpoint=FOLDER / entry["file"], normalize=normalization)


@pytest.fixture(scope="module", autouse=True)
def table():
    if not checks():
        pytest.skip("no published checkpoints (set ROBUST_SHARED)")
    yield
    header = f"{'model':<32} {'threat':<14} {'n':>6} {'clean':>6} {'PGD':>6}   published bounds on what stands"
    print("\n" + header, *ROWS, sep="\n")


@pytest.mark.parametrize(("entry", "check"), checks())
def test_published_numbers(entry, check):
    dataset = load_dataset(f"npz:{FOLDER / check['images']}")
    n, attacked = check["n"], "eps" in check
    threat_model = ThreatModel(check.get("norm", "linf"), check.get("eps", 0.0))
    # Of the losses this one alone clears every bound: with plain cross-entropy three of the CIFAR networks keep up to
    # 3 points more standing than the bound allows, with the margin three of the MNIST networks and one of CIFAR do.
    attack = PGD(steps=50, restarts=5, loss="scaled-ce") if attacked else PGD(steps=1)
    evaluation = evaluate(load(entry), dataset, threat_model, attacks=[attack], diagnostics=False)
    clean, standing = evaluation.clean_accuracy.correct, evaluation.robust_accuracy.correct
    bounds = standing_bounds(check, n) if attacked else {}
    told = ", ".join(f"{name} {bound:g}" for name, bound in bounds.items())
    threat = f"{threat_model.norm} {threat_model.eps:.4g}" if attacked else ""
    shown = f"{standing:>6}" if attacked else " " * 6
    ROWS.append(f"{entry['name']:<32} {threat:<14} {n:>6} {clean:>6} {shown}   {told}")
    assert len(dataset) == n
    assert clean == check["clean_correct"]
    for name, bound in bounds.items():
        if name.startswith("at most"):
            assert standing <= bound, name
        else:
            assert standing >= bound, name


def standing_bounds(check, n):
    """How many may stand after an attack, by what was published."""
    bounds = {}
    if "attacked_correct" in check:
        bounds["at most (attacked + 1.5 points)"] = check["attacked_correct"] + 0.015 * n
    if "published_pgd_error_percent" in check:
        bounds["at most (published PGD)"] = round(n * (1 - check["published_pgd_error_percent"] / 100))
    if "exact_error_percent_high" in check:
        bounds["at least (exact)"] = round(n * (1 - check["exact_error_percent_high"] / 100))
    for key in ("certified_correct", "published_verified_correct"):
        if key in check:
            bounds[f"at least ({key.split('_')[-2]})"] = check[key]
    if "certified_error_percent" in check:
        bounds["at least (certified)"] = round(n * (1 - check["certified_error_percent"] / 100))
    return bounds


EXACT = [
    pytest.param(*parameter.values, id=parameter.id)
    for parameter in checks()
    if parameter.values[1].get("exact_error_percent_low", -1) == parameter.values[1].get("exact_error_percent_high")
]


@pytest.mark.parametrize(("suite", "points"), [("standard/1", 0.3), ("exhaustive/1", 0.05)])
@pytest.mark.parametrize(("entry", "check"), EXACT)
def test_suites_reach_the_exact_robust_error(entry, check, suite, points):
    dataset = load_dataset(f"npz:{FOLDER / check['images']}")
    threat_model = ThreatModel(check["norm"], check["eps"])
    evaluation = evaluate(load(entry), dataset, threat_model, suite=suite, diagnostics=False)
    error = 100 * (1 - evaluation.robust_accuracy.value)
    cost = evaluation.result.cost
    print(
        f"\n{entry['name']} {suite}: robust error {error:.2f} %, exact {check['exact_error_percent_low']} %, "
        f"{cost.seconds:.0f} s",
        end="",
    )
    assert len(dataset) == check["n"] == 10_000
    assert check["exact_error_percent_low"] - points <= error + 1e-9
    assert error <= check["exact_error_percent_high"] + 1e-9, "past what a solver has proved impossible"


def test_half_of_the_images_that_only_a_solver_could_break():
    """20 MNIST images on which gradient attacks of every strength fail (Zhang et al., ICML 2022)."""
    entry = next(
        each
        for each in json.loads((FOLDER / "manifest.json").read_text())["models"]
        if each["name"] == "babattack_mnist_madry_tiny"
    )
    dataset = load_dataset(f"npz:{FOLDER / 'images' / 'mnist_hard_madry_tiny.npz'}").subset(range(20))
    model, threat_model = load(entry), ThreatModel("linf", 0.3)
    gradients = evaluate(model, dataset, threat_model, suite="standard/1", diagnostics=False)
    found = evaluate(model, dataset, threat_model, attacks=[resolve_attack("regions:programs=1500")], diagnostics=False)
    broken = [sample.index for sample in found.samples if not sample.robust]
    print(
        f"\nregions breaks {len(broken)} of 20: {broken}; standard/1 breaks "
        f"{20 - gradients.robust_accuracy.correct}; {found.result.cost.seconds:.0f} s",
        end="",
    )
    assert len(broken) >= 10
    assert torch.tensor([sample.distance.linf for sample in found.samples if sample.distance]).max() <= 0.3 + 1e-6
