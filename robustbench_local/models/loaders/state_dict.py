"""Finding the weights among what a checkpoint holds, and fitting their names to a module."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import printable, quoted

State = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.", "backbone.", "ema.", "state_dict.", "base_model.")
NO_WEIGHTS = ("optim", "scheduler", "scaler", "grad", "history", "rng", "loss", "metric")
COUNTERS = ("n_averaged", "num_updates", "updates", "decay", "initted", "step", "epoch")
SHOWN = 10
DEPTH = 5
# A file may say that a tensor has more values than it holds, by reading one again and again (a stride of 0). Small
# ones, such as a broadcast mean, are no harm.
MOST_UNBACKED = 64 * 2**20
MOST_CLASSES = 100_000
LONGEST_NAME = 1_000

# A checkpoint of a model that normalises for itself holds the values under one of these pairs.
SCALINGS = (
    ("mean", "std"),
    ("mu", "sigma"),
    ("normalize.mean", "normalize.std"),
    ("normalizer.mean", "normalizer.std"),
    ("normalizer.new_mean", "normalizer.new_std"),
)


def choose_state_dict(content: Any, module: nn.Module | None, source: str) -> State:
    """The weights in what a file held, by the rule that `read_state_dict` states.

    Raises UserError when there are none, or when something that is not a tensor stands among them.
    """
    found = list(_candidates(content, ()))
    if not found:
        raise UserError(
            f"{source} holds no weights, but {_described(content)}; give a file with a state dict, as "
            "torch.save(model.state_dict(), FILE) writes"
        )
    shapes = None if module is None else shapes_of(module)

    def rank(item: tuple[int, tuple[tuple[str, ...], State]]) -> tuple[int, bool, int, int]:
        order, (where, state) = item
        fitting = len(state) if shapes is None else match_score(align(state, shapes), shapes)
        return -fitting, any("ema" in key.lower() or "averag" in key.lower() for key in where), len(where), order

    where, state = min(enumerate(found), key=rank)[1]
    _require_plain(state, source)
    inside = _at(content, where)
    for key, value in inside.items():
        if not isinstance(value, (Tensor, int, float, str, bool, Mapping, list, tuple, type(None))):
            raise UserError(
                f"{source}: {quoted('.'.join((*where, str(key))))} is a {type(value).__name__} among the "
                "weights, where tensors belong; save model.state_dict() alone"
            )
    if shapes is not None:
        return align(state, shapes)
    while prefix := _shared_prefix(state):
        state = _without(state, prefix) or state
    return state


def _require_plain(state: State, source: str) -> None:
    """Refuse tensors that are no plain numbers in memory, and such as claim far more values than the file holds."""
    for key, value in state.items():
        if len(key) > LONGEST_NAME:
            raise UserError(
                f"{source}: a tensor's name has {len(key):,} characters ({quoted(key)}), but no more than "
                f"{LONGEST_NAME:,} make sense; get the file again from where you trust it"
            )
        if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
            raise UserError(
                f"{source}: {quoted(key)} is a tensor of another kind ({value.layout}, {value.dtype}, "
                f"{value.device}) than the plain ones that weights are; save model.state_dict() of the "
                "float model"
            )
    require_backed(state, source)


def require_backed(state: State, source: str) -> None:
    """Raise UserError for tensors that claim far more values than there are in memory."""
    unbacked = 0
    for key, value in state.items():
        unbacked += max(0, value.numel() * value.element_size() - value.untyped_storage().nbytes())
        if unbacked > MOST_UNBACKED:
            raise UserError(
                f"{source}: {quoted(key)} claims {value.numel():,} values ({_shape(value.shape)}), far "
                "more than the file holds; get it again from where you trust it"
            )


def _candidates(
    value: Any, where: tuple[str, ...], seen: set[int] | None = None
) -> Iterator[tuple[tuple[str, ...], State]]:
    """Every mapping of names to tensors, with the keys that lead to it; one that stands at several places, once."""
    seen = set() if seen is None else seen
    if isinstance(value, Mapping) and len(where) <= DEPTH and id(value) not in seen:
        seen.add(id(value))
        tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
        # A mapping of scalars alone is a log, not a network.
        if any(tensor.ndim for tensor in tensors.values()):
            yield where, tensors
        for key, item in value.items():
            if isinstance(key, str) and not any(word in key.lower() for word in NO_WEIGHTS):
                yield from _candidates(item, (*where, key), seen)


def _at(content: Any, where: tuple[str, ...]) -> Any:
    for key in where:
        content = content[key]
    return content


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = [quoted(key) for key in content]
        return f"a dict of {', '.join(keys[:6])}{', …' if len(keys) > 6 else ''}" if keys else "an empty dict"
    return f"a {type(content).__name__}"


def shapes_of(module: nn.Module) -> Shapes:
    """Name -> shape of every weight and buffer that a checkpoint of the module holds."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items() if isinstance(value, Tensor)}


