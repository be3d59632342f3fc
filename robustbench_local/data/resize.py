"""How image files are brought to one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import quoted

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 10_000
"""Pixels. Larger sides are typing errors, and one such image can fill the memory."""
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class Resize:
    """Resize the shorter side to `resize` pixels, then cut out the central `crop` square (default: `resize`).

    A (height, width) pair resizes the whole image to that size and cuts nothing off.
    Raises UserError for sides outside 1 … 10,000 pixels and unknown interpolations.
    """

    resize: int | tuple[int, int]
    crop: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        sides = (*self.resize,) if isinstance(self.resize, tuple) else (self.resize,)
        for side in (*sides, *([] if self.crop is None else [self.crop])):
            if not 1 <= side <= MAX_SIDE:
                raise UserError(
                    f"cannot resize images to {side} pixels: give a size from 1 to {MAX_SIDE} with --resize",
                    slug="resize-out-of-range",
                )
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"there is no interpolation {quoted(self.interpolation)}; choose one of {', '.join(INTERPOLATIONS)} in "
                "the model's description",
                slug="unknown-interpolation",
            )

    @classmethod
    def parse(cls, text: str) -> Resize:
        """`256:224` resizes the shorter side to 256 and crops the central 224; `224` alone does both with 224.

        Raises UserError for text of another form.
        """
        size, colon, crop = text.partition(":")
        crop = crop if colon else size
        # Longer texts are no valid size, and Python refuses to convert thousands of digits.
        digits = all(part.isdecimal() and len(part) <= len(str(MAX_SIDE)) for part in (size, crop))
        if not (digits and 1 <= int(crop) <= int(size) <= MAX_SIDE):
            raise UserError(
                f"--resize is {quoted(text)}, but must be SIZE or SIZE:CROP in pixels, such as 256:224, with a crop no "
                f"larger than the size and a size of at most {MAX_SIDE}",
                slug="invalid-resize",
            )
        return cls(int(size), int(crop))

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of every resized image."""
        if isinstance(self.resize, tuple):
            return self.resize
        side = self.crop or self.resize
        return side, side

    def size_before_crop(self, width: int, height: int) -> int:
        """How many pixels an image of this size has after resizing and before cropping."""
        if isinstance(self.resize, tuple):
            return self.resize[0] * self.resize[1]
        short, long = sorted((width, height))
        return self.resize * (self.resize * long // short)

    def apply(self, image: Image.Image) -> Image.Image:
        """The resized and cropped image."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        mode = InterpolationMode(self.interpolation)
        # On Pillow images, not tensors: the accuracies published for torchvision's weights were measured so.
        if isinstance(self.resize, tuple):
            resized: Image.Image = functional.resize(image, list(self.resize), interpolation=mode, antialias=True)
            return resized
        image = functional.resize(image, [self.resize], interpolation=mode, antialias=True)
        cropped: Image.Image = functional.center_crop(image, list(self.output_size))
        return cropped
