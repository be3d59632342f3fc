"""What a checkpoint file holds: every mapping of names to tensors in it, with the key that leads there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from robustbench_local.errors import UserError, nearest
from robustbench_local.io.safe_read import quoted
from robustbench_local.models.loaders.tensors import State, require_short_names

NO_WEIGHTS = ("optim", "scheduler", "scaler", "grad", "history", "rng", "loss", "metric")
DEPTH = 5
TOP_LEVEL = "."
"""How `--checkpoint-key` names the weights at the top level of a file."""


@dataclass(frozen=True)
class TensorMapping:
    """One mapping of names to tensors.

    key: the keys that lead to it, joined by dots; "" for the file itself. foreign: name and type of an entry that does
    not belong among weights, or None.
    """

    key: str
    state: State
    foreign: tuple[str, str] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The mappings of names to tensors in one file, outermost first. source: the file, for messages."""

    source: str
    mappings: list[TensorMapping] = field(default_factory=list)

    @classmethod
    def from_content(cls, content: object, source: str) -> Checkpoint:
        """What a file held. Raises UserError when there are no tensors in it."""
        mappings = list(_mappings(content, (), set()))
        if not mappings:
            raise UserError(
                f"{source} holds no weights, but {_described(content)}; give a file with a state dict, as "
                "torch.save(model.state_dict(), FILE) writes",
                slug="no-weights",
            )
        for mapping in mappings:
            require_short_names(mapping.state, source)
        return cls(source, mappings)

    def under(self, key: str | None) -> Checkpoint:
        """The part under a key: a mapping, what it contains, or the tensors whose names begin with the key.

        Raises UserError where the file has no such key.
        """
        if key in (None, TOP_LEVEL):
            return self
        assert key is not None
        mappings = [part for mapping in self.mappings if (part := _part(mapping, key)) is not None]
        if not mappings:
            keys = list(dict.fromkeys(self._keys()))
            shown = ", ".join(map(quoted, keys[:6])) + (", …" if len(keys) > 6 else "")
            raise UserError(
                f"{self.source} has no weights under --checkpoint-key {quoted(key)}; it has {shown}."
                f"{nearest(key, keys)}",
                slug="unknown-checkpoint-key",
            )
        return Checkpoint(self.source, mappings)

    def _keys(self) -> Iterator[str]:
        """Keys that may be named: those of mappings, and the first parts of the names in them."""
        for mapping in self.mappings:
            yield mapping.key or TOP_LEVEL
            for name in mapping.state:
                if "." in name:
                    yield join_key(mapping.key, name.partition(".")[0])


def join_key(*parts: str) -> str:
    """The parts joined by dots, empty ones left out."""
    return ".".join(part for part in (part.strip(".") for part in parts) if part)


def _part(mapping: TensorMapping, key: str) -> TensorMapping | None:
    if mapping.key == key or mapping.key.startswith(f"{key}."):
        return mapping
    inside = key.removeprefix(f"{mapping.key}." if mapping.key else "")
    if inside == key and mapping.key:
        return None
    state = {name.removeprefix(f"{inside}."): value for name, value in mapping.state.items() if _below(name, inside)}
    return TensorMapping(key, state, mapping.foreign) if state else None


def _below(name: str, key: str) -> bool:
    return name.startswith(f"{key}.")


def _mappings(value: object, where: tuple[str, ...], visited: set[int]) -> Iterator[TensorMapping]:
    """Every mapping of names to tensors; one that is referred to several times, once."""
    if not isinstance(value, Mapping) or len(where) > DEPTH or id(value) in visited:
        return
    visited.add(id(value))
    tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
    # A mapping of scalars alone is a log, not a network.
    if any(tensor.ndim for tensor in tensors.values()):
        yield TensorMapping(join_key(*where), tensors, _foreign(value))
    for key, item in value.items():
        if isinstance(key, str) and not any(word in key.lower() for word in NO_WEIGHTS):
            yield from _mappings(item, (*where, key), visited)


def _foreign(value: Mapping[object, object]) -> tuple[str, str] | None:
    plain = (Tensor, int, float, str, bool, Mapping, list, tuple, type(None))
    return next(((str(key), type(item).__name__) for key, item in value.items() if not isinstance(item, plain)), None)


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        keys = [quoted(key) for key in content]
        return f"a dict of {', '.join(keys[:6])}{', …' if len(keys) > 6 else ''}" if keys else "an empty dict"
    return f"a {type(content).__name__}"
