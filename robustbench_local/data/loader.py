"""Batches of a dataset on a device: from memory where the set fits, else decoded by worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from robustbench_local.data.dataset import Dataset
from robustbench_local.errors import UserError

RESIDENT_BYTES = 2 * 2**30
"""A set of at most this size as float32 stays on the device. A larger one is read batch by batch."""


@dataclass(frozen=True)
class Batch:
    """images: float32 [n, C, H, W] in [0, 1]. labels, indices: int64 [n]. All on the loader's device."""

    images: Tensor
    labels: Tensor
    indices: Tensor


def fits_in_memory(dataset: Dataset) -> bool:
    """Whether the set is small enough to stay in memory as float32."""
    channels, height, width = dataset.image_shape
    return 4 * len(dataset) * channels * height * width <= RESIDENT_BYTES


def automatic_workers() -> int:
    """The default number of processes that decode images: enough to keep a device busy, not the whole machine."""
    return min(8, max(0, (os.cpu_count() or 1) - 1))


class _Reader(TorchDataset[Tensor]):
    """Images by positions. Errors are returned as values, because a worker's exceptions lose their message."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    def __getitem__(self, positions: Tensor) -> Tensor | UserError:  # type: ignore[override]
        try:
            return self._dataset.images(positions)
        except UserError as error:
            return error


class BatchLoader:
    """Batches of a dataset on a device. workers: processes that read a set too large for memory; None: automatic."""

    def __init__(self, dataset: Dataset, device: torch.device, *, workers: int | None = None):
        self._dataset, self._device = dataset, device
        fits = fits_in_memory(dataset)
        self._images = dataset.images(torch.arange(len(dataset))).to(device) if fits else None
        self._workers = automatic_workers() if workers is None else workers

    def __len__(self) -> int:
        return len(self._dataset)

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        """One batch for each tensor of positions, in order."""
        if self._images is not None:
            for positions in parts:
                yield self._batch(positions, self._images[positions.to(self._device)])
            return
        loader = DataLoader(
            _Reader(self._dataset),
            sampler=list(parts),
            batch_size=None,
            num_workers=min(self._workers, len(parts)),
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # not the global one, which dropout and resuming rely on
        )
        for positions, images in zip(parts, loader, strict=True):
            if isinstance(images, UserError):
                raise images
            yield self._batch(positions, images.to(self._device, non_blocking=True))

    def _batch(self, positions: Tensor, images: Tensor) -> Batch:
        labels, indices = self._dataset.labels[positions], self._dataset.indices[positions]
        return Batch(images, labels.to(self._device), indices.to(self._device))


def shuffled_batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Positions of full batches in random order. The samples left over are not used in this epoch."""
    order = torch.randperm(count, generator=generator)
    return [positions for positions in order.split(size) if len(positions) == size]
