"""Normalization that a wrapper stored among a network's weights."""

from __future__ import annotations

from collections.abc import Collection

from robustbench_local.models.loaders.tensors import State
from robustbench_local.models.normalization import Normalization

PAIRS = {"mean": "std", "new_mean": "new_std", "mu": "sigma", "image_mean": "image_std", "pixel_mean": "pixel_std"}
MOST_CHANNELS = 4


def stored_normalizations(state: State, weights: Collection[str]) -> tuple[set[str], list[Normalization]]:
    """(names of the entries, the different normalizations in them) among what are not the network's own weights.

    A normalization is a mean and a standard deviation of up to four values under the same prefix, such as
    `normalizer.new_mean` and `normalizer.new_std`.
    """
    names: set[str] = set()
    normalizations: list[Normalization] = []
    for name in state:
        prefix, dot, last = name.rpartition(".")
        other = prefix + dot + PAIRS.get(last, "")
        if last not in PAIRS or other not in state or name in weights or other in weights:
            continue
        mean, std = state[name], state[other]
        if 0 < mean.numel() <= MOST_CHANNELS and mean.numel() == std.numel():
            names |= {name, other}
            pair = (tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()))
            if pair not in normalizations:
                normalizations.append(pair)
    return names, normalizations
