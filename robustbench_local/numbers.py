"""Numbers as people write them: decimals and fractions. Needs nothing but the standard library."""

from __future__ import annotations

import re
from fractions import Fraction

_MAX_LENGTH = 100
_EXPONENT = re.compile(r"[eE][+-]?0*[0-9_]{4,}")


def parse_number(text: str | float) -> float:
    """`8/255`, `0.5/255` or `0.03` as a float.

    Raises ValueError for anything else, for numbers too large for a float, and for exponents of four digits or more.
    """
    numerator, slash, denominator = str(text).partition("/")
    try:
        # A fraction is exact, so 1e999999999 would be computed to its last digit. Python reads digits of any script.
        if len(str(text)) > _MAX_LENGTH or not str(text).isascii() or _EXPONENT.search(str(text)):
            raise ValueError("too long")
        if "/" in denominator:
            raise ValueError("two slashes")
        return float(Fraction(numerator) / (Fraction(denominator) if slash else 1))
    except (ValueError, ZeroDivisionError, OverflowError):
        shown = str(text)[:_MAX_LENGTH]
        raise ValueError(f"{shown!r} is not a number: write a decimal like 0.03 or a fraction like 8/255") from None


def parse_count(text: str, least: int = 0, most: int = 10**9) -> int:
    """A whole number in decimal digits, from least to most.

    Raises ValueError for anything else.
    """
    # Python refuses to convert thousands of digits, and its `isdigit` accepts "²".
    if text.isascii() and text.isdigit() and len(text) <= len(str(most)) and least <= int(text) <= most:
        return int(text)
    raise ValueError(f"{text[:_MAX_LENGTH]!r} is not a whole number from {least} to {most}")


def parse_eps(text: str | float, norm: str, box: tuple[float, float] = (0.0, 1.0)) -> float:
    """The radius of a threat model, in pixel units. box: lowest and highest pixel value.

    Raises ValueError for anything but a number of at least 0, and for an L∞ radius wider than the box, which is what 8
    instead of 8/255 looks like.
    """
    try:
        eps = parse_number(text)
    except ValueError:
        eps = -1.0
    if not 0 <= eps < float("inf"):
        shown = str(text)[:_MAX_LENGTH]
        raise ValueError(f"eps is {shown!r}, but must be a number of at least 0, such as 0.03 or 8/255")
    if norm == "linf" and eps > box[1] - box[0]:
        raise ValueError(
            f"L∞ eps is {text}, wider than the whole range of a pixel ({box[1] - box[0]:g}): eps is in pixel units of "
            f"[{box[0]:g}, {box[1]:g}], so write {text}/255 for gray levels"
        )
    return eps
