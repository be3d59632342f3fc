"""What others published about their checkpoints, and what a mixed-integer solver proved, holds here too.

`certified <= exact <= attacked`: a certificate can only be too low, an attack only too high.
"""
import json
import os
from pathlib import Path

import pytest

from robustbench_local import ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import PGD

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
        for entry in models for check in entry["checks"]
    ]


def load(entry):
    normalisation = ":".join(",".join(map(repr, entry["normalisation"][key])) for key in ("mean", "std"))
    factory = f"{FOLDER / 'architectures.py'}:{entry['architecture']}"
    return load_classifier(factory, checkpoint=FOLDER / entry["file"], normalize=normalisation)


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
    evaluation = evaluate(load(entry), dataset, threat_model, attacks=[attack])
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
