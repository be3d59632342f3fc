"""What adversarial training costs, compared with a minimal loop and with adversarial-robustness-toolbox.

    python benchmarks/training_speed.py [--rounds 7] [--part cost peer] [--setting digits …] [--methods pgd-at …]

cost: one step of PGD-10 training and of N-FGSM, compared with the minimum computation: as many forward and backward
passes in a loop of ten lines. Contenders take turns in every round, ratios are taken within a round.
peer: the same network, images, epochs and attack steps trained here and by the toolbox's two trainers, in turn; robust
accuracy is that of standard/1 on the same test images. The toolbox gets the better of two optimizers: this project's
SGD settings at a constant rate, and Adam. Its time is that of the better one; ours includes choosing on the hold-out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import images as real
import torch
import torch.nn.functional as F
from machine import machine
from torch import nn

from robustbench_local import Classifier, ThreatModel, evaluate, load_dataset
from robustbench_local.data import stratified_subset
from robustbench_local.data.dataset import Dataset
from robustbench_local.data.loader import Batch
from robustbench_local.io.atomic_write import write_atomically
from robustbench_local.models import build_architecture, parse_normalization
from robustbench_local.training.initialization import NormalizedModel
from robustbench_local.training.model_card import WEIGHTS, read_weights
from robustbench_local.training.precision import laid_out
from robustbench_local.training.recipe import Recipe
from robustbench_local.training.run import run_training
from robustbench_local.training.settings import RuntimeSettings
from robustbench_local.training.step import TrainingStep
from robustbench_local.training.task import TrainingTask

RESULTS = Path(__file__).parent / "results" / "training_speed.json"
EPS, STEPS = 8 / 255, 10
Step = Callable[[], None]


# One step compared with a minimal loop.


def network(name: str) -> NormalizedModel:
    torch.manual_seed(0)
    return NormalizedModel(build_architecture(name), None)


def bare(model: nn.Module, batch: Batch, steps: int) -> Step:
    """PGD training as in the papers: an attack in eval mode on frozen weights, then one step of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        clean, labels = batch.images, batch.labels
        model.eval().requires_grad_(False)
        points = (clean + EPS * (2 * torch.rand_like(clean) - 1)).clamp(0, 1)
        for _ in range(steps):
            points.requires_grad_(True)
            gradient = torch.autograd.grad(F.cross_entropy(model(points), labels, reduction="sum"), points)[0]
            points = (clean + (points.detach() + EPS / 4 * gradient.sign() - clean).clamp(-EPS, EPS)).clamp(0, 1)
        model.train().requires_grad_(True)
        optimizer.zero_grad()
        F.cross_entropy(model(points), labels).backward()
        optimizer.step()

    return step


def ours(model: NormalizedModel, batch: Batch, method: str, precision: str) -> Step:
    recipe = Recipe(method=method, lr=1e-3, precision=precision, schedule="constant")  # type: ignore[arg-type]
    device = batch.images.device
    task = TrainingTask(laid_out(model, device), recipe.objective(), ThreatModel("linf", EPS), recipe)
    step = TrainingStep(task, steps=10**6)
    numbers = iter(range(1, 10**6))
    return lambda: step.train_batch(batch, 1, next(numbers)) and None


