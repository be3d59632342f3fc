"""Models that bring their own architecture: TorchScript and ONNX. (`exported.py` has `torch.export`.)"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import open_archive, quoted, reason, require_plain_file
from robustbench_local.models.loaders.checkpoint_file import check_file
from robustbench_local.models.loaders.loaded_model import LoadedModel
from robustbench_local.models.loaders.state_dict import require_backed

# TorchScript computes in an interpreter of its own, which can also write and read files and call other machines.
_ESCAPES = re.compile(r"\b(save|load|from_file|write_file|read_file|rpc_\w+|remote|PythonOp|IgnoredPythonOp)\b")
MOST_ONNX = 2**31
"""Bytes of an ONNX file: the format takes no more, larger weights lie beside it."""
_NAMESPACES = ("aten", "prim", "prims", "quantized", "torchvision")
_OTHER_NAMESPACE = re.compile(rf"(?<![\w.])ops\s*\.\s*(?!(?:{'|'.join(_NAMESPACES)})\b)(\w+)")
# As torch writes it for modules whose names are no identifiers; in another form it could spell out a hidden name.
_PLAIN_GETATTR = re.compile(r"getattr\([\w.]+, \"[^\"\\]*\"\)")


class FixedBatch(nn.Module):
    """A program that takes exactly `size` images at a time, made to take any number: the last part is filled up."""

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        self.module = module
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        rows = []
        for part in images.split(self.size):
            lacking = self.size - len(part)
            filled = torch.cat([part, part[-1:].expand(lacking, *part.shape[1:])]) if lacking else part
            rows.append(self.module(filled)[: len(part)])
        return torch.cat(rows)


def load_torchscript(path: Path) -> LoadedModel:
    """A TorchScript archive. It holds TorchScript's own code, no pickled Python, and is given to torch only when that
    code does nothing but compute.

    Raises UserError for a damaged file, and for code that reaches for files or other machines.
    """
    check_file(path)
    checked = _checked_script(path)
    try:
        with warnings.catch_warnings():
            # torch advises torch.export to whoever makes such files; here one only reads what others made.
            warnings.filterwarnings("ignore", message=r"`torch\.jit", category=FutureWarning)
            warnings.filterwarnings("ignore", message=r"`torch\.jit", category=DeprecationWarning)
            module = torch.jit.load(checked, map_location="cpu")
        require_backed(module.state_dict(), str(path))
        return LoadedModel(module)
    except UserError:
        raise
    except Exception as error:  # the deserialiser raises whatever a damaged field leads to
        raise UserError(
            f"{path} cannot be read as TorchScript ({reason(error)}); save it again with the torch "
            "that made it, or give its weights as a state dict with --arch"
        ) from None


def _checked_script(path: Path) -> io.BytesIO:
    """An archive of the parts of the file, its code looked through: torch's own reader could be made to see others."""
    copy = io.BytesIO()
    try:
        with open_archive(path) as archive, zipfile.ZipFile(copy, "w") as checked:
            if len({name.partition("/")[0] for name in archive.namelist()}) != 1:
                raise UserError(f"{path} has several folders at its top, as no TorchScript program has; get it again")
            for name in archive.namelist():
                content = archive.read(name)
                if not name.endswith(".debug_pkl") and "/code/" in name:
                    _check_code(path, name, content.decode())
                checked.writestr(name, content)
    except UserError:
        raise
    except Exception as error:  # of damaged archives the library raises many types
        raise UserError(f"{path} is damaged ({reason(error)}); get it again") from None
    copy.seek(0)
    return copy


def _check_code(path: Path, name: str, code: str) -> None:
    found = _ESCAPES.search(code) or _OTHER_NAMESPACE.search(code)
    plain = code
    while found is None and "getattr" in plain:
        shorter = _PLAIN_GETATTR.sub("_", plain)
        if shorter == plain:
            found = re.search("getattr.{,40}", plain)
        plain = shorter
    if found is not None:
        raise UserError(
            f"{path} was not loaded: its code ({quoted(name)}) has {quoted(found.group())}, which can "
            "reach beyond computing, to files or other machines; save the model again without it, or give "
            "its weights as a state dict with --arch"
        )


