"""Files that bring their own architecture: TorchScript, torch.export, ONNX."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_networks import tiny
from torch import nn

from robustbench_local.errors import UserError
from robustbench_local.models import fingerprint, load_classifier

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def same_function(classifier, module) -> bool:
    """Equal outputs for several batch sizes, and equal gradients."""
    for count in (1, 2, 5):
        if not torch.allclose(classifier(IMAGES[:count]), module(IMAGES[:count]), atol=1e-5):
            return False
    gradients = []
    for function in (classifier, module):
        images = IMAGES.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(images)[:, 0].sum(), images)[0])
    return torch.allclose(*gradients, atol=1e-5)


@pytest.fixture
def script(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit")
        path = tmp_path / "script.pt"
        torch.jit.script(tiny().train()).save(str(path))
    return path


def exported(path, module=None, fixed: int | None = None, size: tuple[int, ...] = (1, 8, 8)):
    images = torch.rand(fixed or 2, *size)
    shapes = None if fixed else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export((module or tiny()).eval(), (images,), dynamic_shapes=shapes), path)
    return path


def test_torchscript(script):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier = load_classifier(str(script), normalize="none")
    assert same_function(classifier, tiny().eval())
    assert not any(part.training for part in classifier.modules())
    scaled = load_classifier(str(script), normalize="0.5:0.25")
    assert torch.allclose(scaled(IMAGES), tiny().eval()((IMAGES - 0.5) / 0.25), atol=1e-5)


def test_torchscript_is_no_checkpoint(script):
    with pytest.raises(UserError, match=r"TorchScript program.*give it as MODEL itself"):
        load_classifier("resnet18", checkpoint=script)
    with pytest.raises(UserError, match="brings its own architecture; leave --arch out"):
        load_classifier(str(script), arch="resnet18")


@pytest.mark.parametrize("fixed", [None, 1, 2, 3])
@pytest.mark.parametrize("suffix", [".pt2", ".pt"])
def test_exported_programs(tmp_path, fixed, suffix):
    path = exported(tmp_path / "m.pt2", fixed=fixed).rename(tmp_path / f"program{suffix}")
    classifier = load_classifier(str(path))
    assert same_function(classifier, tiny().eval())
    assert classifier.input_shape == (1, 8, 8)
    assert classifier.train() is classifier
    assert len(fingerprint(classifier)) == 64
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


def test_exported_programs_of_another_input(tmp_path):
    with pytest.raises(UserError, match=r"takes 1 inputs.*N×C×H×W"):
        load_classifier(str(exported(tmp_path / "m.pt2", nn.Linear(8, 3), size=(8,))))


def rewritten(source: Path, target: Path, change) -> Path:
    """A copy of an archive with one part changed, left out or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        parts = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
        change(parts)
        for part, content in parts.items():
            new.writestr(f"{root}/{part}", content)
    return target


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def saved(value) -> bytes:
    import io

    torch.save(value, buffer := io.BytesIO())
    return buffer.getvalue()


def plant_sample_inputs(parts, evil):
    parts["data/sample_inputs/model.pt"] = saved(((evil,), {}))


def plant_weight(parts, evil):
    config = json.loads(parts["data/weights/model_weights_config.json"])
    config["config"]["0.weight"]["use_pickle"] = True
    parts["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    parts["data/weights/weight_0"] = saved(evil)


def plant_constant(parts, evil):
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    parts["data/constants/model_constants_config.json"] = json.dumps({"config": {"x": entry}}).encode()
    parts["data/constants/opaque_obj_0"] = pickle.dumps(evil)


def plant_legacy_weights(parts, evil):
    parts["data/weights/model.pt"] = saved({"0.weight": evil})


def plant_expression(parts, evil):
    text = f"__import__('pathlib').Path({str(evil.target)!r}).touch()"
    model = parts["models/model.json"].decode()
    parts["models/model.json"] = model.replace("Symbol('s", f"{text} or Symbol('s").encode()
    assert parts["models/model.json"].decode() != model


@pytest.mark.parametrize(
    "plant", [plant_sample_inputs, plant_weight, plant_constant, plant_legacy_weights, plant_expression]
)
def test_nothing_in_an_exported_program_is_executed(tmp_path, plant):
    source, target = exported(tmp_path / "m.pt2"), tmp_path / "executed"
    evil = rewritten(source, tmp_path / "evil.pt2", lambda parts: plant(parts, Evil(target)))
    with pytest.raises(UserError, match="not loaded"):
        load_classifier(str(evil))
    assert not target.exists()


def test_rewriting_alone_is_no_reason_to_refuse(tmp_path):
    copy = rewritten(exported(tmp_path / "m.pt2"), tmp_path / "copy.pt2", lambda parts: None)
    assert same_function(load_classifier(str(copy)), tiny().eval())


def test_damaged_programs(tmp_path, script):
    for name, content in (
        ("a.pt2", b"\x00\x01" * 400),
        ("b.pt2", exported(tmp_path / "m.pt2").read_bytes()[:3000]),
        ("c.pt2", script.read_bytes()),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"not an exported program|not a program as torch.export.save"):
            load_classifier(str(tmp_path / name))
    (tmp_path / "d.pt2").write_text("<html><body>Sign in</body></html>")
    with pytest.raises(UserError, match="is a web page"):
        load_classifier(str(tmp_path / "d.pt2"))


def test_programs_with_weights_that_are_not_finite(tmp_path):
    module = tiny()
    with torch.no_grad():
        module[5].weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"1 of 432 values of '.*weight' are not finite"):
        load_classifier(str(exported(tmp_path / "m.pt2", module)))


def onnx_file(path, *, batch="batch", shape=(1, 8, 8), merge=False, nan=False):
    """Flatten and one matrix, written node by node; `merge` reshapes to a stated batch as old exporters did."""
    onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
    pytest.importorskip("onnx2torch", reason="the onnx extra is not installed")
    from onnx import TensorProto, helper, numpy_helper

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
