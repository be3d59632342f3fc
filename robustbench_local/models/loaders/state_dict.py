"""Matching a checkpoint's keys to a module's: which of its tensors are the network's weights, under which names.

The rule: a key of the file fits when every weight of the module is found under it with its shape. Candidates with equal
tensors are copies of each other, and the first is used. Different candidates are never chosen between: the user names
one with `--checkpoint-key`, averaged weights (EMA, SWA) against raw ones included. Whatever else is in the file is no
reason to refuse it, unless it is under the network's own key and cannot be explained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import quoted
from robustbench_local.models.loaders.checkpoint import TOP_LEVEL, Checkpoint, TensorMapping, join_key
from robustbench_local.models.loaders.mismatch import mismatch_message
from robustbench_local.models.loaders.stored_normalization import stored_normalizations
from robustbench_local.models.loaders.tensors import (
    MOST_CLASSES,
    Shapes,
    State,
    refuse_non_finite,
    require_plain,
    shapes_of,
)
from robustbench_local.models.normalization import Normalization

COUNTERS = ("n_averaged", "num_updates", "updates", "decay", "initted", "step", "epoch")
METRICS = ("loss", "criterion", "metric", "accuracy", "acc", "auroc", "f1", "confmat")
AVERAGED = ("ema", "swa", "averag")
OPTIONAL = "num_batches_tracked"  # older torch wrote none, and nothing reads it in eval mode


@dataclass(frozen=True)
class Match:
    """Tensors of one mapping under a module's names.

    state: everything under one prefix of the mapping's names; names that the module lacks are kept. prefix: that
    prefix, dropped. added: a prefix of all the module's names that the file's names lack. names: what the used tensors
    are called in the mapping. score: how many names agree, those with equal shapes counted twice. complete: every
    weight of the module is there with its shape.
    """

    mapping: TensorMapping
    state: State
    prefix: str = ""
    added: str = ""
    names: frozenset[str] = frozenset()
    score: int = 0
    complete: bool = False

    @property
    def key(self) -> str:
        """Where the weights are in the file; "" at the top level."""
        return join_key(self.mapping.key, self.prefix)


@dataclass(frozen=True)
class LoadedWeights:
    """What `load_weights` did: the key that it used, the normalizations stored in the file, and notes for the user."""

    key: str
    normalizations: list[Normalization]
    notes: list[str]


def match_state_dict(checkpoint: Checkpoint, shapes: Shapes, key: str | None = None) -> Match:
    """The weights for a module of these shapes; where none fit completely, those that fit best.

    key: where in the file to look, as `--checkpoint-key` names it. Raises UserError where the file has no such key, and
    where several different candidates fit.
    """
    matches = list(_matches(checkpoint.under(key), shapes))
    complete = [match for match in matches if match.complete]
    if exact := [match for match in complete if (match.key or TOP_LEVEL) == key]:
        complete = exact
    for match in complete:
        require_plain(match.mapping.state, checkpoint.source)
    different = _different(complete, shapes)
    if len(different) > 1:
        raise UserError(_ambiguous(checkpoint.source, different), slug="ambiguous-checkpoint")
    if different:
        return different[0]
    return max(matches, key=lambda match: (match.score, -len(match.key)))


def load_weights(module: nn.Module, checkpoint: Checkpoint, key: str | None = None) -> LoadedWeights:
    """Load the checkpoint's weights into the module.

    Raises UserError that lists every name and shape that does not fit, each beside its nearest name, and for weights
    that are not finite. Nothing is loaded then.
    """
    source, shapes = checkpoint.source, shapes_of(module)
    match = match_state_dict(checkpoint, shapes, key)
    if match.mapping.foreign is not None:
        name, kind = match.mapping.foreign
        raise UserError(
            f"{source}: {quoted(join_key(match.mapping.key, name))} is a {kind} among the weights, where tensors "
            "belong; save model.state_dict() alone",
            slug="foreign-entry-among-weights",
        )
    require_plain(match.mapping.state, source)
    normalization_names, normalizations = stored_normalizations(match.mapping.state, match.names)
    spare = _Spare(match, shapes, normalization_names, _other_candidates(match, shapes))
    state = {name: value for name, value in match.state.items() if name in shapes or not spare.kind(name)}
    if not match.complete or any(name not in shapes for name in state):
        raise UserError(mismatch_message(state, shapes, source, type(module).__name__), slug="checkpoint-does-not-fit")
    refuse_non_finite(state.items(), source)
    rest = {name: value for name, value in module.state_dict().items() if name not in state}
    module.load_state_dict({**rest, **state}, strict=True)
    where = f"key {quoted(match.key)}" if match.key else "top level"
    notes = [f"weights: {source}, {where}"]
    if ignored := spare.summary():
        notes.append(f"{source}: ignored beside the network: {ignored}")
    return LoadedWeights(match.key, normalizations, notes)


def infer_size(
    checkpoint: Checkpoint, build: Callable[[int], nn.Module], sizes: tuple[int, int], key: str | None = None
) -> int | None:
    """The argument of `build` that gives a weight the shape that it has in the file; None when no weight shows it.

    The networks for two `sizes` are compared, without allocating them: the dimensions in which they differ are those
    that the argument sets. Raises UserError for more than 100,000.
    """
    try:
        with torch.device("meta"):
            one, other = shapes_of(build(sizes[0])), shapes_of(build(sizes[1]))
    except (RuntimeError, NotImplementedError):  # some constructors compute with the tensors that they make
        one, other = shapes_of(build(sizes[0])), shapes_of(build(sizes[1]))
    state = best_match(checkpoint, one, key).state
    for name, shape in one.items():
        if name in state and state[name].ndim == len(shape):
            for i, pair in enumerate(zip(shape, other.get(name, shape), strict=False)):
                if pair == sizes:
                    return _sensible(state[name].shape[i], name)
    return None


def best_match(checkpoint: Checkpoint, shapes: Shapes, key: str | None = None) -> Match:
    """The weights that fit these shapes best, whether or not others fit as well: for reading sizes off them."""
    return max(_matches(checkpoint.under(key), shapes), key=lambda match: (match.complete, match.score))


def _matches(checkpoint: Checkpoint, shapes: Shapes) -> Iterator[Match]:
    """Every place in the file where some of the names are found, in the file's order, short keys first."""
    for mapping in checkpoint.mappings:
        used: set[frozenset[str]] = set()
        matches = [match for added in _wrappers(shapes) for match in _matches_in(mapping, shapes, added)]
        for match in matches:
            if match.names not in used:
                used.add(match.names)
                yield match
        if not matches:
            yield Match(mapping, mapping.state)