def align(state: State, shapes: Shapes) -> State:
    """The state under those names that fit best: prefixes dropped or put on, as few as do it."""
    best, stripped, seen = state, state, 0
    score = match_score(state, shapes)
    for _ in range(DEPTH):
        for variant in (stripped, *(_with(stripped, prefix) for prefix in PREFIXES[:4])):
            if (fit := match_score(variant, shapes)) > score:
                best, score = variant, fit
        prefix = _common_prefix(stripped)
        shorter = _without(stripped, prefix) if prefix else None
        if shorter is None or seen > DEPTH:
            break
        stripped, seen = shorter, seen + 1
    return best


def match_score(state: State, shapes: Shapes) -> int:
    """Number of names that agree, those whose shapes agree counted twice."""
    return sum(1 + (tuple(value.shape) == shapes[key]) for key, value in state.items() if key in shapes)


def _shared_prefix(state: State) -> str | None:
    """A known prefix that every name has; counters, which stand beside the weights, do not matter."""
    names = [key for key in state if not _is_counter(key)]
    return next((prefix for prefix in PREFIXES if names and all(key.startswith(prefix) for key in names)), None)


def _common_prefix(state: State) -> str | None:
    """The known prefix that most names have, or the first part of the name when all share it."""
    counts = {prefix: sum(key.startswith(prefix) for key in state) for prefix in PREFIXES}
    prefix = max(counts, key=lambda item: counts[item])
    if counts[prefix]:
        return prefix
    parts = {key.partition(".")[0] for key in state if not _is_counter(key)}
    return f"{parts.pop()}." if len(parts) == 1 and any("." in key for key in state) else None


def _without(state: State, prefix: str) -> State | None:
    """The prefix dropped where it stands; None when two names would become one."""
    names = {key: key.removeprefix(prefix) for key in state}
    if len(set(names.values())) < len(names):
        return None
    return {names[key]: value for key, value in state.items()}


def _with(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] in COUNTERS


def extract_normalization(state: State, shapes: Shapes) -> tuple[State, tuple[list[float], list[float]] | None]:
    """The state without the normalisation that a wrapper stored in it, and that normalisation as (mean, std)."""
    for mean, std in SCALINGS:
        if mean in state and std in state and mean not in shapes and std not in shapes:
            pair = (state[mean].flatten().tolist(), state[std].flatten().tolist())
            if 0 < len(pair[0]) <= 4 and len(pair[0]) == len(pair[1]):
                return {key: value for key, value in state.items() if key not in (mean, std)}, pair
    return state, None


def infer_size(state: State, build: Callable[[int], nn.Module], first: int, second: int) -> int | None:
    """The argument of `build` that gives a weight the shape it has in the state; None when no weight tells.

    The networks for two arguments are compared, without allocating them: whatever differs is what the argument sets.
    """
    try:
        with torch.device("meta"):
            one, other = shapes_of(build(first)), shapes_of(build(second))
    except (RuntimeError, NotImplementedError):  # some constructors compute with the tensors that they make
        one, other = shapes_of(build(first)), shapes_of(build(second))
    state = align(state, one)
    for key, shape in one.items():
        if key in state and state[key].ndim == len(shape):
            for i, (a, b) in enumerate(zip(shape, other.get(key, shape), strict=False)):
                if (a, b) == (first, second):
                    return _sensible(state[key].shape[i], key)
    return None