def step_costs(name: str, size: int, rounds: int, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    batch = Batch(
        torch.rand(size, 3, 32, 32, device=device),
        torch.randint(10, (size,), device=device),
        torch.arange(size, device=device),
    )

    def fresh() -> NormalizedModel:
        return network(name).to(device)

    contenders = {
        "bare PGD-10, float32": bare(fresh(), batch, STEPS),
        "bare PGD-10, float32, channels last": bare(laid_out(fresh(), device), batch, STEPS),  # type: ignore[arg-type]
        "pgd-at:steps=10, float32": ours(fresh(), batch, "pgd-at:steps=10", "fp32"),
        "pgd-at:steps=10, bfloat16": ours(fresh(), batch, "pgd-at:steps=10", "bf16"),
        "n-fgsm, float32": ours(fresh(), batch, "n-fgsm", "fp32"),
        "n-fgsm, bfloat16": ours(fresh(), batch, "n-fgsm", "bf16"),
        "trades:steps=10, float32": ours(fresh(), batch, "trades:steps=10", "fp32"),
    }
    seconds: dict[str, list[float]] = {key: [] for key in contenders}
    for turn in range(rounds + 1):
        names = list(contenders)
        for key in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            contenders[key]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first round chooses kernels
                seconds[key].append(time.perf_counter() - began)
    rows = {}
    for key, times in seconds.items():
        each = {
            base: [mine / other for mine, other in zip(times, seconds[base], strict=True)]
            for base in list(contenders)[:2]
        }
        rows[key] = {
            "milliseconds_per_image": 1000 * statistics.median(times) / size,
            **{f"ratio to {base}": statistics.median(ratios) for base, ratios in each.items()},
            **{f"range to {base}": [min(ratios), max(ratios)] for base, ratios in each.items()},
        }
        print(
            f"{name:<12} {key:<40}"
            + "".join(
                f"  {statistics.median(ratios):6.3f} [{min(ratios):.3f}–{max(ratios):.3f}]" for ratios in each.values()
            ),
            flush=True,
        )
    return rows


# Whole trainings compared with ART.


@dataclass(frozen=True)
class Setting:
    """What both sides train. recipe: this project's; the toolbox takes network, images, epochs, eps and steps of it."""

    recipe: dict[str, Any]
    steps: int
    test: int | None = None


def settings() -> dict[str, Setting]:
    def npz(make: Callable[[str, Path], Path]) -> dict[str, str]:
        return {"data": f"npz:{make('train', real.FOLDER)}", "eval_data": f"npz:{make('test', real.FOLDER)}"}

    found = {
        "digits": Setting(
            {"data": "digits", "arch": "digits-cnn", "eps": "0.1", "epochs": 30, "lr": 0.2, "weight_decay": 2e-3}, 7
        )
    }
    if real.missing() is None:
        found["fashion-mnist"] = Setting(
            {
                **npz(real.fashion),
                "arch": "cnn-small",
                "eps": "0.1",
                "epochs": 4,
                "lr": 0.1,
                "samples": 20_000,
                "holdout": 0.03,
                "normalize": "fashion-mnist",
                "eps_warmup": 0.1,
                "precision": "bf16",
            },
            7,
            2000,
        )
        found["cifar10"] = Setting(
            {
                **npz(real.cifar10),
                "arch": "cnn-medium",
                "eps": "8/255",
                "epochs": 3,
                "lr": 0.1,
                "samples": 4000,
                "holdout": 0.05,
                "normalize": "cifar10",
                "precision": "bf16",
            },
            7,
            1000,
        )
    return found


def accuracies(classifier: Classifier, dataset: Dataset, recipe: Recipe) -> dict[str, float]:
    threat_model = recipe.threat_model()
    result = evaluate(classifier, dataset, threat_model, suite="standard/1", diagnostics=False, device="cpu").result
    return {"clean": result.clean_accuracy.value, "robust": result.robust_accuracy.value}


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Wall-clock, and seconds of the processor, which other jobs on the machine change little."""
    began, clock = time.perf_counter(), time.process_time()
    made = work()
    return made, {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - clock}


def toolbox(recipe: Recipe, method: str, optimizer: str, steps: int) -> tuple[Classifier, dict[str, float]]:
    """The toolbox's trainer on the same images; the seconds are those of its `fit`."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainerMadryPGD, AdversarialTrainerTRADESPyTorch
    from art.estimators.classification import PyTorchClassifier

    whole = load_dataset(recipe.data, split="train")
    if recipe.samples:
        whole = whole.subset(stratified_subset(whole.labels, recipe.samples, recipe.seed))
    torch.manual_seed(recipe.seed)
    shape = whole.image_shape
    sized = {"image_size": shape[1]} if recipe.arch == "cnn-small" else {}
    model = build_architecture(str(recipe.arch), in_channels=shape[0], **sized)  # type: ignore[arg-type]
    chosen = (
        torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
        if optimizer == "sgd"
        else torch.optim.Adam(model.parameters(), lr=1e-3)
    )
    scaling = parse_normalization(recipe.normalize or "none")
    given = (
        {}
        if scaling is None
        else {"preprocessing": tuple(torch.tensor(values).view(-1, 1, 1).numpy() for values in scaling)}
    )
    estimator = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=chosen,
        input_shape=shape,
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
        **given,
    )
    eps = recipe.threat_model().eps
    x, y = whole.images(range(len(whole))).numpy(), F.one_hot(whole.labels, 10).float().numpy()
    if method == "pgd-at":
        trainer = AdversarialTrainerMadryPGD(
            estimator,
            nb_epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            eps=eps,
            eps_step=2.5 * eps / steps,
            max_iter=steps,
        )
        _, spent = timed(lambda: trainer.fit(x, y))
    else:
        attack = ProjectedGradientDescent(
            estimator,
            eps=eps,
            eps_step=2.5 * eps / steps,
            max_iter=steps,
            num_random_init=1,
            verbose=False,
            batch_size=recipe.batch_size,
        )
        other = AdversarialTrainerTRADESPyTorch(estimator, attack, beta=6.0)
        _, spent = timed(lambda: other.fit(x, y, batch_size=recipe.batch_size, nb_epochs=recipe.epochs))
    mean, std = scaling if scaling else (None, None)
    return Classifier(model.eval(), name="toolbox", mean=mean, std=std), spent


