"""What the strength comparison runs on: published checkpoints, models trained here, and models that mask gradients.

    python benchmarks/subjects.py [--folder runs/subjects] [NAME…]

trains the missing subjects and lists all. Seeds are fixed; weights are safetensors files in the folder, one
subfolder per model. Images and published checkpoints come from $ROBUST_SHARED (by default ../shared beside the
checkout); where that is absent, only the bundled digits model is left.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from images import SHARED, cifar10, fashion
from torch import Tensor, nn

from robustbench_local import Classifier, ThreatModel, load_classifier, load_dataset
from robustbench_local.data.dataset import Dataset
from robustbench_local.models import build_architecture
from robustbench_local.training.model_card import WEIGHTS, read_weights
from robustbench_local.training.recipe import Recipe
from robustbench_local.training.run import run_training
from robustbench_local.training.settings import RuntimeSettings

FOLDER = Path("runs/subjects")


@dataclass(frozen=True)
class Subject:
    """A model, what it is attacked within, and how to get at it. Both functions take the folder of trained models."""

    name: str
    about: str
    threat_model: ThreatModel
    classifier: Callable[[Path], Classifier]
    dataset: Callable[[Path], Dataset]


def all_subjects() -> dict[str, Subject]:
    """Every subject by name; without $ROBUST_SHARED only the one that needs no files."""
    digits = Subject(
        "digits-cnn",
        "bundled, pgd-at",
        ThreatModel("linf", "0.1"),
        lambda folder: load_classifier("digits-cnn"),  # noqa: ARG005 – bundled
        lambda folder: load_dataset("digits"),  # noqa: ARG005
    )
    if not (SHARED / "published" / "manifest.json").is_file():
        return {digits.name: digits}
    found = [digits, *_published(), *_trained()]
    return {subject.name: subject for subject in found}


def missing() -> str | None:
    """Why most subjects are not there, where they are not."""
    manifest = SHARED / "published" / "manifest.json"
    return None if manifest.is_file() else f"there is no {manifest}: set ROBUST_SHARED to the folder of shared files"


# Published checkpoints.


def _published() -> list[Subject]:
    """One subject per checkpoint and threat model that the manifest states, such as `oval_cifar_wide:linf-2/255`."""
    folder = SHARED / "published"
    subjects = []
    for entry in json.loads((folder / "manifest.json").read_text())["models"]:
        for check in entry["checks"]:
            if "eps" not in check:
                continue
            eps, images = _written(check["eps"]), folder / check["images"]
            subjects.append(
                Subject(
                    f"{entry['name']}:{check['norm']}-{eps}",
                    f"published, {images.stem}",
                    ThreatModel(check["norm"], eps),
                    partial(_load_published, entry),
                    partial(_npz, images),
                )
            )
    return subjects


def _written(eps: float) -> str:
    """Eps as papers write it: with few decimals, else in gray levels."""
    return f"{eps:g}" if round(eps, 4) == eps else f"{round(eps * 255)}/255"


def _load_published(entry: dict[str, Any], folder: Path) -> Classifier:  # noqa: ARG001 – these are not trained
    normalization = ":".join(",".join(map(repr, entry["normalisation"][key])) for key in ("mean", "std"))
    published = SHARED / "published"
    factory = f"{published / 'architectures.py'}:{entry['architecture']}"
    return load_classifier(factory, checkpoint=published / entry["file"], normalize=normalization)


def _npz(path: Path, folder: Path) -> Dataset:  # noqa: ARG001
    return load_dataset(f"npz:{path}")


# Models trained here.

Builder = Callable[[], nn.Module]
Trainer = Callable[[Path], nn.Module]


def _trained() -> list[Subject]:
    fashion, levels = ThreatModel("linf", "0.1"), ThreatModel("linf", "8/255")

    def subject(name: str, about: str, build: Builder, train: Trainer) -> Subject:
        return Subject(name, about, fashion, partial(_load_trained, name, build, train), partial(_fashion, "test"))

    cifar = SHARED / "published" / "images" / "cifar10_sdp200.npz"
    return [
        subject("fashion-pgd-at", "trained here, cnn-small by pgd-at", _small, _train_fashion),
        Subject(
            "cifar-pgd-at",
            "trained here, cnn-medium by pgd-at",
            levels,
            partial(_load_trained, "cifar-pgd-at", _medium, _train_cifar),
            partial(_npz, cifar),
        ),
        subject("distilled", f"masks gradients: defensive distillation at T={TEMPERATURE:g}", _small, _train_distilled),
        subject(
            "label-smoothed",
            f"masks gradients: labels smoothed by 0.9 at T={4 * TEMPERATURE:g}",
            _small,
            _train_smoothed,
        ),
        subject(
            "quantised-input",
            f"masks gradients: {LEVELS} gray levels, gradient 0",
            lambda: Quantised(_small()),
            _train_quantised,
        ),
    ]


def _small() -> nn.Module:
    return build_architecture("cnn-small", in_channels=1, image_size=28)


def _medium() -> nn.Module:
    return build_architecture("cnn-medium")


def _load_trained(name: str, build: Builder, train: Trainer, folder: Path) -> Classifier:
    """The cached model; where there is none it is trained first, in a folder that counts only once it is whole."""
    kept = folder / name
    if not kept.is_dir():
        began, making = time.process_time(), folder / f"{name}.unfinished"
        shutil.rmtree(making, ignore_errors=True)
        making.parent.mkdir(parents=True, exist_ok=True)
        state = train(making).state_dict()
        making.mkdir(exist_ok=True)
        safetensors.torch.save_file(state, making / WEIGHTS)
        making.rename(kept)
        print(f"{name}: trained in {time.process_time() - began:.0f} CPU seconds")
    module = build()
    module.load_state_dict(safetensors.torch.load_file(kept / WEIGHTS))
    return Classifier(module, name=name)


def _train_fashion(making: Path) -> nn.Module:
    recipe = Recipe(
        method="pgd-at:steps=7",
        arch="cnn-small",
        data=f"npz:{fashion('train', making.parent)}",
        eps="0.1",
        samples=20_000,
        epochs=10,
        lr=0.05,
        batch_size=128,
    )
    return _hardened(recipe, making)


def _train_cifar(making: Path) -> nn.Module:
    recipe = Recipe(
        method="pgd-at:steps=2",
        arch="cnn-medium",
        data=f"npz:{cifar10('train', making.parent)}",
        eps="8/255",
        samples=12_000,
        epochs=5,
        lr=0.05,
        batch_size=64,
        holdout=0.03,
    )
    return _hardened(recipe, making)


def _hardened(recipe: Recipe, making: Path) -> nn.Module:
    """The network of the epoch with the best robust accuracy."""
    module = run_training(recipe, making, runtime=RuntimeSettings(device="cpu")).start.network.module
    read_weights(making / WEIGHTS, module)
    return module


# Models that mask their gradients: truth is near zero, and attacks that trust gradients overlook it.

TEMPERATURE = 100.0
LEVELS = 8
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def _train_distilled(making: Path) -> nn.Module:
    """Papernot et al. 2016: a student learns a teacher's probabilities, both at a temperature that is then taken away.

    What is left are logits a hundred times too large; the cross-entropy of most is 0 with gradient 0 in float32.
    """

    def hard(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images) / TEMPERATURE, labels)

    teacher = _fit(_small, hard, making.parent, rate=5e-3)

    def soft(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001
        with torch.no_grad():
            soft_labels = (teacher(images) / TEMPERATURE).softmax(1)
        return F.cross_entropy(model(images) / TEMPERATURE, soft_labels)

    return _fit(_small, soft, making.parent, rate=5e-3)


def _train_smoothed(making: Path) -> nn.Module:
    """Warde-Farley and Goodfellow 2016: smoothed labels do what distillation does, and need no teacher.

    Nine tenths of the mass are spread, at a temperature that leaves every logit gap near 300: no gradient in float32.
    """

    def smoothed(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images) / (4 * TEMPERATURE), labels, label_smoothing=0.9)

    return _fit(_small, smoothed, making.parent, epochs=2, rate=5e-3)


class Quantised(nn.Module):
    """Rounds images to a few gray levels in front of the network; the gradient of that is 0 everywhere."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images * (LEVELS - 1)).round() / (LEVELS - 1))


