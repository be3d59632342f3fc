"""MODEL in every form, from the name to the logits, and the sentence for every form that is wrong."""

from __future__ import annotations

import json
import sys
import urllib.error

import pytest
import torch
from safetensors.torch import save_file
from tiny_networks import tiny
from torch import nn

from robustbench_local.errors import UserError
from robustbench_local.models import Classifier, build_architecture, catalog, fingerprint, list_models, load_classifier

CODE = """
from dataclasses import dataclass
import torch
from torch import nn
from sibling_of_the_model import WIDTH

def good():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 3))

@dataclass
class Settings:
    width: int = WIDTH

def broken():
    raise RuntimeError("no weights today")

def needs(argument):
    return None

def text():
    return "model"

instance = good()
number = 5
REGISTRY = {"served_net": good}

def __getattr__(name):
    if name in REGISTRY:
        return REGISTRY[name]
    raise AttributeError(name)
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "sibling_of_the_model.py").write_text("WIDTH = 64\n")
    path = tmp_path / "models.py"
    path.write_text(CODE)
    yield path
    sys.modules.pop("sibling_of_the_model", None)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A bundled folder of the test's own with one classifier in it."""
    torch.manual_seed(0)
    module = build_architecture("digits-cnn")
    save_file(module.state_dict(), tmp_path / "digits-cnn.safetensors")
    (tmp_path / "digits-cnn.json").write_text(
        json.dumps(
            {
                "architecture": "digits-cnn",
                "normalization": {"mean": [0.5], "std": [0.25]},
                "input_shape": [1, 8, 8],
                "class_names": [str(i) for i in range(10)],
            }
        )
    )
    monkeypatch.setattr(catalog, "bundled_directory", lambda: tmp_path)
    return module


def test_bundled(bundle):
    classifier = load_classifier("digits-cnn")
    images = torch.rand(3, 1, 8, 8)
    assert torch.allclose(classifier(images), bundle((images - 0.5) / 0.25), atol=1e-6)
    assert (classifier.name, classifier.input_shape) == ("digits-cnn", (1, 8, 8))
    assert classifier.class_names == list("0123456789")
    assert load_classifier("digits-cnn", normalize="none").normalization is None
    assert ("bundled", "digits-cnn", "a trained digits-cnn; with --checkpoint, the architecture") in list_models()
    with pytest.raises(UserError, match="leave --num-classes out"):
        load_classifier("digits-cnn", num_classes=3)


def test_what_is_bundled_loads():
    for name in catalog.bundled_names():
        classifier = load_classifier(name)
        assert classifier(torch.rand(2, *classifier.input_shape)).shape == (2, len(classifier.class_names))


def test_a_damaged_bundle_is_named(bundle, tmp_path):
    (tmp_path / "digits-cnn.safetensors").write_bytes(b"123")
    with pytest.raises(UserError, match="digits-cnn is damaged"):
        load_classifier("digits-cnn")


@pytest.mark.parametrize(
    ("name", "classes", "channels", "options", "form"),
    [
        ("digits-cnn", 7, 1, {}, "--checkpoint"),
        ("digits-cnn", 7, 1, {}, "--arch"),
        ("cnn-small", 7, 3, {}, "--arch"),
        ("cnn-small", 10, 1, {"image_size": 28}, "--checkpoint"),
        ("cnn-medium", 43, 1, {}, "--arch"),
        ("resnet18", 5, 3, {}, "--checkpoint"),
        ("preact-resnet18", 100, 3, {}, "--arch"),
        ("preact-resnet18", 10, 3, {"final_norm": False}, "--checkpoint"),
    ],
)
def test_sizes_come_from_the_checkpoint(tmp_path, name, classes, channels, options, form):
    module = build_architecture(name, classes, channels, **options).eval()
    path = tmp_path / "w.pt"
    torch.save({"net": {f"module.{key}": value for key, value in module.state_dict().items()}, "acc": 9}, path)
    classifier = (
        load_classifier(name, checkpoint=path) if form == "--checkpoint" else load_classifier(str(path), arch=name)
    )
    side = {"digits-cnn": 8, "cnn-small": options.get("image_size", 32)}.get(name, 16)
    images = torch.rand(2, channels, side, side)
    assert torch.allclose(classifier(images), module(images), atol=1e-5)
    assert classifier.input_shape in (None, (channels, side, side))
    with pytest.raises(UserError, match=f"{classes}×.*in the file, 9×"):
        load_classifier(name, checkpoint=path, num_classes=9)


