"""PGD-50 with everything on – folded, channels-last, bfloat16, dropping – compared with a minimal float32 loop and ART.

    python benchmarks/search_speed.py [--images 200] [--rounds 3] [--threads 1]

Needs a CPU with bfloat16 units and CIFAR-10 under ROBUST_SHARED. First the search alone, in milliseconds per image
and step: what one step costs in each arithmetic, nothing dropped. Then the whole answer, the robust accuracy after
PGD-50: the bare loop over all images against `evaluate`, which attacks what is classified correctly, drops what is
fooled, searches in bfloat16 and finishes in float32; seconds, and the share of images with the same verdict.
Contenders are interleaved and compared within each round.
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
from subjects import FOLDER, all_subjects, missing
from torch import Tensor

from robustbench_local import Classifier, ThreatModel, evaluate
from robustbench_local.attacks import PGD
from robustbench_local.attacks.attack import Rows
from robustbench_local.engine.precision import build_search_models
from robustbench_local.models import build_architecture
from robustbench_local.models.metered import Metered

STEPS = 50


def bare_loop(model: Classifier, eps: float, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
    def attack(images: Tensor, labels: Tensor) -> Tensor:
        points = images
        for _ in range(steps):
            points = points.detach().requires_grad_(True)
            gradient = torch.autograd.grad(F.cross_entropy(model(points), labels, reduction="sum"), points)[0]
            moved = points.detach() + 2.5 * eps / STEPS * gradient.sign()
            points = (images + (moved - images).clamp(-eps, eps)).clamp(0, 1)
        return points.detach()

    return attack


def toolbox(model: Classifier, eps: float, steps: int, classes: int, shape: tuple[int, ...]) -> Callable:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    # Users hand models over as they are: parameters that take gradients.
    model = Classifier(model.module, **model.normalization or {}).requires_grad_(True)
    estimator = PyTorchClassifier(
        model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=classes,
        clip_values=(0, 1),
        device_type="cpu",
    )

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        made = ProjectedGradientDescentPyTorch(
            estimator, eps=eps, eps_step=2.5 * eps / STEPS, max_iter=steps, batch_size=len(images), verbose=False
        )
        return torch.from_numpy(made.generate(images.numpy(), F.one_hot(labels, classes).numpy()))

    return attack


def step_costs(model: Classifier, images: Tensor, eps: float, steps: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds per image and step, by contender, one value a round. Nothing is dropped."""
    labels, threat_model = model(images).argmax(1), ThreatModel("linf", eps)
    twins = build_search_models(Metered(model), images[:32], "bf16")
    attack = PGD(steps=STEPS, random_start=False)

    def search(twin: Classifier) -> Callable[[Tensor, Tensor], object]:
        def run(images: Tensor, labels: Tensor) -> None:
            state = attack.start(threat_model, Rows(images, labels, labels, labels))
            for _ in range(steps):
                state = attack.step(twin, threat_model, state)

        return run

    contenders: dict[str, Callable] = {
        "bare float32 loop": bare_loop(model, eps, steps),
        "toolbox": toolbox(model, eps, steps, 10, tuple(images.shape[1:])),
        "robust, float32": search(twins.float32.model),
    }
    if twins.low_precision is not None:
        contenders["robust, bfloat16"] = search(twins.low_precision.model)
    bare_loop(model, eps, 1)(images, labels)
    return {
        name: [value / steps / len(images) * 1000 for value in values]
        for name, values in timed(contenders, lambda run: run(images, labels), rounds).items()
    }


def timed(contenders: dict[str, Callable], call: Callable, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            started = time.perf_counter()
            call(contender)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def whole_answer(model: Classifier, dataset, eps: float, rounds: int) -> dict:
    """The robust accuracy after PGD-50 in two ways: seconds, robust samples, equal verdicts."""
    images, labels = dataset.images(range(len(dataset))), dataset.labels
    attack = bare_loop(model, eps, STEPS)

    def bare() -> Tensor:
        points = torch.cat([attack(*part) for part in zip(images.split(32), labels.split(32), strict=True)])
        return (model(images).argmax(1) == labels) & (model(points).argmax(1) == labels)

    def ours() -> Tensor:
        found = evaluate(
            model,
            dataset,
            ThreatModel("linf", eps),
            attacks=[PGD(steps=STEPS, random_start=False)],
            precision="bf16",
            diagnostics=False,
        )
        return torch.tensor([sample.robust for sample in found.samples])

    verdicts: dict[str, Tensor] = {}

    def call(contender: Callable) -> None:
        verdicts[contender.__name__] = contender()

    seconds = timed({"bare": bare, "ours": ours}, call, rounds)
    correct = int((model(images).argmax(1) == labels).sum())
    return {
        "images": len(dataset),
        "clean": correct,
        "standing": {name: int(v.sum()) for name, v in verdicts.items()},
        "verdicts_alike": float((verdicts["bare"] == verdicts["ours"]).float().mean()),
        "seconds": seconds,
        "ratio": statistics.median(o / b for o, b in zip(seconds["ours"], seconds["bare"], strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise SystemExit("skipped: this CPU has no bfloat16 units")
    if missing():
        raise SystemExit(f"skipped: {missing()}")
    subject = all_subjects()["cifar-pgd-at"]
    dataset = subject.dataset(FOLDER)
    trained = subject.classifier(FOLDER), dataset.subset(range(min(options.images, len(dataset))))
    torch.manual_seed(0)
    networks = {
        "cnn-medium": (trained[0], 32, 20),
        "preact-resnet18": (Classifier(build_architecture("preact-resnet18"), input_shape=(3, 32, 32)), 32, 4),
    }
    content: dict = {
        "command": f"python benchmarks/search_speed.py --images {options.images} --rounds {options.rounds} "
        f"--threads {options.threads}",
        "machine": machine(),
        "milliseconds_per_image_and_step": {},
        "whole": {},
    }
    for name, (model, batch, steps) in networks.items():
        costs = step_costs(model, trained[1].images(range(batch)), 8 / 255, steps, options.rounds)
        content["milliseconds_per_image_and_step"][name] = costs
        print(name)
        for contender, values in costs.items():
            ratios = [bare / mine for bare, mine in zip(costs["bare float32 loop"], values, strict=True)]
            peer = [theirs / mine for theirs, mine in zip(costs["toolbox"], values, strict=True)]
            print(
                f"  {contender:<20} {statistics.median(values):8.3f} ms   × bare {statistics.median(ratios):5.2f} "
                f"[{min(ratios):.2f}–{max(ratios):.2f}]   × toolbox {statistics.median(peer):5.2f}"
            )
    for eps in ("8/255", "16/255"):
        radius = ThreatModel("linf", eps).eps  # type: ignore[arg-type]
        found = whole_answer(trained[0], trained[1], radius, options.rounds)
        content["whole"][eps] = found
        print(f"PGD-50 at {eps}: {found}")
    path = Path(__file__).parent / "results" / "search_speed.json"
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
