"""JPEG compression as an input defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustbench_local.models.input_defenses.input_defense import BOX, Pixels, StraightThrough, require_between


@dataclass(frozen=True, kw_only=True)
class Jpeg(StraightThrough):
    """JPEG compression (Dziugaite, Ghahramani and Roy, arXiv:1608.00853): every image saved and read again.

    quality: 1 to 100, as in Pillow. Three channels are compressed together, any other number one by one. Pixels are
    first truncated to 8 bits, not rounded, as the toolbox does.
    """

    name: ClassVar[str] = "jpeg"
    eot: ClassVar[int] = 1
    quality: int = 75

    def __post_init__(self) -> None:
        require_between("quality", self.quality, 1, 100)

    def transform(self, images: Pixels, draw: int) -> Pixels:  # noqa: ARG002
        from art.defences.preprocessor import JpegCompression

        transformed: Pixels = JpegCompression(BOX, quality=self.quality, channels_first=True)(images)[0]
        return transformed