def test_the_wrong_architecture_is_explained(tmp_path):
    torch.save(build_architecture("resnet18").state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"does not fit(.|\n)*nearest"):
        load_classifier("cnn-medium", checkpoint=tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"holds weights alone.*--arch resnet18$"):
        load_classifier(str(tmp_path / "w.pt"))


def test_a_scaling_stored_beside_the_weights_is_used(tmp_path):
    inner = build_architecture("cnn-small")
    whole = Classifier(inner, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.5])
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    images = torch.rand(2, 3, 32, 32)
    loaded = load_classifier("cnn-small", checkpoint=tmp_path / "w.pt")
    assert torch.allclose(loaded(images), whole(images), atol=1e-6)
    plain = load_classifier("cnn-small", checkpoint=tmp_path / "w.pt", normalize="none")
    assert torch.allclose(plain(images), inner(images), atol=1e-6)


def test_weights_that_defend_wrote_describe_themselves(tmp_path):
    module = build_architecture("digits-cnn", 3)
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    card = {
        "schema": "robustbench-local/checkpoint/1",
        "architecture": "digits-cnn",
        "class_names": ["a", "b", "c"],
        "normalization": {"mean": [0.5], "std": [0.5]},
        "input_shape": [1, 8, 8],
    }
    (tmp_path / "model.json").write_text(json.dumps(card))
    for model in (str(tmp_path), str(tmp_path / "model.safetensors")):
        classifier = load_classifier(model)
        assert classifier.normalization == card["normalization"]
        assert classifier.class_names == card["class_names"]
    card["architecture"] = "/somewhere/evil.py:run"
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="name the code that builds it with --arch"):
        load_classifier(str(tmp_path))