def _train_quantised(making: Path) -> nn.Module:
    def plain(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels)

    return _fit(lambda: Quantised(_small()), plain, making.parent)


def _fit(build: Builder, loss: Loss, folder: Path, *, epochs: int = 4, rate: float = 2e-3) -> nn.Module:
    """A network fitted to the Fashion-MNIST training images; the caller's random state is not changed."""
    images, labels = _fashion_images(fashion("train", folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, batches = build(), len(images) // 128
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=epochs * batches)
        for _ in range(epochs):
            for rows in torch.randperm(len(images))[: batches * 128].view(batches, 128):
                optimizer.zero_grad()
                loss(model, images[rows], labels[rows]).backward()
                optimizer.step()
                schedule.step()
    return model.eval().requires_grad_(False)


# Images.


def _fashion(split: str, folder: Path) -> Dataset:
    return load_dataset(f"npz:{fashion(split, folder)}")


def _fashion_images(path: Path) -> tuple[Tensor, Tensor]:
    with np.load(path) as file:
        images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    return images.permute(0, 3, 1, 2).float() / 255, labels.long()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the subjects that are missing and list all.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    subjects = all_subjects()
    if unknown := [name for name in options.names if name not in subjects]:
        parser.error(f"unknown subjects {', '.join(unknown)}; there are {', '.join(subjects)}. {missing() or ''}")
    for name in options.names or subjects:
        subject = subjects[name]
        classifier, dataset = subject.classifier(options.folder), subject.dataset(options.folder)
        images = dataset.images(range(min(200, len(dataset))))
        with torch.no_grad():
            right = int((classifier(images).argmax(1) == dataset.labels[: len(images)]).sum())
        threat = f"{subject.threat_model.norm} {subject.threat_model.eps_text}"
        print(f"{name:<42} {threat:<12} {right}/{len(images)} clean   {subject.about}")


if __name__ == "__main__":
    main()