def _sensible(size: int, key: str) -> int:
    if not 1 <= size <= MOST_CLASSES:
        raise UserError(
            f"the checkpoint's {quoted(key)} would make a network of {size:,} classes or channels; from 1 "
            f"to {MOST_CLASSES:,} make sense: give another checkpoint"
        )
    return size


def load_into(module: nn.Module, state: State, source: str) -> None:
    """Load the weights, every name and every shape accounted for.

    Counters of weight averaging, second copies of a tensor, and a missing `num_batches_tracked` (older torch wrote
    none; nothing reads it in eval mode) are no mismatch. Raises UserError that lists all others, each beside its
    nearest name and both shapes, and for weights that are not finite.
    """
    shapes = shapes_of(module)
    state = align(state, shapes)
    state = {key: value for key, value in state.items() if key in shapes or not _is_spare(key, value, state, shapes)}
    missing = [key for key in shapes if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in shapes]
    resized = [key for key in shapes if key in state and tuple(state[key].shape) != shapes[key]]
    if missing or extra or resized:
        raise UserError(_mismatch(state, shapes, missing, extra, resized, source, type(module).__name__))
    refuse_non_finite(state.items(), source)
    rest = {key: value for key, value in module.state_dict().items() if key not in state}
    module.load_state_dict({**rest, **state}, strict=True)


def _is_spare(key: str, value: Tensor, state: State, shapes: Shapes) -> bool:
    """Whether a name the module does not know is a counter, or the same tensor again under a longer name."""
    if _is_counter(key) and value.numel() == 1:
        return True
    tail = key
    while "." in tail:
        tail = tail.partition(".")[2]
        if tail in shapes and tail in state and state[tail].shape == value.shape:
            return torch.equal(state[tail], value)
    return False


def _mismatch(
    state: State, shapes: Shapes, missing: list[str], extra: list[str], resized: list[str], source: str, module: str
) -> str:
    """One message for every difference between file and model."""
    lines = [
        f"{key!r} is {_shape(state[key].shape)} in the file, {_shape(shapes[key])} in the model"
        for key in resized[:SHOWN]
    ]
    for key in missing[:SHOWN]:
        near = _near(key, extra)
        beside = f"; nearest in the file: {near!r} {_shape(state[near].shape)}" if near else ""
        lines.append(f"{key!r} {_shape(shapes[key])} is missing{beside}")
    for key in extra[:SHOWN]:
        near = _near(key, missing or shapes)
        beside = f"; nearest in the model: {near!r} {_shape(shapes[near])}" if near else ""
        lines.append(f"{key!r} {_shape(state[key].shape)} is not in the model{beside}")
    total = len(missing) + len(extra) + len(resized)
    shown = lines[:SHOWN]
    more = [f"… and {total - len(shown)} more"] if total > len(shown) else []
    text = "\n".join(
        [
            f"{source} does not fit the model ({module}): {total} of {len(state)} names or shapes differ; "
            "name the architecture that the file was made with (--arch):",
            *(f"  {line}" for line in shown + more),
        ]
    )
    return printable(text)


def _near(key: str, others: Iterable[str]) -> str | None:
    found = difflib.get_close_matches(key, list(others), n=1, cutoff=0.4)
    return found[0] if found else None


def _shape(shape: Iterable[int]) -> str:
    return "×".join(str(size) for size in shape) or "a scalar"


def refuse_non_finite(tensors: Iterable[tuple[str, Tensor]], source: str) -> None:
    """Raise UserError that names the first tensor with a value that is not finite.

    Minus infinity alone is allowed: attention masks are stored with it.
    """
    for key, value in tensors:
        if not value.is_floating_point() or value.is_meta:
            continue
        wide = value.float() if value.element_size() == 1 else value  # floats of 8 bits know no comparisons
        if not torch.isfinite(wide).all():
            bad = ~torch.isfinite(wide) if "mask" not in key else wide.isnan()
            if bad.any():
                raise UserError(
                    f"{source}: {int(bad.sum())} of {value.numel()} values of {quoted(key)} are not finite "
                    "(NaN or infinite): the training diverged or the file is damaged; give another "
                    "checkpoint"
                )
