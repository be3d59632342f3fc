"""Numbers as people write them."""
from __future__ import annotations

from fractions import Fraction


def parse_number(text: str | float) -> float:
    """`8/255`, `0.5/255` or `0.03` as a float.

    Raises ValueError for anything else.
    """
    numerator, slash, denominator = str(text).partition("/")
    try:
        if "/" in denominator:
            raise ValueError("two bars")
        return float(Fraction(numerator) / (Fraction(denominator) if slash else 1))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"{text!r} is not a number: write a decimal like 0.03 or a fraction like 8/255") from None
