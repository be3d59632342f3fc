"""Random numbers per sample, independent of the batch.

Every number is a hash (SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014) of a key and a counter. The key is computed from (seed, sample index, attack, restart), so a sample's
random numbers do not depend on its batch, the order of samples, the device or the number of processes.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The same 64 bits as a signed integer, torch's int64."""
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN_GAMMA = _signed(0x9E3779B97F4A7C15)
"""SplitMix64's increment: 2^64 divided by the golden ratio, odd."""
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: int64 shifts copy the sign bit, so these bits are masked."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(z: Tensor) -> Tensor:
    """SplitMix64's output function, a bijection of int64; every input bit affects every output bit."""
    z = (z ^ _shift(z, 30)) * _MULTIPLIERS[0]
    z = (z ^ _shift(z, 27)) * _MULTIPLIERS[1]
    return z ^ _shift(z, 31)


def hash_indices(seed: int, indices: Tensor) -> Tensor:
    """One well-mixed int64 per index, for the given seed. indices: int64 of any shape."""
    start = torch.tensor(_signed(seed % (1 << 64)), dtype=torch.int64, device=indices.device)
    return splitmix64(splitmix64(start + GOLDEN_GAMMA) + (indices + 1) * GOLDEN_GAMMA)


def sample_keys(seed: int, indices: Tensor, attack: str, restart: int) -> Tensor:
    """The key of every sample for one restart of one attack.

    indices: int64 [rows], the samples' positions in their dataset. Returns int64 [rows].
    """
    digest = hashlib.sha256(f"{attack}\0{restart}".encode()).digest()
    return splitmix64(hash_indices(seed, indices) ^ _signed(int.from_bytes(digest[:8], "big")))


def fold_in(keys: Tensor, steps: Tensor) -> Tensor:
    """New keys from keys and every row's own step: int64 [rows], like both."""
    return splitmix64(splitmix64(keys) + (steps + 1) * GOLDEN_GAMMA)


def uniform(keys: Tensor, shape: torch.Size | tuple[int, ...], draw: int = 0) -> Tensor:
    """Uniform float32 in [0, 1) of shape [rows, *shape]; `draw` numbers the independent draws of one key."""
    count = math.prod(shape)
    counters = torch.arange(draw * count + 1, (draw + 1) * count + 1, dtype=torch.int64, device=keys.device)
    bits = splitmix64(keys[:, None] + counters * GOLDEN_GAMMA)
    return (_shift(bits, 40).to(torch.float32) * 2.0**-24).view(len(keys), *shape)


def normal(keys: Tensor, shape: torch.Size | tuple[int, ...], draw: int = 0) -> Tensor:
    """Standard normal float32 of shape [rows, *shape] (Box and Muller, 1958); uses two uniform draws."""
    radius = (-2 * torch.log1p(-uniform(keys, shape, 2 * draw))).sqrt()
    return radius * torch.cos(2 * math.pi * uniform(keys, shape, 2 * draw + 1))
