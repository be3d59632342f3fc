"""Numbers as people write them: decimals and fractions. Needs nothing but the standard library."""

from __future__ import annotations

import re
from fractions import Fraction

_LONGEST = 100
_EXPONENT = re.compile(r"[eE][+-]?0*[0-9_]{4,}")


def parse_number(text: str | float) -> float:
    """`8/255`, `0.5/255` or `0.03` as a float.

    Raises ValueError for anything else.
    """
    numerator, slash, denominator = str(text).partition("/")
    try:
        # A fraction is exact, so 1e999999999 would be worked out to all its digits.
        if len(str(text)) > _LONGEST or _EXPONENT.search(str(text)):
            raise ValueError("too long")
        if "/" in denominator:
            raise ValueError("two bars")
        return float(Fraction(numerator) / (Fraction(denominator) if slash else 1))
    except (ValueError, ZeroDivisionError, OverflowError):
        shown = str(text)[:_LONGEST]
        raise ValueError(f"{shown!r} is not a number: write a decimal like 0.03 or a fraction like 8/255") from None
