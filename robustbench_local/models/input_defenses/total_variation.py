"""Total variation minimization as an input defense."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from robustbench_local.models.input_defenses.input_defense import BOX, Pixels, StraightThrough, require_between


@dataclass(frozen=True, kw_only=True)
class TotalVariation(StraightThrough):
    """Total variation minimization (Guo et al., "Countering adversarial images", ICLR 2018): random pixels, smoothed.

    prob: probability that a pixel is drawn; the smooth image stays close to the drawn pixels. norm: 1 or 2, of the
    differences between neighboring pixels. lamb: weight of these differences. max_iter: iterations of L-BFGS-B. eot:
    number of draws that the gradient is averaged over.

    The draw is seeded by a hash of the image and of the draw's number. So an image gets the same prediction in every
    batch, that of draw 0. This favors the attacker over fresh draws: fooling draw 0 by luck counts as success.
    """

    name: ClassVar[str] = "total-variation"
    prob: float = 0.3
    norm: int = 2
    lamb: float = 0.5
    max_iter: int = 10
    eot: int = 4

    def __post_init__(self) -> None:
        require_between("prob", self.prob, 0, 1)
        require_between("norm", self.norm, 1, 2)  # the toolbox's derivative is wrong for other norms
        require_between("lamb", self.lamb, 0, 100)
        require_between("max_iter", self.max_iter, 1, 1000)
        require_between("eot", self.eot, 1, 100)

    def transform(self, images: Pixels, draw: int) -> Pixels:
        from art.defences.preprocessor import TotalVarMin

        minimize = TotalVarMin(prob=self.prob, norm=self.norm, lamb=self.lamb, max_iter=self.max_iter, clip_values=BOX)
        smooth = np.empty_like(images)
        for row, image in enumerate(images):
            digest = hashlib.sha256(f"{draw} ".encode() + np.ascontiguousarray(image).tobytes()).digest()
            with _numpy_seeded(int.from_bytes(digest[:4], "big")):
                smooth[row] = minimize(image.transpose(1, 2, 0)[None])[0][0].transpose(2, 0, 1)
        return smooth


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator inside the block and restore it afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
