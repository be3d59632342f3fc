"""Bit-depth reduction as an input defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustbench_local.models.input_defenses.input_defense import BOX, Pixels, StraightThrough, require_between


@dataclass(frozen=True, kw_only=True)
class BitDepth(StraightThrough):
    """Fewer bits per pixel (Xu, Evans and Qi, "Feature squeezing", NDSS 2018).

    bits: 1 to 8; a pixel is rounded to the nearest of 2^bits levels from 0 to 1.
    """

    name: ClassVar[str] = "bit-depth"
    eot: ClassVar[int] = 1
    bits: int = 4

    def __post_init__(self) -> None:
        require_between("bits", self.bits, 1, 8)

    def transform(self, images: Pixels, draw: int) -> Pixels:  # noqa: ARG002
        from art.defences.preprocessor import FeatureSqueezing

        transformed: Pixels = FeatureSqueezing(BOX, bit_depth=self.bits)(images)[0]
        return transformed
