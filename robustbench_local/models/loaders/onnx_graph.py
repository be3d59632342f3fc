"""ONNX graphs, converted to torch by onnx2torch and compared with onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import quoted, reason, require_plain_file
from robustbench_local.models.loaders.checkpoint_file import check_file
from robustbench_local.models.loaders.fixed_batch import FixedBatch
from robustbench_local.models.loaders.loaded_model import LoadedModel

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

MOST_ONNX = 2**31
"""Bytes of an ONNX file: the format allows no more, larger weights are in a file beside it."""
IMAGES = 4
"""Images on which the converted graph is compared with onnxruntime."""
TOLERANCE = 1e-3


def load_onnx(path: Path) -> LoadedModel:
    """An ONNX graph as a module; the input's shape is the graph's.

    Where onnxruntime is installed, the module's outputs are compared with its. Raises UserError without the `onnx`
    extra, for a damaged file, an operator that onnx2torch does not support, a graph that does not take one batch of
    images N×C×H×W, and a converted graph that computes something else.
    """
    check_file(path)
    require_plain_file(path, MOST_ONNX)
    try:
        import onnx2torch
    except ImportError:
        raise UserError(
            f"{path}: ONNX models need two more packages: pip install 'robustbench-local[onnx]'", slug="missing-extra"
        ) from None
    from robustbench_local.models.loaders.onnx_constants import fold_constants

    model = _read(path)
    batch, shape = _onnx_input(model.graph, path)
    try:
        fold_constants(model)
        module: nn.Module = onnx2torch.convert(model).eval()
    except Exception as error:  # a converter's long tail: unknown operators, attributes, shapes
        raise UserError(
            f"{path}: onnx2torch cannot convert this graph ({type(error).__name__}: {reason(error)}); "
            "export it with a lower opset, or give the model as path/file.py:FACTORY",
            slug="onnx-conversion",
        ) from None
    if batch is not None and not _takes_any_batch(module, batch, shape):
        module = FixedBatch(module, batch)
    if shape is not None:
        _require_same_outputs(path, module, (batch or IMAGES, *shape))
    return LoadedModel(module, input_shape=shape)


def _read(path: Path) -> ModelProto:
    """The file's graph, with the weights in files beside it."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
        inside = (tensor for function in model.functions for tensor in _tensors_of(function.node))
        for tensor in (*_tensors(model.graph), *inside):
            if onnx.external_data_helper.uses_external_data(tensor):
                _check_beside(path, {entry.key: entry.value for entry in tensor.external_data})
        onnx.load_external_data_for_model(model, str(path.parent))
    except UserError:
        raise
    except Exception as error:  # protobuf's own errors, and missing external data
        raise UserError(
            f"{path} cannot be read as ONNX ({reason(error)}): it is truncated or not an ONNX file, or "
            "the file with its weights is not beside it",
            slug="onnx-unreadable",
        ) from None
    return model


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor that the graph holds, those of its nodes and of graphs inside them too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of(graph.node)


def _tensors_of(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _check_beside(path: Path, external: dict[str, str]) -> None:
    """Raise UserError unless external weights are in the model's directory, and as long as claimed."""
    location = external.get("location", "")
    beside = (path.parent / location).resolve()
    if path.parent.resolve() not in beside.parents or not beside.is_file():
        raise UserError(
            f"{path} was not loaded: it takes weights from {quoted(location)}, which is no plain file in "
            "its own directory; save the model again with its weights inside or beside it",
            slug="onnx-external-weights",
        )
    start, length = int(external.get("offset") or 0), int(external.get("length") or 0)
    if min(start, length) < 0 or start + length > beside.stat().st_size:
        raise UserError(
            f"{path} takes {length:,} bytes from {quoted(location)}, which has fewer; get both files again",
            slug="onnx-external-weights",
        )


def _onnx_input(graph: GraphProto, path: Path) -> tuple[int | None, tuple[int, int, int] | None]:
    """(batch size or None when free, (C, H, W) or None when free) of the graph's one input."""
    weights = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in weights]
    if len(inputs) != 1:
        raise UserError(
            f"{path} takes {len(inputs)} inputs; a classifier takes one, a batch of images", slug="model-inputs"
        )
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in inputs[0].type.tensor_type.shape.dim]
    if len(dims) != 4:
        shown = "×".join(str(dim or "?") for dim in dims) or "a scalar"
        raise UserError(
            f"{path} takes an input of shape {shown}; a classifier takes images N×C×H×W. Wrap it in "
            "path/file.py:FACTORY with a module that reshapes",
            slug="model-input-shape",
        )
    batch, channels, height, width = (dim if dim is not None and dim > 0 else None for dim in dims)
    if width in (1, 3) and channels not in (1, 3, 4, None):
        raise UserError(
            f"{path} takes images with the channels last (N×{channels}×{height}×{width}); wrap it in "
            "path/file.py:FACTORY with a module that permutes them",
            slug="model-input-shape",
        )
    if channels is None or height is None or width is None:
        return batch, None
    return batch, (channels, height, width)


def _takes_any_batch(module: nn.Module, batch: int, shape: tuple[int, int, int] | None) -> bool:
    """Whether a graph that states a batch size computes every row on its own all the same."""
    if shape is None:
        return False
    images = _images((batch + 1, *shape))
    try:
        with torch.no_grad():
            every, first = module(images), module(images[:batch])
        return every.shape[0] == batch + 1 and torch.allclose(every[:batch], first, rtol=1e-4, atol=1e-5)
    except Exception:  # whatever type it fails with, it fails for another batch size
        return False


def _images(shape: tuple[int, int, int, int]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _require_same_outputs(path: Path, module: nn.Module, shape: tuple[int, int, int, int]) -> None:
    """Raise UserError where the module and onnxruntime disagree on random images; nothing without onnxruntime."""
    images = _images(shape)
    expected = _by_onnxruntime(path, images)
    if expected is None or not torch.isfinite(expected).all():  # preflight refuses what is not finite
        return
    try:
        with torch.no_grad():
            outputs = module(images)
    except Exception as error:  # converted code raises any type
        raise UserError(
            f"{path}: the graph converted by onnx2torch fails ({type(error).__name__}: {reason(error)}), while "
            "onnxruntime runs the original; give the model as path/file.py:FACTORY",
            slug="onnx-conversion",
        ) from None
    outputs = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    size = float(expected.abs().max())
    difference = float((outputs - expected).abs().max()) if outputs.shape == expected.shape else float("inf")
    if not difference <= TOLERANCE * max(size, 1e-6):
        raise UserError(
            f"{path}: the graph converted by onnx2torch differs from onnxruntime (outputs of up to "
            f"{size:.3g} differ by {difference:.3g}); give the model as path/file.py:FACTORY",
            slug="onnx-conversion-differs",
        )


def _by_onnxruntime(path: Path, images: Tensor) -> Tensor | None:
    """The graph's first output, or None where onnxruntime is missing or cannot run it."""
    try:
        import onnxruntime
    except ImportError:
        return None
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        return torch.from_numpy(outputs[0]).float()
    except Exception:  # a graph that only this runtime cannot run is no reason to refuse it
        return None
