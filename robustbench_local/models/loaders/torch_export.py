"""`torch.export` programs (`.pt2`), checked before torch reads them.

`torch.export.load` falls back to the full unpickler where the restricted one refuses, evaluates the file's symbolic
shapes as Python, accepts any function under `torch` as an operator, and writes the names of weights into source code
that it then runs. So the archive is checked first: it may hold only the parts that `torch.export.save` writes for a
program of plain tensors, pickles that the restricted unpickler reads, operators that compute, and plain names and
expressions. torch then reads a copy of what was checked, because its own reader of archives could be made to see other
parts in the file.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import open_archive, quoted, reason
from robustbench_local.models.loaders.checkpoint_file import check_file
from robustbench_local.models.loaders.fixed_batch import FixedBatch
from robustbench_local.models.loaders.loaded_model import LoadedModel
from robustbench_local.models.loaders.tensors import require_backed

_PARTS = re.compile(
    r"(models/model\.json|archive_format|archive_version|byteorder|version|\.data/[\w.]+|\.format_version"
    r"|data/weights/(weight_\d+|model_weights_config\.json|model\.pt)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json|model\.pt)"
    r"|data/sample_inputs/model\.pt|extra/[\w./-]+)"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
# Names of weights and modules, which torch puts between quotes in source code: any words, but no quotes.
_WORDS_IN_CODE = re.compile(r"[\w .:,/<>\[\]+-]*")
# Shown to people, compared, or quoted by torch itself.
_UNCHECKED = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "as_string", "guards_code")
_SPECS = ("in_spec", "out_spec")
_TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|prim|torchvision|quantized|quantized_decomposed)\.(?!from_file|save|_?print)\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|associative_scan|wrap_with_set_grad_enabled"
    r"|wrap_with_autocast|tag_activation_checkpoint)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|invert|getitem"
    r"|lshift|rshift)"
    r"|math\.\w+|torch\.sym_\w+|torch\._sym_\w+"
)
# The words of torch's symbolic shapes: symbols (s31, u0), sympy's constructors and torch's integer functions.
_WORDS = re.compile(
    r"[suz]\d+|Symbol|Integer|Rational|Add|Mul|Pow|Mod|Min|Max|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|FloorDiv|CleanDiv|CeilDiv"
    r"|PythonMod|ModularIndexing|CeilToInt|FloorToInt|TruncToInt|ToFloat|IntTrueDiv|positive|nonnegative|integer|True"
    r"|False|int_oo|oo|evaluate"
)


def load_exported(path: Path) -> LoadedModel:
    """The program as a module; a program that was exported for a fixed number of images takes any number.

    Raises UserError for a file that is damaged, too old, or holds more than a program of plain tensors.
    """
    check_file(path)
    checked = _checked_copy(path)
    try:
        with _silent():
            program = torch.export.load(checked)
        # Guards are source code in the file; preflight checks what they would.
        module: nn.Module = program.module(check_guards=False)
    except Exception as error:  # the deserializer raises any type for fields of another version
        # After its first failure torch tries an older format, and fails with that.
        cause = error.__context__ or error
        raise UserError(
            f"{path} cannot be read by torch {torch.__version__} ({reason(cause)}); export it again with this version",
            slug="exported-program-unreadable",
        ) from None
    del checked
    require_backed(program.state_dict, str(path))
    batch, shape = _input(program, path)
    if batch is not None:
        module = FixedBatch(module, batch)
    return LoadedModel(module, input_shape=shape)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep torch from logging the traceback of what it cannot read; it also raises."""
    log = logging.getLogger("torch.export")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)


def _input(program: ExportedProgram, path: Path) -> tuple[int | None, tuple[int, int, int] | None]:
    """(batch size or None when free, (C, H, W) or None when free) of the program's one input."""
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    values = [node.meta.get("val") for node in nodes]
    if len(values) != 1 or not isinstance(values[0], torch.Tensor) or values[0].ndim != 4:
        shapes = ", ".join("×".join(map(str, getattr(value, "shape", ()))) or "no tensor" for value in values) or "none"
        raise UserError(
            f"{path} takes {len(values)} inputs ({shapes}); a classifier takes one, a batch of images "
            "N×C×H×W: export a module that does",
            slug="model-inputs",
        )
    batch, *rest = values[0].shape
    fixed = batch if isinstance(batch, int) else None
    return fixed, tuple(rest) if all(isinstance(size, int) for size in rest) else None  # type: ignore[return-value]


