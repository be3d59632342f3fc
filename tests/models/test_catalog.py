"""The table of names: it matches the files, and answers without torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torchvision
from torch import nn

from robustbench_local.errors import UserError
from robustbench_local.models import catalog
from robustbench_local.models.architectures.registry import find_architecture
from robustbench_local.models.preprocessing import input_defense_type

MODELS = Path(catalog.__file__).parent


@pytest.mark.parametrize(
    ("directory", "table", "shared"),
    [
        ("architectures", catalog.ARCHITECTURES, {"__init__", "registry"}),
        ("input_defenses", catalog.INPUT_DEFENSES, {"__init__", "input_defense"}),
    ],
)
def test_every_file_is_registered_once(directory, table, shared):
    files = [path.stem for path in (MODELS / directory).glob("*.py") if path.stem not in shared]
    assert sorted(files) == sorted({entry.partition(":")[0] for entry in table.values()})


@pytest.mark.parametrize("name", catalog.ARCHITECTURES)
def test_architectures_are_modules_with_a_description(name):
    kind = find_architecture(name)
    assert issubclass(kind, nn.Module)
    assert kind.__doc__


@pytest.mark.parametrize("name", catalog.INPUT_DEFENSES)
def test_input_defenses_are_dataclasses_of_that_name(name):
    kind = input_defense_type(name)
    assert kind.name == name
    assert dataclasses.is_dataclass(kind)
    assert kind.__doc__


def test_an_architecture_is_one_file_and_one_line(monkeypatch, robust):
    """What CONTRIBUTING describes: the listing, `build_architecture` and `--arch` pick a new entry up."""
    import types

    from robustbench_local.models import build_architecture, list_models

    class Flat(nn.Linear):
        """One linear layer."""

        def __init__(self, num_classes=10, in_channels=1):
            super().__init__(in_channels, num_classes)

    module = types.ModuleType("robustbench_local.models.architectures.flat")
    module.Flat = Flat
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(catalog.ARCHITECTURES, "flat", "flat:Flat")
    assert build_architecture("flat", 3, 5).weight.shape == (3, 5)
    assert ("architecture", "flat", "One linear layer; 20 parameters; needs --checkpoint") in list_models()
    assert "\nflat " in robust("list", "models").out
    assert "flat" in robust("attack", "flt", "--data", "digits").err


def test_torchvisions_names_are_read_without_importing_it():
    assert set(catalog.torchvision_classifiers()) == set(torchvision.models.list_models(module=torchvision.models))


@pytest.mark.parametrize(
    ("model", "arch", "slug", "part"),
    [
        ("digit-cnn", None, "unknown-model", "'digits-cnn'"),
        ("resnet50", None, "unknown-model", "torchvision/resnet50"),
        ("resnet18:depth=3", None, "model-takes-no-settings", "--num-classes"),
        ("absent.pt", "resnet18", "no-such-file", "absent.pt"),
        ("net.py", None, "unknown-model", "net.py:FACTORY"),
    ],
)
def test_wrong_names_are_refused(model, arch, slug, part):
    with pytest.raises(UserError) as caught:
        catalog.check_model_name(model, arch)
    assert caught.value.slug == slug
    assert part in str(caught.value)


def test_an_unknown_architecture_of_a_file_is_refused(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        catalog.check_model_name(str(tmp_path / "w.pt"), "resnet81")
    assert caught.value.slug == "unknown-model"
    assert "'resnet18'" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "arch"),
    [
        ("digits-cnn", None),
        ("resnet18", None),
        ("torchvision/anything", None),
        ("timm/x", None),
        ("a.b:c", None),
        ("net.py:make", None),
    ],
)
def test_names_that_only_loading_can_decide_pass(model, arch):
    catalog.check_model_name(model, arch)


def test_the_table_needs_no_torch():
    script = (
        "import sys\nfrom robustbench_local.models import catalog\n"
        "catalog.bundled_names(), catalog.torchvision_classifiers()\n"
        "try: catalog.check_model_name('digits-cmn')\n"
        "except Exception as error: print(error.slug)\n"
        "sys.exit(bool({'torch', 'numpy', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "unknown-model\n"), done.stderr
