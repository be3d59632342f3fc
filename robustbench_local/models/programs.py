"""Models that bring their own architecture: TorchScript and ONNX. (`exported.py` has `torch.export`.)"""
from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_local.errors import UserError
from robustbench_local.models.checkpoint import check_file
from robustbench_local.models.loaded import Loaded


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


def load_torchscript(path: Path) -> Loaded:
    """A TorchScript archive. It holds TorchScript's own code, no pickled Python."""
    check_file(path)
    try:
        with warnings.catch_warnings():
            # torch advises torch.export to whoever makes such files; here one only reads what others made.
            warnings.filterwarnings("ignore", message=r"`torch\.jit", category=FutureWarning)
            warnings.filterwarnings("ignore", message=r"`torch\.jit", category=DeprecationWarning)
            return Loaded(torch.jit.load(str(path), map_location="cpu"))
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as TorchScript ({_first_line(error)}); save it again with the torch "
                        "that made it, or give its weights as a state dict with --arch") from None


def load_onnx(path: Path) -> Loaded:
    """An ONNX graph, converted by onnx2torch; the input's shape is the graph's.

    Raises UserError without the extra, for a damaged file, an operator that onnx2torch does not know, or a graph that
    does not take one batch of images N×C×H×W.
    """
    check_file(path)
    try:
        import onnx
        import onnx2torch  # type: ignore[import-untyped]
    except ImportError:
        raise UserError(f"{path}: ONNX models need two packages more: pip install 'robustbench-local[onnx]'") from None
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf's own errors, and missing external data
        raise UserError(f"{path} cannot be read as ONNX ({_first_line(error)}): it is cut off or of another kind, or "
                        "the file with its weights does not lie beside it") from None
    batch, shape = _onnx_input(graph, path)
    try:
        module = onnx2torch.convert(str(path))
    except Exception as error:  # a converter's long tail: unknown operators, attributes, shapes
        raise UserError(f"{path}: onnx2torch cannot convert this graph ({type(error).__name__}: {_first_line(error)}); "
                        "export it with a lower opset, or give the model as path/file.py:FACTORY") from None
    if isinstance(batch, int) and batch > 0 and not _takes_any_batch(module, batch, shape):
        module = FixedBatch(module, batch)
    return Loaded(module, input_shape=shape)


def _onnx_input(graph: Any, path: Path) -> tuple[int | None, tuple[int, int, int] | None]:
    """(batch size or None when free, (C, H, W) or None when free) of the graph's one input."""
    weights = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in weights]
    if len(inputs) != 1:
        raise UserError(f"{path} takes {len(inputs)} inputs; a classifier takes one, a batch of images")
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in inputs[0].type.tensor_type.shape.dim]
    if len(dims) != 4:
        shown = "×".join(str(dim or "?") for dim in dims) or "a scalar"
        raise UserError(f"{path} takes an input of shape {shown}; a classifier takes images N×C×H×W. Wrap it in "
                        "path/file.py:FACTORY with a module that reshapes")
    batch, *rest = dims
    if rest[2] in (1, 3) and rest[0] not in (1, 3, 4, None):
        raise UserError(f"{path} takes images with the channels last (N×{'×'.join(map(str, rest))}); wrap it in "
                        "path/file.py:FACTORY with a module that permutes them")
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(" This is an internal")[0]
