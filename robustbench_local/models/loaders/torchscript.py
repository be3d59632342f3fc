"""TorchScript programs, their code checked before torch reads them."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from pathlib import Path

import torch

from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import open_archive, quoted, reason
from robustbench_local.models.loaders.checkpoint_file import check_file
from robustbench_local.models.loaders.loaded_model import LoadedModel
from robustbench_local.models.loaders.tensors import require_backed

# TorchScript runs in an interpreter of its own, which can also read and write files and call other machines.
_ESCAPES = re.compile(r"\b(save|load|from_file|write_file|read_file|rpc_\w+|remote|PythonOp|IgnoredPythonOp)\b")
_NAMESPACES = ("aten", "prim", "prims", "quantized", "torchvision")
_OTHER_NAMESPACE = re.compile(rf"(?<![\w.])ops\s*\.\s*(?!(?:{'|'.join(_NAMESPACES)})\b)(\w+)")
# As torch writes it for modules whose names are no identifiers; in another form it could spell out a hidden name.
_PLAIN_GETATTR = re.compile(r"getattr\([\w.]+, \"[^\"\\]*\"\)")


def load_torchscript(path: Path) -> LoadedModel:
    """A TorchScript archive.

    It holds TorchScript's own code, no pickled Python. torch reads it only if that code does nothing but compute.
    Raises UserError for a damaged file, and for code that can reach files or other machines.
    """
    check_file(path)
    checked = _checked_script(path)
    try:
        with warnings.catch_warnings():
            # torch recommends torch.export to whoever writes such files; this only reads them.
            warnings.simplefilter("ignore")
            module = torch.jit.load(checked, map_location="cpu")
        require_backed(module.state_dict(), str(path))
        return LoadedModel(module)
    except UserError:
        raise
    except Exception as error:  # the deserializer raises any type for a damaged field
        raise UserError(
            f"{path} cannot be read as TorchScript ({reason(error)}); save it again with the torch "
            "that made it, or give its weights as a state dict with --arch",
            slug="torchscript-unreadable",
        ) from None


def _checked_script(path: Path) -> io.BytesIO:
    """A copy of the archive, its code checked: torch's own reader could be made to see other parts in the file."""
    copy = io.BytesIO()
    try:
        with open_archive(path) as archive, zipfile.ZipFile(copy, "w") as checked:
            if len({name.partition("/")[0] for name in archive.namelist()}) != 1:
                raise UserError(
                    f"{path} has several directories at its top level, which no TorchScript program has; get it again",
                    slug="torchscript-unreadable",
                )
            for name in archive.namelist():
                content = archive.read(name)
                if not name.endswith(".debug_pkl") and "/code/" in name:
                    _check_code(path, name, content.decode())
                checked.writestr(name, content)
    except UserError:
        raise
    except Exception as error:  # the library raises many types for damaged archives
        raise UserError(f"{path} is damaged ({reason(error)}); get it again", slug="archive-damaged") from None
    copy.seek(0)
    return copy


def _check_code(path: Path, name: str, code: str) -> None:
    match = _ESCAPES.search(code) or _OTHER_NAMESPACE.search(code)
    plain = code
    while match is None and "getattr" in plain:
        shorter = _PLAIN_GETATTR.sub("_", plain)
        if shorter == plain:
            match = re.search("getattr.{,40}", plain)
        plain = shorter
    if match is not None:
        raise UserError(
            f"{path} was not loaded: its code ({quoted(name)}) has {quoted(match.group())}, which can "
            "reach beyond computing, to files or other machines; save the model again without it, or give "
            "its weights as a state dict with --arch",
            slug="torchscript-code-refused",
        )
