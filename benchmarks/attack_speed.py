"""PGD-50 on a ResNet-18 at 32×32: this project, a minimal loop and peers, interleaved in one run.

    python benchmarks/attack_speed.py [--steps 50] [--images 16] [--rounds 5]

Everybody does the same work: L∞ 8/255, steps of 2/255 from a random start, no sample dropped. The bare loop is the
floor: as many forward passes and input gradients, parameters frozen. Ratios are taken within each round, because
these machines drift; the median of the rounds and its range are printed and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import machine
from torch import Tensor, nn

from robustbench_local import ThreatModel
from robustbench_local.attacks import pgd
from robustbench_local.models import build_architecture

EPS, STEP = 8 / 255, 2 / 255
Attack = Callable[[Tensor, Tensor], Tensor]


def bare_loop(model: nn.Module, steps: int) -> Attack:
    def attack(images: Tensor, labels: Tensor) -> Tensor:
        points = (images + (2 * torch.rand_like(images) - 1) * EPS).clamp(0, 1)
        for _ in range(steps):
            points.requires_grad_(True)
            gradient = torch.autograd.grad(F.cross_entropy(model(points), labels, reduction="sum"), points)[0]
            points = (images + (points.detach() + STEP * gradient.sign() - images).clamp(-EPS, EPS)).clamp(0, 1)
        return points

    return attack


def ours(model: nn.Module, steps: int) -> Attack:
    threat_model = ThreatModel("linf", EPS)
    return lambda images, labels: pgd(model, images, labels, threat_model, steps=steps, step_size=STEP)


def toolbox(model: nn.Module, steps: int) -> Attack:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        made = ProjectedGradientDescentPyTorch(
            estimator, eps=EPS, eps_step=STEP, max_iter=steps, num_random_init=1, batch_size=len(images), verbose=False
        )
        return torch.from_numpy(made.generate(images.numpy(), F.one_hot(labels, 10).numpy()))

    return attack


def foolbox(model: nn.Module, steps: int) -> Attack:
    from foolbox import PyTorchModel
    from foolbox.attacks import LinfPGD

    wrapped = PyTorchModel(model, bounds=(0, 1), device="cpu")
    made = LinfPGD(steps=steps, abs_stepsize=STEP, random_start=True)
    return lambda images, labels: made.run(wrapped, images, labels, epsilon=EPS)


def network(*, frozen: bool) -> nn.Module:
    """Random weights: arithmetic costs the same. Peers get the model as users hand it over: eval mode, not frozen."""
    torch.manual_seed(0)
    return build_architecture("resnet18").eval().requires_grad_(not frozen)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    contenders = {
        "bare loop": bare_loop(network(frozen=True), options.steps),
        "robust": ours(network(frozen=True), options.steps),
        "robust, model not frozen": ours(network(frozen=False), options.steps),
        "adversarial-robustness-toolbox": toolbox(network(frozen=False), options.steps),
        "foolbox": foolbox(network(frozen=False), options.steps),
    }
    images, labels = torch.rand(options.images, 3, 32, 32), torch.randint(10, (options.images,))
    bare_loop(network(frozen=True), 2)(images, labels)  # the first convolutions choose their kernels
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(options.rounds):
        for name in list(contenders)[turn % len(contenders) :] + list(contenders)[: turn % len(contenders)]:
            started = time.perf_counter()
            contenders[name](images, labels)
            seconds[name].append(time.perf_counter() - started)
    report(options, seconds)


def report(options: argparse.Namespace, seconds: dict[str, list[float]]) -> None:
    def ratios(name: str, base: str) -> list[float]:
        return [mine / other for mine, other in zip(seconds[name], seconds[base], strict=True)]

    rows = {}
    print(f"{'':<32} {'s/run':>7} {'ms/(image·step)':>16} {'× bare loop':>22} {'× toolbox':>12}")
    for name, times in seconds.items():
        against, peer = ratios(name, "bare loop"), ratios(name, "adversarial-robustness-toolbox")
        rows[name] = {
            "seconds": times,
            "ratio_to_bare_loop": statistics.median(against),
            "ratio_to_toolbox": statistics.median(peer),
        }
        each = statistics.median(times) / options.steps / options.images * 1000
        print(
            f"{name:<32} {statistics.median(times):>7.2f} {each:>16.2f} {statistics.median(against):>8.3f} "
            f"[{min(against):.3f}–{max(against):.3f}] {statistics.median(peer):>8.3f}"
        )
    content = {
        "command": f"python benchmarks/attack_speed.py --steps {options.steps} --images {options.images} "
        f"--rounds {options.rounds}",
        "what": "PGD, ResNet-18, 3×32×32, L∞ 8/255, float32",
        "machine": machine(),
        "contenders": rows,
    }
    path = Path(__file__).parent / "results" / "attack_speed.json"
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
