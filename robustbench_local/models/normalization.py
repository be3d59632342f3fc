"""The normalization that a model expects: `imagenet`, `cifar10`, …, `none`, or `MEAN:STD`."""

from __future__ import annotations

import math

from robustbench_local.errors import UserError, nearest
from robustbench_local.numbers import parse_number

Normalization = tuple[tuple[float, ...], tuple[float, ...]]

# Per channel, over the training images in [0, 1], as public training recipes state them.
NORMALIZATIONS: dict[str, Normalization] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "gtsrb": ((0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669)),
}


def parse_normalization(text: str) -> Normalization | None:
    """`imagenet` or `0.49,0.48,0.45:0.2` -> (mean, std), one value per channel; `none` -> None.

    Fractions work (`125/255`); a list of one value serves as many channels as the other list has.
    Raises UserError for an unknown name, a malformed number, lists of different lengths or a std that is not above 0.
    """
    name = text.strip().lower()
    if name == "none":
        return None
    if name in NORMALIZATIONS:
        return NORMALIZATIONS[name]
    means, colon, stds = name.partition(":")
    if not colon:
        names = ", ".join([*NORMALIZATIONS, "none"])
        raise UserError(
            f"--normalize {text!r} is neither a name ({names}) nor MEAN:STD as "
            f"0.49,0.48,0.45:0.2,0.2,0.2.{nearest(name, [*NORMALIZATIONS, 'none'])}",
            slug="unknown-normalization",
        )
    mean, std = _numbers(means, text), _numbers(stds, text)
    length = max(len(mean), len(std))
    mean, std = (values * length if len(values) == 1 else values for values in (mean, std))
    if len(mean) != len(std):
        raise UserError(
            f"--normalize {text!r} has {len(mean)} means and {len(std)} standard deviations; give one of "
            "each per channel, or one for all",
            slug="normalization-lengths",
        )
    if min(std) <= 0:
        raise UserError(
            f"--normalize {text!r}: a standard deviation must be above 0, and {min(std):g} is not; the "
            "form is MEAN:STD, means first",
            slug="normalization-values",
        )
    return mean, std


def _numbers(part: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(_number(value) for value in part.split(","))
    except ValueError as error:
        raise UserError(
            f"--normalize {text!r}: {error}; the form is MEAN:STD as 0.49,0.48,0.45:0.2,0.2,0.2",
            slug="normalization-not-a-number",
        ) from None
    if not all(math.isfinite(value) for value in values):
        raise UserError(f"--normalize {text!r}: every number must be finite", slug="normalization-values")
    return values


def _number(text: str) -> float:
    """A decimal or a fraction; its parts may be decimals, because recipes write `125.3/255`."""
    above, _, below = text.partition("/")
    divisor = parse_number(below) if below else 1.0
    if divisor == 0:
        raise ValueError(f"{text!r} divides by zero")
    return parse_number(above) / divisor
