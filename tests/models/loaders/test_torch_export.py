"""`torch.export` programs: read, and refused where they hold more than a program of plain tensors."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_networks import same_function, tiny
from torch import nn

from robustbench_local.errors import UserError
from robustbench_local.models import fingerprint, load_classifier


def exported(path, module=None, fixed: int | None = None, size: tuple[int, ...] = (1, 8, 8)):
    images = torch.rand(fixed or 2, *size)
    shapes = None if fixed else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export((module or tiny()).eval(), (images,), dynamic_shapes=shapes), path)
    return path


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


def test_damaged_programs(tmp_path):
    for name, content in (
        ("a.pt2", b"\x00\x01" * 400),
        ("b.pt2", exported(tmp_path / "m.pt2").read_bytes()[:3000]),
        ("c.pt2", saved(tiny().state_dict())),
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