def _checked_copy(path: Path) -> io.BytesIO:
    """A copy of the archive in which every part was checked."""
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is not an exported program: it is truncated or of another kind; get it again",
            slug="not-an-exported-program",
        )
    copy = io.BytesIO()
    try:
        with open_archive(path) as archive, zipfile.ZipFile(copy, "w") as checked:
            names = archive.namelist()
            roots = {name.partition("/")[0] for name in names}
            parts = {name.partition("/")[2]: name for name in names}
            if len(roots) != 1 or len(parts) != len(names) or "archive_format" not in parts:
                raise UserError(
                    f"{path} is not a program as torch.export.save of torch 2.8 or newer writes it; export "
                    "it again with a newer torch",
                    slug="not-an-exported-program",
                )
            for part, name in parts.items():
                content = archive.read(name)
                _check_part(path, part, content)
                checked.writestr(name, content)
            _check_payloads(path, archive, parts)
    except UserError:
        raise
    except Exception as error:  # a damaged archive or description raises any type
        raise UserError(f"{path} is damaged ({reason(error)}); get it again", slug="archive-damaged") from None
    copy.seek(0)
    return copy


def _check_part(path: Path, part: str, content: bytes) -> None:
    if part.startswith("data/aotinductor"):
        raise UserError(
            f"{path} holds compiled machine code (AOTInductor), which is not loaded: it could do anything, "
            "and gives no gradients; save the program with torch.export.save instead",
            slug="exported-program-refused",
        )
    if not _PARTS.fullmatch(part):
        raise UserError(
            f"{path} holds {quoted(part)}, which a program of plain tensors does not need; it was not "
            "loaded. Export the model in eval mode with tensors only",
            slug="exported-program-refused",
        )
    if part.endswith(".pt") and content:
        _check_pickle(path, part, content)
    if part.endswith(".json"):
        for key, text in _strings(json.loads(content), ""):
            _check_text(path, key, text)


def _check_payloads(path: Path, archive: zipfile.ZipFile, parts: dict[str, str]) -> None:
    """Check the weights: raw bytes or, where the file says so, pickles, which must be plain tensors too.

    Empty weights are refused: torch would make as many zeros as the file claims.
    """
    for kind in ("weights", "constants"):
        config = parts.get(f"data/{kind}/model_{kind}_config.json")
        for payload in json.loads(archive.read(config))["config"].values() if config else ():
            name = parts.get(f"data/{kind}/{payload['path_name']}")
            sizes = (payload.get("tensor_meta") or {}).get("sizes", ())
            if name and not archive.getinfo(name).file_size and math.prod(size["as_int"] for size in sizes):
                raise UserError(
                    f"{path} was not loaded: its {quoted(name)} is empty; get it again", slug="archive-damaged"
                )
            if payload.get("use_pickle") and name:
                _check_pickle(path, name, archive.read(name))


def _check_pickle(path: Path, part: str, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler calls torch's constructors with whatever the file says
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a pickled {name.group(1)}" if name else "a pickle of more than plain tensors"
        raise UserError(
            f"{path} was not loaded: its part {quoted(part)} holds {what}, and unpickling that could run "
            "any code; export the model again with tensors as its only inputs and constants",
            slug="exported-program-refused",
        ) from None


def _check_text(path: Path, key: str, text: str) -> None:
    """Raise UserError for names and expressions that could run code when torch evaluates them."""
    if key == "expr_str":
        words = re.findall(r"[A-Za-z_]\w*", text)
        fine = bool(re.fullmatch(r"[\w\s()+\-*/%,<>=']*", text)) and all(_WORDS.fullmatch(word) for word in words)
    elif key == "name":
        fine = not text or bool(_NAME.fullmatch(text))
    elif key in ("target", "as_operator"):
        fine = bool(_OPERATOR.fullmatch(text))
    elif key in _SPECS:
        fine = all(kind in _TREES for kind in _tree_types(json.loads(text)))
    else:
        fine = key in _UNCHECKED or bool(_WORDS_IN_CODE.fullmatch(text))
    if not fine:
        raise UserError(
            f"{path} was not loaded: its {quoted(key)} {quoted(text)} is no plain name, operator or "
            "expression of torch; export the model again",
            slug="exported-program-refused",
        )


def _tree_types(spec: object) -> Iterator[object]:
    """The types of containers that a description of inputs or outputs names."""
    if isinstance(spec, dict):
        yield spec.get("type")
        yield from _tree_types(spec.get("children_spec"))
    elif isinstance(spec, list):
        for item in spec:
            yield from _tree_types(item)


def _strings(value: object, key: str) -> Iterator[tuple[str, str]]:
    """Every string with its key; keys themselves, which are names of tensors and modules, too."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for inner, item in value.items():
            yield "key", inner
            yield from _strings(item, inner)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
