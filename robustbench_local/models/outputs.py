"""The logits among what a module returns: a tensor, or tensors in tuples, lists, dicts and objects."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from robustbench_local.errors import UserError

LOGITS = "logits"
_NAMES = (LOGITS, "out", "output")
_MOST_TENSORS, _DEEPEST = 64, 3


def as_logits(output: object, images: int, name: str, key: str | None = None) -> Tensor:
    """The N×K logits in what a module returned for N images.

    key: which tensor of several, as `logit_candidates` names them; by convention the one called `logits`, else `out`
    or `output` in a dict, else the first of a tuple. Raises UserError where there are none.
    """
    tensors = named_tensors(output)
    logits = tensors.get(conventional_key(output) if key is None else key)
    if logits is None:
        raise UserError(
            f"{name}: the model returns a {type(output).__name__} without logits; it must return an N×K tensor, a "
            "tuple that begins with it, or an object or dict that names it 'logits'",
            slug="no-logits",
        )
    matrix = _as_matrix(logits, images)
    if matrix is None:
        raise UserError(
            f"{name}: the model returns a tensor of shape {tuple(logits.shape)}; a classifier must return "
            "logits of shape N×K, one row per image and one column per class",
            slug="logits-shape",
        )
    return matrix


def logit_candidates(output: object, images: int) -> tuple[str, ...]:
    """Keys of all tensors that can be logits of so many images, the conventional one first; none for a lone tensor."""
    if isinstance(output, Tensor):
        return ()
    keys = [key for key, tensor in named_tensors(output).items() if _is_candidate(tensor, images)]
    first = conventional_key(output)
    return tuple(sorted(keys, key=lambda key: key != first))


def named_tensors(output: object, depth: int = 0) -> dict[str, Tensor]:
    """All tensors with their paths, such as `1`, `logits` or `heads.0`; a lone tensor is called ``""``."""
    if isinstance(output, Tensor):
        return {"": output}
    found: dict[str, Tensor] = {}
    for key, part in _parts(output).items() if depth < _DEEPEST else ():
        for path, tensor in named_tensors(part, depth + 1).items():
            found[f"{key}.{path}" if path else key] = tensor
            if len(found) >= _MOST_TENSORS:
                return found
    return found


def conventional_key(output: object) -> str:
    """The path at which the logits are by convention, whether or not a tensor is there."""
    if isinstance(output, Tensor):
        return ""
    parts = _parts(output)
    if isinstance(output, Mapping):
        return next((name for name in _NAMES if name in parts), "")
    key = LOGITS if LOGITS in parts else next(iter(parts), "")
    nested = parts.get(key)
    # Only an object that names its logits may hold them in a tuple of their own.
    return f"{key}.0" if key == LOGITS and isinstance(nested, (tuple, list)) else key


def _parts(output: object) -> dict[str, object]:
    if isinstance(output, Mapping):
        return {str(key): part for key, part in output.items()}
    if isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", None) or range(len(output))
        return {str(name): part for name, part in zip(names, output, strict=False)}
    parts = dict(getattr(output, "__dict__", {}))
    if hasattr(output, LOGITS):
        parts[LOGITS] = getattr(output, LOGITS)
    return parts


def _as_matrix(tensor: Tensor, images: int) -> Tensor | None:
    if tensor.ndim > 2 and tensor[0, 0].numel() == 1:
        tensor = tensor.flatten(1)
    if tensor.ndim == 1 and len(tensor) == images:
        tensor = tensor[:, None]
    return tensor if tensor.ndim == 2 else None


def _is_candidate(tensor: Tensor, images: int) -> bool:
    if not tensor.is_floating_point() or 0 in tensor.shape:
        return False
    matrix = _as_matrix(tensor, images)
    return matrix is not None and len(matrix) == images
