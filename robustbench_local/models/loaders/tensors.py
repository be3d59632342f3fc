"""Named tensors from a file: their shapes, and the checks that they pass before anything is computed with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import quoted

State = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

# A file may claim that a tensor has more values than it stores, by reading one again and again (a stride of 0). Small
# ones, such as a broadcast mean, do no harm.
MOST_UNBACKED = 64 * 2**20
MOST_CLASSES = 100_000
LONGEST_NAME = 1_000


def shapes_of(module: nn.Module) -> Shapes:
    """Name -> shape of every weight and buffer that a checkpoint of the module holds."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items() if isinstance(value, Tensor)}


def shape_text(shape: Iterable[int]) -> str:
    """The shape as messages write it: `3×3`, or `a scalar`."""
    return "×".join(str(size) for size in shape) or "a scalar"


def require_short_names(names: Iterable[str], source: str) -> None:
    """Raise UserError for a tensor name of more than 1,000 characters."""
    for name in names:
        if len(name) > LONGEST_NAME:
            raise UserError(
                f"{source}: a tensor's name has {len(name):,} characters ({quoted(name)}), but no more than "
                f"{LONGEST_NAME:,} are allowed; get the file again from a source you trust",
                slug="tensor-name-too-long",
            )


def require_plain(state: State, source: str) -> None:
    """Raise UserError for tensors that are not dense CPU tensors, or that claim far more values than the file holds."""
    for key, value in state.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
            raise UserError(
                f"{source}: {quoted(key)} is a tensor of another kind ({value.layout}, {value.dtype}, "
                f"{value.device}) than plain weights; save model.state_dict() of the float model",
                slug="tensor-kind",
            )
    require_backed(state, source)


def require_backed(state: State, source: str) -> None:
    """Raise UserError for tensors that claim far more values than are in memory."""
    unbacked = 0
    for key, value in state.items():
        unbacked += max(0, value.numel() * value.element_size() - value.untyped_storage().nbytes())
        if unbacked > MOST_UNBACKED:
            raise UserError(
                f"{source}: {quoted(key)} claims {value.numel():,} values ({shape_text(value.shape)}), far "
                "more than the file holds; get it again from a source you trust",
                slug="tensor-larger-than-file",
            )


def refuse_non_finite(tensors: Iterable[tuple[str, Tensor]], source: str) -> None:
    """Raise UserError that names the first tensor with a value that is not finite.

    Minus infinity is allowed in tensors named as masks: attention masks contain it.
    """
    for key, value in tensors:
        if not value.is_floating_point() or value.is_meta:
            continue
        wide = value.float() if value.element_size() == 1 else value  # 8-bit floats have no comparisons
        if not torch.isfinite(wide).all():
            bad = ~torch.isfinite(wide) if "mask" not in key else wide.isnan()
            if bad.any():
                raise UserError(
                    f"{source}: {int(bad.sum())} of {value.numel()} values of {quoted(key)} are not finite "
                    "(NaN or infinite): the training diverged or the file is damaged; give another "
                    "checkpoint",
                    slug="weights-not-finite",
                )