def test_a_name_wins_over_a_folder_called_the_same(bundle, tmp_path, monkeypatch):
    save_file(tiny().state_dict(), (tmp_path / "digits-cnn").mkdir() or tmp_path / "digits-cnn" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert load_classifier("digits-cnn").name == "digits-cnn"
    with pytest.raises(UserError, match="holds weights alone"):
        load_classifier("./digits-cnn")


def test_factories(code, monkeypatch):
    path_before = list(sys.path)
    images = torch.rand(2, 1, 8, 8)
    by_file = load_classifier(f"{code}:good")
    assert by_file(images).shape == (2, 3)
    assert torch.equal(load_classifier(f"{code}:served_net")(images), by_file(images))
    assert load_classifier(f"{code}:instance")(images).shape == (2, 3)
    monkeypatch.chdir(code.parent)
    code.rename(code.parent / "models_of_the_test.py")
    assert torch.equal(load_classifier("models_of_the_test:good")(images), by_file(images))
    assert sys.path == path_before
    sys.modules.pop("models_of_the_test")


def test_a_factory_takes_a_checkpoint(code, tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    torch.save({"state_dict": module.state_dict()}, tmp_path / "w.pt")
    images = torch.rand(2, 1, 8, 8)
    for classifier in (
        load_classifier(f"{code}:good", checkpoint=tmp_path / "w.pt"),
        load_classifier(str(tmp_path / "w.pt"), arch=f"{code}:good"),
    ):
        assert torch.equal(classifier(images), module(images))


def test_a_factory_may_return_a_classifier(tmp_path):
    (tmp_path / "m.py").write_text(
        "from robustbench_local.models import Classifier, build_architecture\n"
        "def f():\n    return Classifier(build_architecture('digits-cnn'), mean=[0.5], std=[0.5], class_names=['x'])\n"
    )
    classifier = load_classifier(f"{tmp_path / 'm.py'}:f")
    assert (classifier.normalization, classifier.class_names) == ({"mean": [0.5], "std": [0.5]}, ["x"])
    assert load_classifier(f"{tmp_path / 'm.py'}:f", normalize="none").normalization is None


@pytest.mark.parametrize(
    ("name", "slug", "parts"),
    [
        ("godo", "factory-not-found", ["'godo'", "'good'"]),
        ("served_nte", "factory-not-found", ["'served_net'"]),
        ("broken", "factory-failed", ["RuntimeError: no weights today", "models.py line 16"]),
        ("needs", "factory-failed", ["TypeError", "without arguments"]),
        ("text", "factory-result", ["a str"]),
        ("number", "factory-result", ["a int"]),
        ("", "factory-spec", ["FACTORY"]),
    ],
)
def test_factories_that_fail(code, name, slug, parts):
    with pytest.raises(UserError) as caught:
        load_classifier(f"{code}:{name}")
    assert caught.value.slug == slug
    assert all(part in str(caught.value) for part in parts)


def test_code_that_cannot_be_imported(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load_classifier(f"{tmp_path}/absent.py:f")
    (tmp_path / "bad.py").write_text("def f(:\n")
    with pytest.raises(UserError, match=r"SyntaxError.*bad.py line 1"):
        load_classifier(f"{tmp_path}/bad.py:f")
    with pytest.raises(UserError, match="no Python package 'no_such_package'"):
        load_classifier("no_such_package.models:f")
    (tmp_path / "needs.py").write_text("import no_such_package\n")
    with pytest.raises(UserError, match=r"ModuleNotFoundError.*needs.py line 1"):
        load_classifier(f"{tmp_path}/needs.py:f")


def test_torchvision_without_weights():
    classifier = load_classifier("torchvision/squeezenet1_1:weights=none,num_classes=10")
    assert classifier(torch.rand(1, 3, 64, 64)).shape == (1, 10)
    assert classifier.normalization is None
    assert classifier.resize is None
    again = load_classifier("torchvision/squeezenet1_1:weights=none", num_classes=10)
    assert fingerprint(again) == fingerprint(classifier), "weights from nowhere are the same every time"


def test_torchvision_with_published_weights(monkeypatch):
    from torchvision.models import ShuffleNet_V2_X0_5_Weights as Weights
    from torchvision.models import shufflenet_v2_x0_5

    state = shufflenet_v2_x0_5().state_dict()
    monkeypatch.setattr(Weights, "get_state_dict", lambda self, **kwargs: state)
    classifier = load_classifier("torchvision/shufflenet_v2_x0_5")
    assert classifier.normalization == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert (classifier.input_shape, classifier.resize.resize, classifier.resize.crop) == ((3, 224, 224), 256, 224)
    assert classifier.resize.interpolation == "bilinear"
    assert classifier.class_names[:2] == ["tench", "goldfish"]
    assert len(classifier.class_names) == 1000
    with pytest.raises(UserError, match="have 1000 classes, not 10"):
        load_classifier("torchvision/shufflenet_v2_x0_5", num_classes=10)


def test_torchvision_with_a_checkpoint(tmp_path):
    from torchvision.models import shufflenet_v2_x0_5

    for classes, scaled in ((12, False), (1000, True)):
        torch.save({"model": shufflenet_v2_x0_5(num_classes=classes).state_dict()}, tmp_path / "w.pth")
        classifier = load_classifier("torchvision/shufflenet_v2_x0_5", checkpoint=tmp_path / "w.pth")
        assert classifier(torch.rand(1, 3, 64, 64)).shape == (1, classes)
        assert (classifier.normalization is not None) is scaled
        plain = load_classifier(str(tmp_path / "w.pth"), arch="torchvision/shufflenet_v2_x0_5:weights=none")
        assert plain.normalization is None


def test_offline_is_one_sentence(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(UserError, match=r"IMAGENET1K_V1 of torchvision/alexnet could not be fetched.*--checkpoint"):
        load_classifier("torchvision/alexnet")


@pytest.mark.parametrize(
    ("model", "slug", "part"),
    [
        ("torchvision/resnet51", "unknown-model", "'resnet50'"),
        ("torchvision/resnet18:weights=IMAGENET1K_V3", "unknown-weights", "IMAGENET1K_V1, DEFAULT, none"),
        ("torchvision/resnet18:wieghts=none", "unknown-model-setting", "'weights'"),
        ("torchvision/resnet18:num_classes=many", "num-classes-invalid", "'many'"),
        ("resnet18", "architecture-without-weights", "--checkpoint"),
        ("resnet18:num_classes=3", "model-takes-no-settings", "--num-classes"),
        ("resnet50", "unknown-model", "torchvision/resnet50"),
        ("wide-resnet-28", "unknown-model", "'wide-resnet-28-10'"),
        ("robustbench/Wang2023Better", "robustbench-zoo", "--checkpoint"),
        ("absent.pt", "no-such-file", "absent.pt"),
        ("absent.onnx", "no-such-file", "absent.onnx"),
        ("absent.pt2", "no-such-file", "absent.pt2"),
        ("models.py", "unknown-model", "models.py:FACTORY"),
    ],
)
def test_names_that_are_wrong(model, slug, part):
    with pytest.raises(UserError) as caught:
        load_classifier(model)
    assert caught.value.slug == slug
    assert part in str(caught.value)


def test_options_that_do_not_go_together(tmp_path, code):
    torch.save(tiny().state_dict(), path := tmp_path / "w.pt")
    for options, slug in (
        ({"model": str(path), "checkpoint": path}, "two-checkpoints"),
        ({"model": "resnet18", "arch": "resnet18"}, "arch-without-checkpoint-file"),
        ({"model": str(path), "arch": str(path)}, "arch-is-a-file"),
        ({"model": str(path), "arch": "resnet81"}, "unknown-model"),
        ({"model": f"{code}:good", "num_classes": 3}, "num-classes-fixed"),
    ):
        with pytest.raises(UserError) as caught:
            load_classifier(**options)
        assert caught.value.slug == slug


def test_timm(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm", reason="the timm extra is not installed")
    classifier = load_classifier("timm/resnet10t:weights=none,num_classes=10")
    assert classifier(torch.rand(1, 3, 64, 64)).shape == (1, 10)
    torch.save(timm.create_model("resnet10t", num_classes=12).state_dict(), tmp_path / "w.pt")
    assert load_classifier("timm/resnet10t", checkpoint=tmp_path / "w.pt")(torch.rand(1, 3, 64, 64)).shape == (1, 12)
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "w.pt")
    scaled = load_classifier("timm/resnet10t", checkpoint=tmp_path / "w.pt")
    assert scaled.normalization["mean"] == [0.485, 0.456, 0.406]
    assert scaled.input_shape == (3, 176, 176)
    with pytest.raises(UserError, match="Did you mean 'resnet10t'"):
        load_classifier("timm/resnet10x")
    real = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("no route")
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"could not be fetched.*--checkpoint"):
        load_classifier("timm/resnet10t")


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'robustbench-local\[timm\]'"):
        load_classifier("timm/resnet18")
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08")
    with pytest.raises(UserError, match=r"pip install 'robustbench-local\[onnx\]'"):
        load_classifier(str(tmp_path / "m.onnx"))


def test_the_random_state_is_left_alone(code):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    load_classifier(f"{code}:good")
    load_classifier("torchvision/squeezenet1_1:weights=none")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_list_holds_every_kind():
    groups = {group for group, _, _ in list_models()}
    names = {name for _, name, _ in list_models()}
    assert {"architecture", "torchvision", "timm", "code", "file"} <= groups
    assert {"wide-resnet-28-10", "torchvision/resnet50", "timm/NAME", "path/file.py:FACTORY"} <= names
    assert all(note for _, _, note in list_models())
