"""FGSM and PGD against adversarial-robustness-toolbox and a loop of ten lines, at the same settings."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustbench_local import ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import FGSM, PGD
from robustbench_local.engine.protocol import resolve_attack

pytestmark = pytest.mark.truth
MODEL, EPS, STEP, STEPS = "sdp_cifar_cnn_a_adv", 2 / 255, 0.5 / 255, 50


@pytest.fixture(scope="module")
def problem(shared):
    folder = shared / "published"
    entry = next(e for e in json.loads((folder / "manifest.json").read_text())["models"] if e["name"] == MODEL)
    normalization = ":".join(",".join(map(repr, entry["normalisation"][key])) for key in ("mean", "std"))
    classifier = load_classifier(
        f"{folder / 'architectures.py'}:{entry['architecture']}",
        checkpoint=folder / entry["file"],
        normalize=normalization,
    )
    return classifier, load_dataset(f"npz:{folder / 'images' / 'cifar10_sdp200.npz'}")


def loop(classifier, images, labels, steps, step_size, random_start):
    points = images.clone()
    if random_start:
        points += (2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 1) * EPS
    points = points.clamp(0, 1)
    for _ in range(steps):
        points.requires_grad_(True)
        gradient = torch.autograd.grad(F.cross_entropy(classifier(points), labels, reduction="sum"), points)[0]
        points = images + (points.detach() + step_size * gradient.sign() - images).clamp(-EPS, EPS)
        points = points.clamp(0, 1)
    return float((classifier(points).argmax(1) == labels).float().mean())


@pytest.mark.parametrize(
    ("ours", "toolbox", "steps", "step_size"),
    [
        (FGSM(), "art/FastGradientMethod", 1, EPS),
        (
            PGD(steps=STEPS, step_size=STEP),
            f"art/ProjectedGradientDescentPyTorch:max_iter={STEPS},eps_step=0.5/255,num_random_init=1",
            STEPS,
            STEP,
        ),
    ],
    ids=["fgsm", "pgd"],
)
def test_three_implementations_agree(problem, ours, toolbox, steps, step_size):
    classifier, dataset = problem
    threat_model = ThreatModel("linf", "2/255")
    found = {
        "ours": evaluate(classifier, dataset, threat_model, attacks=[ours], diagnostics=False).robust_accuracy.value,
        "toolbox": evaluate(
            classifier, dataset, threat_model, attacks=[resolve_attack(toolbox)], diagnostics=False
        ).robust_accuracy.value,
        "loop": loop(classifier, dataset.images(range(200)), dataset.labels, steps, step_size, steps > 1),
    }
    print(f"\n{type(ours).__name__}: {found}")
    assert np.ptp(list(found.values())) <= 0.005 + 1e-9, found
