"""What an input defense is, and what the defenses share."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

BOX = (0.0, 1.0)
Pixels = npt.NDArray[np.floating[Any]]


class InputDefense(Protocol):
    """A transformation of images. Its settings are the fields of a frozen dataclass.

    `eot`: number of random draws that its gradient is averaged over; 1 for a deterministic transformation.
    """

    name: ClassVar[str]

    @property
    def eot(self) -> int: ...

    def transform(self, images: Pixels, draw: int) -> Pixels:
        """Float32 [rows, channels, height, width] in [0, 1] to the same, each image on its own.

        All randomness is a function of image and draw.
        """
        ...

    def surrogate(self, images: Tensor) -> Tensor:
        """A differentiable function of the same shape, whose gradient replaces the transformation's."""
        ...


class StraightThrough:
    """For transformations that change an image little: their gradient is the identity's."""

    def surrogate(self, images: Tensor) -> Tensor:
        return images


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError for a setting below low or above high."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, but must be between {low} and {high}")