def side_by_side(name: str, setting: Setting, method: str) -> dict[str, Any]:
    recipe = Recipe(**setting.recipe, method=f"{method}:steps={setting.steps}")
    test = load_dataset(recipe.eval_data or recipe.data, split="test")
    if setting.test:
        test = test.subset(stratified_subset(test.labels, setting.test, 0))
    folder = Path("runs/training_speed")
    shutil.rmtree(folder, ignore_errors=True)
    run, spent = timed(lambda: run_training(recipe, folder, runtime=RuntimeSettings(device="cpu")))
    read_weights(folder / WEIGHTS, run.start.network.module)
    mine = {**spent, **accuracies(run.start.classifier("robust", test.image_shape), test, recipe)}
    peers = {}
    for optimizer in ("sgd", "adam"):
        classifier, spent = toolbox(recipe, method, optimizer, setting.steps)
        peers[optimizer] = {**spent, **accuracies(classifier, test, recipe)}
    best = max(peers.values(), key=lambda peer: peer["robust"])
    row = {
        "setting": name,
        "method": recipe.method,
        "recipe": recipe.model_dump(exclude_defaults=True),
        "test_images": len(test),
        "robust": mine,
        "toolbox": peers,
        "time_ratio": mine["seconds"] / best["seconds"],
        "processor_time_ratio": mine["processor_seconds"] / best["processor_seconds"],
        "points_ahead": 100 * (mine["robust"] - best["robust"]),
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--part", nargs="+", choices=["cost", "peer"], default=["cost", "peer"])
    parser.add_argument("--setting", nargs="+", choices=list(settings()), default=list(settings()))
    parser.add_argument("--methods", nargs="+", choices=["pgd-at", "trades"], default=["pgd-at", "trades"])
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    content = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"cost": {}, "peer": []}
    content |= {"command": "python benchmarks/training_speed.py", "machine": machine()}
    if "cost" in options.part:
        for name, size in (("cnn-small", 128), ("cnn-medium", 128), ("resnet18", 16)):
            content["cost"][name] = step_costs(name, size, options.rounds, device)
    if "peer" in options.part:
        for name in options.setting:
            for method in options.methods:
                row = side_by_side(name, settings()[name], method)
                content["peer"] = [
                    each
                    for each in content["peer"]
                    if (each["setting"], each["method"]) != (row["setting"], row["method"])
                ] + [row]
                write_atomically(RESULTS, json.dumps(content, indent=1) + "\n")
    write_atomically(RESULTS, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
