"""`torch.export` programs (`.pt2`), looked through before torch reads them.

`torch.export.load` falls back to the full unpickler where the restricted one refuses, and evaluates the file's
symbolic shapes as Python. So the archive is checked first: only the parts that `torch.export.save` writes
for a program of plain tensors, every pickle readable by the restricted unpickler, every name and expression plain.
"""
from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustbench_local.errors import UserError
from robustbench_local.models.checkpoint import check_file
from robustbench_local.models.loaded import Loaded
from robustbench_local.models.programs import FixedBatch

_PARTS = re.compile(
    r"(models/model\.json|archive_format|archive_version|byteorder|version|\.data/[\w.]+|\.format_version"
    r"|data/weights/(weight_\d+|model_weights_config\.json|model\.pt)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json|model\.pt)"
    r"|data/sample_inputs/model\.pt|extra/[\w./-]+)"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
# The words of torch's symbolic shapes: symbols (s31, u0), sympy's constructors and torch's integer functions.
_WORDS = re.compile(
    r"[suz]\d+|Symbol|Integer|Rational|Add|Mul|Pow|Mod|Min|Max|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|FloorDiv|CleanDiv|CeilDiv"
    r"|PythonMod|ModularIndexing|CeilToInt|FloorToInt|TruncToInt|ToFloat|IntTrueDiv|positive|nonnegative|integer|True"
    r"|False|int_oo|oo|evaluate"
)


def load_exported(path: Path) -> Loaded:
    """The program as a module; a program that was exported for a fixed number of images takes any number.

    Raises UserError for a file that is damaged, too old, or holds more than a program of plain tensors.
    """
    check_file(path)
    _check_archive(path)
    try:
        # An open file, because by name torch reads `.pt2` only, and these come as `.pt` too.
        with path.open("rb") as file:
            program = torch.export.load(file)
        # Guards are source code in the file; what they would check, preflight finds out by itself.
        module: nn.Module = program.module(check_guards=False)
    except Exception as error:  # the deserialiser raises whatever a field of another version leads to
        raise UserError(f"{path} cannot be read by torch {torch.__version__} ({_first_line(error)}); export it again "
                        "with this version") from None
    batch, shape = _input(program, path)
    if batch is not None:
        module = FixedBatch(module, batch)
    return Loaded(module, input_shape=shape)


def _input(program: Any, path: Path) -> tuple[int | None, tuple[int, int, int] | None]:
    """(batch size or None when free, (C, H, W) or None when free) of the program's one input."""
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    values = [node.meta.get("val") for node in nodes]
    if len(values) != 1 or not isinstance(values[0], torch.Tensor) or values[0].ndim != 4:
        shapes = ", ".join("×".join(map(str, getattr(value, "shape", ()))) or "no tensor" for value in values) or "none"
        raise UserError(f"{path} takes {len(values)} inputs ({shapes}); a classifier takes one, a batch of images "
                        "N×C×H×W: export a module that does")
    batch, *rest = values[0].shape
    fixed = batch if isinstance(batch, int) else None
    return fixed, tuple(rest) if all(isinstance(size, int) for size in rest) else None  # type: ignore[return-value]


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not an exported program: it is cut off or of another kind; get it again")
    with zipfile.ZipFile(path) as archive:
        try:
            names = archive.namelist()
            roots = {name.partition("/")[0] for name in names}
            parts = {name.partition("/")[2]: name for name in names}
            if len(roots) != 1 or len(parts) != len(names) or "archive_format" not in parts:
                raise UserError(f"{path} is not a program as torch.export.save of torch 2.8 or newer writes it; export "
                                "it again with a newer torch")
            for part, name in parts.items():
                _check_part(path, part, archive.read(name) if not part.startswith("data/weights/weight_") else b"")
            _check_payloads(path, archive, parts)
        except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({_first_line(error)}); get it again") from None


def _check_part(path: Path, part: str, content: bytes) -> None:
    if part.startswith("data/aotinductor"):
        raise UserError(f"{path} holds compiled machine code (AOTInductor), which is not loaded: it could do anything, "
                        "and gives no gradients; save the program with torch.export.save instead")
    if not _PARTS.fullmatch(part):
        raise UserError(f"{path} holds {part!r}, which a program of plain tensors does not need; it was not loaded. "
                        "Export the model in eval mode with tensors only")
    if part.endswith(".pt") and content:
        _check_pickle(path, part, content)
    if part == "models/model.json":
        for key, text in _strings(json.loads(content), ""):
            _check_text(path, key, text)


def _check_payloads(path: Path, archive: zipfile.ZipFile, parts: dict[str, str]) -> None:
    """Weights are raw bytes or, where the file says so, pickles; the latter must be plain tensors too."""
    for kind in ("weights", "constants"):
        config = parts.get(f"data/{kind}/model_{kind}_config.json")
        for payload in json.loads(archive.read(config))["config"].values() if config else ():
            name = parts.get(f"data/{kind}/{payload['path_name']}")
            if payload.get("use_pickle") and name:
                _check_pickle(path, name, archive.read(name))


def _check_pickle(path: Path, part: str, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError, TypeError) as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a pickled {found.group(1)}" if found else "a pickle of more than plain tensors"
        raise UserError(f"{path} was not loaded: its part {part!r} holds {what}, and unpickling that could run any "
                        "code; export the model again with tensors as its only inputs and constants") from None


def _check_text(path: Path, key: str, text: str) -> None:
    """Refuse names and expressions that would be more than names and expressions once torch evaluates them."""
    if key == "expr_str":
        words = re.findall(r"[A-Za-z_]\w*", text)
        fine = bool(re.fullmatch(r"[\w\s()+\-*/%,<>=']*", text)) and all(_WORDS.fullmatch(word) for word in words)
    elif key == "name":
        fine = not text or bool(_NAME.fullmatch(text))
    else:
        return
    if not fine:
        raise UserError(f"{path} was not loaded: its {key} {text[:60]!r} is no plain name or expression; export the "
                        "model again")


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every string with the key it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for inner, item in value.items():
            yield from _strings(item, inner)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
