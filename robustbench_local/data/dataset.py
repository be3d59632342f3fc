"""What the engine knows of data: labels at hand, images on request as float32 in [0, 1]."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch

from robustbench_local.errors import UserError

if TYPE_CHECKING:
    from robustbench_local.data.imagefolder import Resize

_CHECK_ROWS = 1024


class Dataset(ABC):
    """Labelled images of one shape.

    name: what it was called, without folders (`"digits"`, `"npz:test.npz"`); split: `"test"`, `"train"`, `"val"` or
    `"all"`; labels: int64 [N]; class_names: in label order, or None; lossy: the files were stored with a codec that
    changes pixels, so facts published about single originals need not hold; indices: int64 [N], each sample's index
    in the full split, which a subset keeps; resize: how files are brought to one size, None where they are not;
    groups: int64 [N], the same number for images that belong together, or None.
    """

    name: str
    split: str
    labels: torch.Tensor
    class_names: list[str] | None
    lossy: bool
    indices: torch.Tensor
    resize: Resize | None = None
    groups: torch.Tensor | None = None

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
        self.labels = _checked_labels(labels, name)
        self.indices = torch.arange(len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""

    @property
    def raw_range(self) -> tuple[float, float]:
        """Smallest and largest value of a float source as it came; (0, 1) for 8-bit sources, which fit by nature."""
        return 0.0, 1.0

    @abstractmethod
    def _stored(self, rows: torch.Tensor) -> torch.Tensor:
        """The images at these rows of the full split as they are held: uint8 or float32, [n, C, H, W]."""

    def images(self, positions: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """float32 [n, C, H, W] of the samples at `positions` (0 … len - 1 of this data set, also of a subset).

        8-bit sources are divided by 255; float sources come as they are, in or out of [0, 1].
        Raises UserError where a file cannot be decoded.
        """
        stored = self._stored(self.indices[torch.as_tensor(positions, dtype=torch.int64, device="cpu")])
        return stored.to(torch.float32).div_(255) if stored.dtype == torch.uint8 else stored

    def subset(self, positions: Sequence[int] | torch.Tensor) -> Self:
        """The samples at `positions`, in that order, without a copy of any image."""
        chosen = torch.as_tensor(positions, dtype=torch.int64, device="cpu")
        part = copy.copy(self)
        part.labels, part.indices = self.labels[chosen], self.indices[chosen]
        part.groups = None if self.groups is None else self.groups[chosen]
        return part


class ArrayDataset(Dataset):
    """Images in memory: `images` uint8 or float32 [N, C, H, W] (any strides; not copied), `labels` integers [N].

    Raises UserError on an empty set, a wrong rank or dtype, lengths that differ, negative labels, NaN or infinity.
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
                f"The images of {name} have shape {tuple(images.shape)}; allowed is (samples, channels, height, width)."
            )
        if images.dtype not in (torch.uint8, torch.float32):
            raise UserError(f"The images of {name} are {images.dtype}; allowed are torch.uint8 and torch.float32.")
        super().__init__(labels, name=name, split=split, class_names=class_names, lossy=lossy)
        if len(images) != len(self):
            raise UserError(
                f"{name} holds {len(images):,} images but {len(self):,} labels; there must be one label per image."
            )
        self._images = images
        self._range = (0.0, 1.0) if images.dtype == torch.uint8 else _finite_range(images, name)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self._images.shape
        return channels, height, width

    @property
    def raw_range(self) -> tuple[float, float]:
        return self._range

    def _stored(self, rows: torch.Tensor) -> torch.Tensor:
        # Images may be a channels-last view; callers get plain NCHW memory whatever the source was.
        return self._images[rows].contiguous()


def sample_sha256(image: torch.Tensor) -> str:
    """The identity of one image (float32 [C, H, W]): sha256 over its shape and its little-endian float32 values."""
    pixels = image.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256("x".join(str(n) for n in pixels.shape).encode() + b":")
    digest.update(pixels.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _checked_labels(labels: torch.Tensor, name: str) -> torch.Tensor:
    if labels.ndim != 1:
        raise UserError(
            f"The labels of {name} have shape {tuple(labels.shape)}; allowed is (samples,), one class number each."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(
            f"The labels of {name} are {str(labels.dtype).removeprefix('torch.')}; "
            "allowed are integers, the number of each sample's class counted from 0."
        )
    if len(labels) == 0:
        raise UserError(f"{name} is empty; at least one labelled image is needed.")
    labels = labels.to(torch.int64)
    if int(labels.min()) < 0:
        at = int((labels < 0).nonzero()[0])
        raise UserError(
            f"Label {int(labels[at])} of sample {at} in {name} is negative; class numbers count from 0, "
            "so leave unlabelled samples out."
        )
    return labels


def _finite_range(images: torch.Tensor, name: str) -> tuple[float, float]:
    """Smallest and largest value, found in slices so that a large set needs no second copy of itself."""
    low, high = float("inf"), float("-inf")
    for start in range(0, len(images), _CHECK_ROWS):
        part = images[start : start + _CHECK_ROWS]
        broken = ~part.isfinite().flatten(1).all(1)
        if broken.any():
            at = start + int(broken.nonzero()[0])
            raise UserError(
                f"Image {at} of {name} holds NaN or infinity; values must be finite and in [0, 1], "
                "so mend that sample or leave it out."
            )
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    return low, high