def load_onnx(path: Path) -> LoadedModel:
    """An ONNX graph, converted by onnx2torch; the input's shape is the graph's.

    Raises UserError without the extra, for a damaged file, an operator that onnx2torch does not know, or a graph that
    does not take one batch of images N×C×H×W.
    """
    check_file(path)
    require_plain_file(path, MOST_ONNX)
    try:
        import onnx
        import onnx2torch  # type: ignore[import-untyped]
    except ImportError:
        raise UserError(f"{path}: ONNX models need two packages more: pip install 'robustbench-local[onnx]'") from None
    try:
        model = onnx.load(str(path), load_external_data=False)
        inside = (tensor for function in model.functions for tensor in _tensors_of(function.node))
        for tensor in (*_tensors(model.graph), *inside):
            if onnx.external_data_helper.uses_external_data(tensor):
                _check_beside(path, {entry.key: entry.value for entry in tensor.external_data})
        onnx.load_external_data_for_model(model, str(path.parent))
        batch, shape = _onnx_input(model.graph, path)
    except UserError:
        raise
    except Exception as error:  # protobuf's own errors, and missing external data
        raise UserError(
            f"{path} cannot be read as ONNX ({reason(error)}): it is cut off or of another kind, or "
            "the file with its weights does not lie beside it"
        ) from None
    try:
        module = onnx2torch.convert(model)
    except Exception as error:  # a converter's long tail: unknown operators, attributes, shapes
        raise UserError(
            f"{path}: onnx2torch cannot convert this graph ({type(error).__name__}: {reason(error)}); "
            "export it with a lower opset, or give the model as path/file.py:FACTORY"
        ) from None
    if isinstance(batch, int) and batch > 0 and not _takes_any_batch(module, batch, shape):
        module = FixedBatch(module, batch)
    return LoadedModel(module, input_shape=shape)


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor that the graph holds, those of its nodes and of graphs inside them too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of(graph.node)


def _tensors_of(nodes: Any) -> Iterator[Any]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _check_beside(path: Path, external: dict[str, str]) -> None:
    """Weights in a file of their own lie in the model's folder, and there is as much of them as is claimed.

    Raises UserError where they do not.
    """
    location = external.get("location", "")
    beside = (path.parent / location).resolve()
    if path.parent.resolve() not in beside.parents or not beside.is_file():
        raise UserError(
            f"{path} was not loaded: it takes weights from {quoted(location)}, which is no plain file in "
            "its own folder; save the model again with its weights inside or beside it"
        )
    start, length = int(external.get("offset") or 0), int(external.get("length") or 0)
    if min(start, length) < 0 or start + length > beside.stat().st_size:
        raise UserError(f"{path} takes {length:,} bytes from {quoted(location)}, which has not so many; get both again")


def _onnx_input(graph: Any, path: Path) -> tuple[int | None, tuple[int, int, int] | None]:
    """(batch size or None when free, (C, H, W) or None when free) of the graph's one input."""
    weights = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in weights]
    if len(inputs) != 1:
        raise UserError(f"{path} takes {len(inputs)} inputs; a classifier takes one, a batch of images")
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in inputs[0].type.tensor_type.shape.dim]
    if len(dims) != 4:
        shown = "×".join(str(dim or "?") for dim in dims) or "a scalar"
        raise UserError(
            f"{path} takes an input of shape {shown}; a classifier takes images N×C×H×W. Wrap it in "
            "path/file.py:FACTORY with a module that reshapes"
        )
    batch, *rest = dims
    if rest[2] in (1, 3) and rest[0] not in (1, 3, 4, None):
        raise UserError(
            f"{path} takes images with the channels last (N×{'×'.join(map(str, rest))}); wrap it in "
            "path/file.py:FACTORY with a module that permutes them"
        )
    return batch or None, tuple(rest) if all(rest) else None  # type: ignore[return-value]


def _takes_any_batch(module: nn.Module, batch: int, shape: tuple[int, int, int] | None) -> bool:
    """Whether a graph that states a batch size computes every row on its own all the same."""
    if shape is None:
        return False
    images = torch.linspace(0, 1, (batch + 1) * shape[0] * shape[1] * shape[2]).view(batch + 1, *shape)
    try:
        with torch.no_grad():
            every, first = module.eval()(images), module(images[:batch])
        return every.shape[0] == batch + 1 and torch.allclose(every[:batch], first, rtol=1e-4, atol=1e-5)
    except Exception:  # whatever it stumbles over, it stumbles over another batch size
        return False
