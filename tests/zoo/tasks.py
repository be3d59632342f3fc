"""Images for the zoo, a small network for them, and how it learns."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_local import load_dataset
from robustbench_local.data.dataset import Dataset

CLASSES = 10


# The images.


@dataclass(frozen=True)
class Task:
    """Images to train on, float32 [n, 1, size, size] and int64 [n], images to evaluate, and how long to train."""

    name: str
    images: Tensor
    labels: Tensor
    test: Dataset
    eps: str
    epochs: int

    @property
    def size(self) -> int:
        return self.images.shape[-1]


@functools.cache
def task(data: str = "digits") -> Task:
    """`digits`, which is bundled, or `fashion`, which is made from the shared files. Raises KeyError for any other."""
    training, test, eps, epochs = {"digits": _digits, "fashion": _fashion}[data]()
    return Task(data, training.images(range(len(training))), training.labels, test, eps, epochs)


def _digits() -> tuple[Dataset, Dataset, str, int]:
    return load_dataset("digits", split="train"), load_dataset("digits", split="test"), "0.15", 20


def _fashion() -> tuple[Dataset, Dataset, str, int]:
    root = Path(__file__).resolve().parents[2]
    sys.path.insert(0, str(root / "benchmarks"))
    from images import fashion

    training, test = (load_dataset(f"npz:{fashion(split, root / 'runs' / 'data')}") for split in ("train", "test"))
    return training.subset(range(20_000)), test, "0.1", 4


# The networks.


def network(
    size: int, *, channels: int = 1, width: int = 16, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Two convolutions and two linear layers for square images of that size."""
    stride = 1 if size < 16 else 2
    left = -(-size // (2 * stride))
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=stride, padding=1),
        activation(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        activation(),
        nn.Flatten(),
        nn.Linear(2 * width * left**2, 4 * width),
        activation(),
        nn.Linear(4 * width, CLASSES),
    )


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def plain(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def fit(
    build: Callable[[], nn.Module],
    on: Task,
    loss: Loss = plain,
    *,
    epochs: float = 1.0,
    rate: float = 2e-3,
    seed: int = 0,
    falling: bool = True,
) -> nn.Module:
    """A model that has learnt, in eval mode; the caller's random numbers go on as if nothing had been drawn.

    epochs: times the task's own. falling: whether the learning rate follows one cycle or stays.
    """
    size = 64 if len(on.images) < 5000 else 128
    batches, rounds = len(on.images) // size, round(on.epochs * epochs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=rounds * batches)
        for _ in range(rounds):
            for rows in torch.randperm(len(on.images))[: batches * size].view(batches, size):
                optimizer.zero_grad()
                loss(model, on.images[rows], on.labels[rows]).backward()
                optimizer.step()
                if falling:
                    schedule.step()
    return model.eval().requires_grad_(False)


@functools.cache
def undefended(data: str, seed: int = 0) -> nn.Module:
    """The network that nobody has defended: from its points others are fooled too."""
    on = task(data)
    return fit(lambda: network(on.size), on, seed=seed)
