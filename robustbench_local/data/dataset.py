"""The interface of every dataset: labels in memory, images on request as float32 in [0, 1]."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

import torch

from robustbench_local.data.class_directories import ClassDirectories, for_outputs
from robustbench_local.data.picture_files import LeftOut
from robustbench_local.errors import UserError

if TYPE_CHECKING:
    from robustbench_local.data.resize import Resize

ROUNDING = 1e-6
"""Pixels at most this far outside [0, 1] are rounding errors and are clamped. Others are refused."""
_CHUNK = 1024


class Dataset(ABC):
    """Labeled images of one shape.

    name: the name without directories (`"digits"`, `"npz:test.npz"`).
    split: `"test"`, `"train"`, `"val"`, `"holdout"` or `"all"`.
    labels: int64 [N]. class_names: in label order, or None.
    lossy: the files use a codec that changes pixels, so published facts about single originals need not hold.
    indices: int64 [N], the index of each sample in the full split. A subset keeps them.
    resize: how image files are brought to one size, or None.
    groups: int64 [N], the same number for images that belong together (frames of one video), or None.
    directories: the class directories that the labels come from, or None. left_out: the pictures that were found beside
    the samples and are none, or None. notes: what a reader of a result should know, one sentence each.
    """

    name: str
    split: str
    labels: torch.Tensor
    class_names: list[str] | None
    lossy: bool
    indices: torch.Tensor
    resize: Resize | None = None
    groups: torch.Tensor | None = None
    directories: ClassDirectories | None = None
    left_out: LeftOut | None = None

    def __init__(
        self,
        labels: torch.Tensor,
        *,
        name: str,
        split: str = "all",
        class_names: list[str] | None = None,
        lossy: bool = False,
    ) -> None:
        self.name, self.split, self.class_names, self.lossy = name, split, class_names, lossy
        self.labels = _check_labels(labels, name)
        self.indices = torch.arange(len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""

    @property
    def raw_range(self) -> tuple[float, float]:
        """Smallest and largest stored value of a float source, before clamping; (0, 1) for 8-bit sources."""
        return 0.0, 1.0

    @abstractmethod
    def _stored(self, rows: torch.Tensor) -> torch.Tensor:
        """The stored images at these rows of the full split: uint8, or float in [0, 1], [n, C, H, W]."""

    def images(self, positions: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """float32 [n, C, H, W] in [0, 1]: the samples at `positions`, which count from 0 in a subset too.

        8-bit sources are divided by 255. Rounding errors of float sources (at most 1e-6) are clamped here and nowhere
        else, so that every caller sees the same pixels. Raises UserError for pixels further outside [0, 1], NaN or
        infinity, and where a file cannot be decoded.
        """
        stored = self._stored(self.indices[torch.as_tensor(positions, dtype=torch.int64, device="cpu")])
        if stored.dtype == torch.uint8:
            return stored.to(torch.float32).div_(255)
        _check_pixels(stored, self.name)
        return stored.to(torch.float32).clamp(0, 1)

    @property
    def notes(self) -> tuple[str, ...]:
        """How directories became labels where their names are numbers, and which pictures were left out."""
        sources = self.directories, self.left_out
        return tuple(source.text for source in sources if source is not None and source.text)

    def for_outputs(self, outputs: int) -> Self:
        """The same samples, their labels those of a model with so many outputs where the labels count directories.

        Raises UserError for more class directories, or larger numbers, than there are outputs.
        """
        if self.directories is None:
            return self
        relabeled = copy.copy(self)
        relabeled.directories = for_outputs(self.directories, outputs)
        relabeled.class_names = list(relabeled.directories.class_names)
        new_labels = torch.zeros(max(self.directories.labels) + 1, dtype=torch.int64)
        new_labels[list(self.directories.labels)] = torch.tensor(relabeled.directories.labels)
        relabeled.labels = new_labels[self.labels]
        return relabeled

    def subset(self, positions: Sequence[int] | torch.Tensor) -> Self:
        """The samples at `positions`, in that order, without a copy of any image."""
        rows = torch.as_tensor(positions, dtype=torch.int64, device="cpu")
        part = copy.copy(self)
        part.labels, part.indices = self.labels[rows], self.indices[rows]
        part.groups = None if self.groups is None else self.groups[rows]
        return part

    def sha256(self) -> str:
        """The identity of all images and labels, in this order: `dataset_sha256` of its samples."""
        parts = torch.arange(len(self)).split(_CHUNK)
        return dataset_sha256((sample_sha256(image) for part in parts for image in self.images(part)), self.labels)


class ArrayDataset(Dataset):
    """Images in memory: `images` uint8 or float32 [N, C, H, W] (any strides; not copied), `labels` integers [N].

    Raises UserError for an empty set, a wrong rank or dtype, different lengths, negative labels, and pixels that are
    NaN, infinite or outside [0, 1].
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        name: str = "arrays",
        split: str = "all",
        class_names: list[str] | None = None,
        lossy: bool = False,
    ) -> None:
        if images.ndim != 4 or 0 in images.shape[1:]:
            raise UserError(
                f"the images of {name} have shape {tuple(images.shape)}, but must be (samples, channels, height, "
                "width)",
                slug="images-wrong-shape",
            )
        if images.dtype not in (torch.uint8, torch.float32):
            raise UserError(
                f"the images of {name} are {images.dtype}, but must be torch.uint8 or torch.float32",
                slug="images-wrong-dtype",
            )
        super().__init__(labels, name=name, split=split, class_names=class_names, lossy=lossy)
        if len(images) != len(self):
            raise UserError(
                f"{name} has {len(images):,} images but {len(self):,} labels: give one label per image",
                slug="images-labels-mismatch",
            )
        self._images = images
        self._range = (0.0, 1.0) if images.dtype == torch.uint8 else _check_pixels(images, name)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self._images.shape
        return channels, height, width

    @property
    def raw_range(self) -> tuple[float, float]:
        return self._range

    def _stored(self, rows: torch.Tensor) -> torch.Tensor:
        # Images may be a channels-last view; callers get contiguous NCHW memory.
        return self._images[rows].contiguous()


