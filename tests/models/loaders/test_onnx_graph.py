"""ONNX graphs: converted, compared with onnxruntime, and refused where that is not possible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_networks import same_function
from torch import nn

from robustbench_local.errors import UserError
from robustbench_local.models import load_classifier

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
onnx2torch = pytest.importorskip("onnx2torch", reason="the onnx extra is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def onnx_file(path, *, batch="batch", shape=(1, 8, 8), merge=False, nan=False):
    """Flatten and one matrix, written node by node; `merge` reshapes to a stated batch as old exporters did."""
    weight = torch.linspace(-1, 1, 3 * 64).view(3, 64)
    weight = torch.full_like(weight, torch.nan) if nan else weight
    weights = [numpy_helper.from_array(weight.numpy(), "w"), numpy_helper.from_array(torch.arange(3.0).numpy(), "b")]
    if merge:
        weights.append(numpy_helper.from_array(torch.tensor([batch, 64]).numpy(), "s"))
        first = helper.make_node("Reshape", ["x", "s"], ["flat"])
    else:
        first = helper.make_node("Flatten", ["x"], ["flat"], axis=1)
    nodes = [first, helper.make_node("Gemm", ["flat", "w", "b"], ["y"], transB=1)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    module.load_state_dict({"1.weight": weight, "1.bias": torch.arange(3.0)})
    return module


@pytest.mark.parametrize(("batch", "merge"), [("batch", False), (1, False), (2, False), (1, True), (2, True)])
def test_onnx(tmp_path, batch, merge):
    module = onnx_file(tmp_path / "m.onnx", batch=batch, merge=merge)
    classifier = load_classifier(str(tmp_path / "m.onnx"))
    assert classifier.input_shape == (1, 8, 8)
    assert same_function(classifier, module)


def test_onnx_refusals(tmp_path):
    path = tmp_path / "m.onnx"
    onnx_file(path, shape=(64,))
    with pytest.raises(UserError, match=r"input of shape .*64; a classifier takes images"):
        load_classifier(str(path))
    onnx_file(path, shape=(8, 8, 1))
    with pytest.raises(UserError, match="channels last"):
        load_classifier(str(path))
    onnx_file(path, nan=True)
    with pytest.raises(UserError, match="not finite"):
        load_classifier(str(path))
    path.write_bytes(b"\x99" * 900)
    with pytest.raises(UserError, match="cannot be read as ONNX"):
        load_classifier(str(path))


class Paddle(nn.Module):
    """What the graph of `paddle_graph` computes."""

    def __init__(self, weights):
        super().__init__()
        self.weights = {name: torch.from_numpy(value) for name, value in weights.items()}

    def forward(self, images):
        w = self.weights
        x = nn.functional.conv2d(images, w["conv1_weights"], padding=1)
        x = nn.functional.batch_norm(x, w["mean"], w["variance"], w["scale"], w["offset"], eps=1e-5)
        x = (0.2 * x + 0.5).clamp(0, 1)
        x = nn.functional.conv2d(x, w["conv2_weights"], stride=2)
        x = x.mean((2, 3))
        return (x @ w["fc_weights"] + w["fc_offset"]).softmax(1)


def paddle_weights():
    random = np.random.default_rng(0)
    shapes = {
        "conv1_weights": (4, 1, 3, 3),
        "scale": (4,),
        "offset": (4,),
        "mean": (4,),
        "conv2_weights": (6, 4, 2, 2),
        "fc_weights": (6, 3),
        "fc_offset": (3,),
    }
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {**weights, "variance": random.uniform(0.5, 2, 4).astype(np.float32)}


def constant(name, value):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value), f"{name}.value"))


def slice_of_shape():
    """The batch's size, as PaddlePaddle's exporter takes it: a slice of the shape."""
    return [
        *(constant(name, np.array([value], dtype=np.int64)) for name, value in (("from", 0), ("to", 1), ("rest", 6))),
        helper.make_node("Shape", ["pooled"], ["shape"]),
        helper.make_node("Slice", ["shape", "from", "to"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
    ]


def gather_of_shape():
    """The same as older PyTorch exporters take it: a gathered scalar, put back into a vector."""
    return [
        constant("first", np.array(0, dtype=np.int64)),
        constant("rest", np.array([-1], dtype=np.int64)),
        helper.make_node("Shape", ["pooled"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["number"], axis=0),
        helper.make_node("Unsqueeze", ["number"], ["batch"], axes=[0]),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
    ]


def product_of_shape():
    """The same with arithmetic and a cast."""
    return [
        *(constant(name, np.array([value], dtype=np.int64)) for name, value in (("from", 1), ("to", 2), ("one", 1))),
        constant("batch", np.array([-1], dtype=np.int64)),
        helper.make_node("Shape", ["pooled"], ["shape"]),
        helper.make_node("Slice", ["shape", "from", "to"], ["channels"]),
        helper.make_node("Mul", ["channels", "one"], ["product"]),
        helper.make_node("Cast", ["product"], ["rest"], to=TensorProto.INT64),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
    ]


def paddle_graph(path, *, batch="batch", reshape=slice_of_shape, through_identity=False, changed=None):
    """A graph as PaddlePaddle exports it (opset 11): weights as `Constant` nodes, the reshape's target computed."""
    weights = paddle_weights()
    stored = {**weights, **(changed or {})}
    name = {key: f"{key}.stored" if through_identity else key for key in weights}
    nodes = [constant(name[key], value) for key, value in stored.items()]
    if through_identity:
        nodes += [helper.make_node("Identity", [name[key]], [key]) for key in weights]
    nodes += [
        helper.make_node("Conv", ["x", "conv1_weights"], ["conv1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["conv1", "scale", "offset", "mean", "variance"], ["norm"]),
        helper.make_node("HardSigmoid", ["norm"], ["active"], alpha=0.2, beta=0.5),
        helper.make_node("Conv", ["active", "conv2_weights"], ["conv2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["conv2"], ["pooled"]),
        *reshape(),
        helper.make_node("Reshape", ["pooled", "target"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc_weights"], ["product_fc"]),
        helper.make_node("Add", ["product_fc", "fc_offset"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["y"], axis=1),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])
        for name, shape in (("x", (1, 8, 8)), ("y", (3,)))
    )
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 11)])
    model.ir_version = 7
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return Paddle(weights)


@pytest.mark.parametrize("batch", ["batch", 1, 2])
@pytest.mark.parametrize("reshape", [slice_of_shape, gather_of_shape, product_of_shape])
def test_weights_as_constants_and_computed_shapes(tmp_path, reshape, batch):
    module = paddle_graph(tmp_path / "m.onnx", reshape=reshape, batch=batch)
    assert same_function(load_classifier(str(tmp_path / "m.onnx")), module)


def test_weights_behind_an_identity(tmp_path):
    module = paddle_graph(tmp_path / "m.onnx", through_identity=True)
    assert same_function(load_classifier(str(tmp_path / "m.onnx")), module)


def test_weights_are_counted_as_the_models_own(tmp_path):
    """As initializers they are tensors of the module, so the fingerprint tells them apart."""
    paddle_graph(tmp_path / "a.onnx")
    paddle_graph(tmp_path / "b.onnx", changed={"fc_offset": np.ones(3, np.float32)})
    one, other = (load_classifier(str(tmp_path / name)).state_dict() for name in ("a.onnx", "b.onnx"))
    assert sum(value.numel() for value in one.values()) >= sum(value.size for value in paddle_weights().values())
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_a_conversion_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    paddle_graph(tmp_path / "m.onnx")
    convert = onnx2torch.convert

    def wrong(model):
        module = convert(model)
        return nn.Sequential(module, nn.Softmax(1))

    monkeypatch.setattr(onnx2torch, "convert", wrong)
    with pytest.raises(UserError) as caught:
        load_classifier(str(tmp_path / "m.onnx"))
    assert caught.value.slug == "onnx-conversion-differs"


def test_a_conversion_that_fails_where_onnxruntime_does_not_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    paddle_graph(tmp_path / "m.onnx")
    monkeypatch.setattr(onnx2torch, "convert", lambda model: nn.Linear(5, 3))
    with pytest.raises(UserError) as caught:
        load_classifier(str(tmp_path / "m.onnx"))
    assert caught.value.slug == "onnx-conversion"
