"""Constants of an ONNX graph, put where onnx2torch expects them.

Exporters such as PaddlePaddle's write weights as `Constant` nodes and compute the shape of a reshape in the graph
(`Shape`, `Slice`, `Concat`). onnx2torch expects weights as initializers, and shapes as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

Attributes = dict[str, Any]
MOST_VALUES = 1_000
"""Values of an integer tensor that may be folded: shapes are short, and folding must not allocate much."""
Value = npt.NDArray[np.object_]
"""A small integer tensor; None: a size that is known only when the graph runs, such as the batch size."""


def fold_constants(model: ModelProto) -> None:
    """Turn `Constant` nodes into initializers and fold shape arithmetic, in place.

    A `Reshape` to a shape that is known but for one size gets a constant shape with -1 (or 0, which keeps the size).
    """
    _constants_to_initializers(model)
    shapes = _known_shapes(model)
    values: dict[str, Value] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.INT32, TensorProto.INT64) and np.prod(tensor.dims) <= MOST_VALUES:
            values[tensor.name] = numpy_helper.to_array(tensor).astype(object)
    for node in model.graph.node:
        value = _value(node, values, shapes)
        if value is not None and value.size <= MOST_VALUES:
            values[node.output[0]] = value
        if node.op_type == "Reshape" and node.input[1] in values:
            _set_shape(model, node, values[node.input[1]])
    _remove_unused(model)


def _constants_to_initializers(model: ModelProto) -> None:
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        tensor = None
        if node.op_type == "Constant":
            tensor = _constant(node)
        elif node.op_type == "Identity" and node.input[0] in tensors:
            tensor = tensors[node.input[0]]
        if tensor is None or node.output[0] in {item.name for item in graph.output}:
            kept.append(node)
            continue
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = node.output[0]
        tensors[copy.name] = copy
    del graph.node[:]
    graph.node.extend(kept)


def _constant(node: NodeProto) -> TensorProto | None:
    """The tensor of a `Constant` node, in whichever attribute it is."""
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor: TensorProto = attribute.t
        return tensor
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attribute.name not in kinds:
        return None
    return numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), dtype=kinds[attribute.name]))


def _known_shapes(model: ModelProto) -> dict[str, list[int | None]]:
    """Shapes of the tensors in the graph, for images in any number: the batch's size is None."""
    copy = ModelProto()
    copy.CopyFrom(model)
    weights = {tensor.name for tensor in copy.graph.initializer}
    for item in copy.graph.input:
        if item.name not in weights and item.type.tensor_type.shape.dim:
            item.type.tensor_type.shape.dim[0].dim_param = "batch"
    for item in copy.graph.output:
        item.type.tensor_type.ClearField("shape")
    del copy.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(copy)
    shapes: dict[str, list[int | None]] = {}
    for item in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if item.type.tensor_type.HasField("shape"):
            dims = item.type.tensor_type.shape.dim
            shapes[item.name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    return shapes


def _value(node: NodeProto, values: dict[str, Value], shapes: dict[str, list[int | None]]) -> Value | None:
    """What a node of shape arithmetic computes, or None where that cannot be known before the graph runs."""
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type == "Shape":
        shape = shapes.get(node.input[0])
        return (
            None if shape is None else np.array(shape, dtype=object)[attributes.get("start", 0) : attributes.get("end")]
        )
    fold = FOLDS.get(node.op_type)
    if fold is None or not all(name in values for name in node.input if name):
        return None
    try:
        return fold([values[name] for name in node.input if name], attributes)
    except (TypeError, ValueError, IndexError, ZeroDivisionError):  # unknown sizes, or a graph that is wrong
        return None


def _slice(inputs: Sequence[Value], attributes: Attributes) -> Value | None:
    """One axis, which is all that a vector has. Until opset 9 the bounds are attributes."""
    data = inputs[0]
    starts, ends = (inputs[1], inputs[2]) if len(inputs) > 2 else (attributes.get("starts"), attributes.get("ends"))
    if starts is None or ends is None or len(starts) != 1:
        return None
    step = int(inputs[4][0]) if len(inputs) > 4 else 1
    return data[int(starts[0]) : int(ends[0]) : step]


def _gather(inputs: Sequence[Value], attributes: Attributes) -> Value:
    return np.array(inputs[0], dtype=object).take(inputs[1].astype(int), axis=attributes.get("axis", 0))


def _axes(inputs: Sequence[Value], attributes: Attributes) -> tuple[int, ...] | None:
    axes = inputs[1] if len(inputs) > 1 else attributes.get("axes")
    return None if axes is None else tuple(int(axis) for axis in axes)


def _cast(inputs: Sequence[Value], attributes: Attributes) -> Value | None:
    return inputs[0] if attributes["to"] in (TensorProto.INT32, TensorProto.INT64) else None


FOLDS: dict[str, Callable[[Sequence[Value], Attributes], Value | None]] = {
    "Slice": _slice,
    "Gather": _gather,
    "Concat": lambda inputs, _: np.concatenate(inputs),
    "Unsqueeze": lambda inputs, attributes: np.expand_dims(inputs[0], _axes(inputs, attributes) or 0),
    "Squeeze": lambda inputs, attributes: np.squeeze(inputs[0], _axes(inputs, attributes)),
    "Cast": _cast,
    "Identity": lambda inputs, _: inputs[0],
    "Add": lambda inputs, _: np.array(inputs[0] + inputs[1], dtype=object),
    "Sub": lambda inputs, _: np.array(inputs[0] - inputs[1], dtype=object),
    "Mul": lambda inputs, _: np.array(inputs[0] * inputs[1], dtype=object),
    "Div": lambda inputs, _: np.array(inputs[0] // inputs[1], dtype=object),
}


def _set_shape(model: ModelProto, node: NodeProto, shape: Value) -> None:
    """Give a `Reshape` its shape as a constant, if at most one size of it is unknown."""
    sizes = shape.tolist()
    if sizes.count(None) > 1 or (None in sizes and -1 in sizes and sizes[0] is not None):
        return
    # 0 keeps the size that the tensor has in this place: where -1 is taken, the first, which is the batch's.
    unknown = 0 if -1 in sizes else -1
    constant = np.array([unknown if size is None else size for size in sizes], dtype=np.int64)
    name = f"{node.output[0]}.shape"
    model.graph.initializer.append(numpy_helper.from_array(constant, name))
    node.input[1] = name


def _remove_unused(model: ModelProto) -> None:
    """Remove the nodes that nothing reads any more."""
    graph = model.graph
    while True:
        read = {item.name for item in graph.output} | {name for node in graph.node for name in _reads(node)}
        kept = [node for node in graph.node if any(name in read for name in node.output)]
        if len(kept) == len(graph.node):
            return
        del graph.node[:]
        graph.node.extend(kept)


def _reads(node: NodeProto) -> list[str]:
    """What a node reads, in graphs inside it too."""
    inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return [*node.input, *(name for graph in inner for part in graph.node for name in _reads(part))]
