"""The message that explains how a checkpoint differs from a module."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from robustbench_local.io.safe_read import printable
from robustbench_local.models.loaders.tensors import Shapes, State, shape_text

SHOWN = 10


def mismatch_message(state: State, shapes: Shapes, source: str, module: str) -> str:
    """Every name and shape that differs, ten of them written out, each beside its nearest name.

    state: the file's tensors. shapes: the module's. source, module: how the message names the two.
    """
    missing = [name for name in shapes if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in shapes]
    resized = [name for name in shapes if name in state and tuple(state[name].shape) != shapes[name]]
    lines = [
        f"{name!r} is {shape_text(state[name].shape)} in the file, {shape_text(shapes[name])} in the model"
        for name in resized[:SHOWN]
    ]
    for name in missing[:SHOWN]:
        near = _nearest(name, extra)
        beside = f"; nearest in the file: {near!r} {shape_text(state[near].shape)}" if near else ""
        lines.append(f"{name!r} {shape_text(shapes[name])} is missing{beside}")
    for name in extra[:SHOWN]:
        near = _nearest(name, missing or shapes)
        beside = f"; nearest in the model: {near!r} {shape_text(shapes[near])}" if near else ""
        lines.append(f"{name!r} {shape_text(state[name].shape)} is not in the model{beside}")
    names = len(shapes.keys() | state.keys())
    total = len(missing) + len(extra) + len(resized)
    shown = lines[:SHOWN]
    more = [f"… and {total - len(shown)} more"] if total > len(shown) else []
    text = "\n".join(
        [
            f"{source} does not fit the model ({module}): {total} of {names} names or shapes differ; "
            "name the architecture that the file was made with (--arch):",
            *(f"  {line}" for line in shown + more),
        ]
    )
    return printable(text)


def _nearest(name: str, others: Iterable[str]) -> str | None:
    matches = difflib.get_close_matches(name, list(others), n=1, cutoff=0.4)
    return matches[0] if matches else None