def _matches_in(mapping: TensorMapping, shapes: Shapes, added: str) -> Iterator[Match]:
    """The matches of one mapping, whose names lack the prefix `added` that all of the module's have."""
    targets = {name.removeprefix(added): shape for name, shape in shapes.items()}
    scores: Counter[str] = Counter()
    for name, value in mapping.state.items():
        for start in (0, *(i + 1 for i, character in enumerate(name) if character == ".")):
            if name[start:] in targets:
                scores[name[:start]] += 1 + (tuple(value.shape) == targets[name[start:]])
    for prefix, score in sorted(scores.items(), key=lambda item: len(item[0])):
        inside = {name[len(prefix) :]: value for name, value in mapping.state.items() if name.startswith(prefix)}
        complete = all(
            name.endswith(OPTIONAL) or (name in inside and tuple(inside[name].shape) == shape)
            for name, shape in targets.items()
        )
        names = frozenset(prefix + name for name in inside if name in targets)
        state = {added + name: value for name, value in inside.items()}
        yield Match(mapping, state, prefix, added, names, score, complete)


def _wrappers(shapes: Shapes) -> Iterator[str]:
    """Prefixes that all names share, short ones first: "", `model.`, `model.net.`. A file may lack them."""
    added = ""
    while True:
        yield added
        first = {name.removeprefix(added).partition(".")[::2] for name in shapes}
        if len({part for part, _ in first}) != 1 or not all(rest for _, rest in first):
            return
        added += next(iter(first))[0] + "."


