"""Numbers as people write them."""
from __future__ import annotations

from fractions import Fraction


def parse_number(text: str | float) -> float:
    """`8/255`, `0.03` or `0.5` as a float.

    Raises ValueError for anything else.
    """
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"{text!r} is not a number: write a decimal like 0.03 or a fraction like 8/255") from None