def sample_sha256(image: torch.Tensor) -> str:
    """The identity of one image (float32 [C, H, W]): sha256 over its shape and its little-endian float32 values."""
    pixels = image.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256("x".join(str(n) for n in pixels.shape).encode() + b":")
    digest.update(pixels.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def dataset_sha256(sample_hashes: Iterable[str], labels: torch.Tensor) -> str:
    """sha256 over the `sample_sha256` and the label (int64 [N]) of each sample, in order."""
    digest = hashlib.sha256()
    for sample, label in zip(sample_hashes, labels.tolist(), strict=True):
        digest.update(f"{sample} {label}\n".encode())
    return digest.hexdigest()


def _check_labels(labels: torch.Tensor, name: str) -> torch.Tensor:
    if labels.ndim != 1:
        raise UserError(
            f"the labels of {name} have shape {tuple(labels.shape)}, but must be (samples,): one class number each",
            slug="labels-wrong-shape",
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(
            f"the labels of {name} are {str(labels.dtype).removeprefix('torch.')}, but must be integers: the class "
            "number of each sample, counted from 0",
            slug="labels-wrong-dtype",
        )
    if len(labels) == 0:
        raise UserError(f"{name} is empty: give at least one labeled image", slug="dataset-empty")
    labels = labels.to(torch.int64)
    if int(labels.min()) < 0:
        first = int((labels < 0).nonzero()[0])
        raise UserError(
            f"label {int(labels[first])} of sample {first} in {name} is negative, but class numbers count from 0: "
            "leave unlabeled samples out",
            slug="labels-negative",
        )
    return labels


def _check_pixels(images: torch.Tensor, name: str) -> tuple[float, float]:
    """Smallest and largest pixel, computed in chunks so that a large set needs no second copy of itself.

    Raises UserError for NaN, infinity, and pixels outside [0, 1] by more than `ROUNDING`.
    """
    low, high = 0.0, 0.0
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        smallest, largest = (float(value) for value in chunk.aminmax())
        if not (smallest > -float("inf") and largest < float("inf")):  # NaN is neither
            first = start + int((~chunk.isfinite().flatten(1).all(1)).nonzero()[0])
            raise UserError(
                f"image {first} of {name} has NaN or infinite pixels, but pixels must be in [0, 1]: fix that image or "
                "leave it out",
                slug="pixels-not-finite",
            )
        low, high = (min(low, smallest), max(high, largest)) if start else (smallest, largest)
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise UserError(
            f"{name} has pixels from {low:.7g} to {high:.7g}, but pixels must be in [0, 1]: {_range_advice(low, high)}",
            slug="pixels-out-of-range",
        )
    return low, high


def _range_advice(low: float, high: float) -> str:
    if low >= -0.1 and high <= 1.1:
        return "clamp them before you save them"
    if low >= 0 and high <= 255:
        return "these look like gray levels, so divide them by 255 or store them as uint8"
    return (
        "these look normalized, so store them before normalization and give the mean and standard deviation with "
        "--normalize instead; eps then keeps its meaning in pixels"
    )