def _different(matches: list[Match], shapes: Shapes) -> list[Match]:
    """One match of each set of equal tensors, the first."""
    different: list[Match] = []
    for match in matches:
        if not any(_equal(match, other, shapes) for other in different):
            different.append(match)
    return different


def _equal(one: Match, other: Match, shapes: Shapes) -> bool:
    return all(torch.equal(one.state[name], other.state[name]) for name in shapes if not name.endswith(OPTIONAL))


def _other_candidates(match: Match, shapes: Shapes) -> set[str]:
    """Names in the same mapping that are weights of other candidates, which fit as well."""
    alone = Checkpoint("", [match.mapping])
    return {name for other in _matches(alone, shapes) if other.complete for name in other.names} - match.names


def _ambiguous(source: str, matches: list[Match]) -> str:
    keys = [match.key or TOP_LEVEL for match in matches]
    averaged = [any(word in key.lower() for word in AVERAGED) for key in keys]
    listed = ", ".join(quoted(key) + " (averaged)" * flag for key, flag in zip(keys, averaged, strict=True))
    hint = "; published numbers usually refer to the averaged weights" if any(averaged) else ""
    return (
        f"{source} holds {len(keys)} different sets of weights that fit the model: {listed}. Choose one with "
        f"--checkpoint-key KEY, such as --checkpoint-key {quoted(keys[0])}{hint}"
    )


class _Spare:
    """Entries of a mapping that are no weights of the network, and why."""

    def __init__(self, match: Match, shapes: Shapes, normalization: set[str], others: set[str]) -> None:
        self.match, self.shapes, self.normalization, self.others = match, shapes, normalization, others

    def kind(self, name: str) -> str | None:
        """Why an entry under the network's own prefix is no weight of it; None where it cannot be explained.

        name: as the module would call it.
        """
        return self._kind(self.match.prefix + name.removeprefix(self.match.added))

    def _kind(self, full: str) -> str | None:
        """The same by the entry's name in the mapping."""
        value, parts = self.match.mapping.state[full], full.lower().split(".")
        if full in self.normalization:
            return "normalization"
        if parts[-1] in COUNTERS and value.numel() == 1:
            return "counters"
        if self._is_copy(full, value):
            return "copies"
        if full in self.others:
            return "other weights that fit"
        if any(part in METRICS or part.endswith(("_loss", "_metric", "_acc")) for part in parts):
            return "losses and metrics"
        return None if full.startswith(self.match.prefix) else "others"

    def summary(self) -> str:
        """What is ignored, by kind, with the first parts of the names."""
        *_, shared = _wrappers(dict.fromkeys(self.match.mapping.state, ()))
        kinds: dict[str, dict[str, None]] = {}
        for full in self.match.mapping.state:
            kind = None if full in self.match.names else self._kind(full)
            if kind not in (None, "counters", "normalization"):
                first = full.removeprefix(shared).partition(".")[0]
                kinds.setdefault(str(kind), {})[first] = None
        return "; ".join(f"{kind} ({_first_of(list(names))})" for kind, names in kinds.items())

    def _is_copy(self, full: str, value: Tensor) -> bool:
        """Whether it is one of the network's tensors again, under another prefix."""
        tail = full
        while "." in tail:
            tail = tail.partition(".")[2]
            weight = self.match.state.get(self.match.added + tail)
            if self.match.added + tail in self.shapes and weight is not None and weight.shape == value.shape:
                return torch.equal(weight, value)
        return False


def _first_of(names: list[str]) -> str:
    return ", ".join(map(quoted, names[:3])) + (", …" if len(names) > 3 else "")


def _sensible(size: int, name: str) -> int:
    if not 1 <= size <= MOST_CLASSES:
        raise UserError(
            f"the checkpoint's {quoted(name)} would make a network of {size:,} classes or channels, but 1 to "
            f"{MOST_CLASSES:,} are allowed: give another checkpoint",
            slug="checkpoint-size",
        )
    return size
