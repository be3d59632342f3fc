"""Evaluating in blocks until a stopping rule is satisfied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

FIRST_BLOCK, SMALLEST_BLOCK, GROWTH = 100, 50, 4
"""Samples of the first block, the fewest of a later one, and the divisor of all samples so far that gives the next."""


class StoppingRule(Protocol):
    """Decides after every block whether the evaluation may end.

    name: what the result records as the reason for stopping.
    """

    @property
    def name(self) -> str: ...

    def decided(self, correct: int, robust: int, n: int, population: int) -> bool:
        """Return whether n samples, drawn at random without replacement from the population, are enough.

        correct: samples classified correctly. robust: those that are also robust.
        """
        ...


def blocks(n: int) -> Iterator[Tensor]:
    """Positions 0 to n - 1 in blocks that grow with the number of samples so far, int64 [samples] each."""
    start = 0
    while start < n:
        size = FIRST_BLOCK if start == 0 else max(SMALLEST_BLOCK, start // GROWTH)
        yield torch.arange(start, min(start + size, n))
        start += size
