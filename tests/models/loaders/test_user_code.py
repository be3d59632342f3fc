"""Models from the user's own code: found, called, and kept from changing anything global."""

from __future__ import annotations

import contextlib
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_local.errors import UserError
from robustbench_local.models import load_classifier
from robustbench_local.models.loaders.user_code import load_function

NET = "\nimport torch\nfrom torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"


@pytest.fixture
def load(tmp_path):
    """Loads the factory `net` of a file with this text."""

    def load(text, name="net"):
        (tmp_path / "code.py").write_text(text + NET)
        return load_classifier(f"{tmp_path / 'code.py'}:{name}")

    return load


def test_code_that_parses_arguments_sees_none(load, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["robust", "attack", "code.py:net", "--eps", "0.1"])
    load("import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--width')\nparser.parse_args()\n")
    assert sys.argv == ["robust", "attack", "code.py:net", "--eps", "0.1"]


def test_a_factory_that_parses_arguments_sees_none(load, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["robust", "--unknown"])
    text = "def late():\n    import argparse\n    argparse.ArgumentParser().parse_args()\n    return net()\n"
    assert load(text, "late")(torch.rand(1, 1, 8, 8)).shape == (1, 3)


EXITS = {
    "required argument": (
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--data', required=True)\np.parse_args()\n",
        "--data",
    ),
    "sys.exit": ("import sys\nsys.exit()\n", "exit code None"),
    "sys.exit with a message": ("import sys\nsys.exit('no GPU')\n", "exit code no GPU"),
    "quit": ("raise SystemExit(3)\n", "exit code 3"),
}


@pytest.mark.parametrize(("text", "part"), EXITS.values(), ids=EXITS)
def test_code_that_ends_the_program_is_one_sentence(load, capsys, text, part):
    with pytest.raises(UserError) as caught:
        load(text)
    assert caught.value.slug == "code-exits"
    assert part in str(caught.value)
    assert "__main__" in str(caught.value)
    assert capsys.readouterr().err == ""


def test_what_code_prints_while_imported_is_shown(load, capsys):
    load("import sys\nprint('loading', file=sys.stderr)\n")
    assert "loading" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_networks_of_another_dtype_become_float32(load, dtype):
    classifier = load(f"import torch\n\n\ndef other():\n    return net().to(torch.{dtype})\n", "other")
    assert classifier(torch.rand(2, 1, 8, 8)).dtype == torch.float32
    assert any(dtype in note for note in classifier.notes)


def test_a_default_dtype_of_the_code_stays_its_own(load):
    classifier = load("import torch\ntorch.set_default_dtype(torch.float64)\n")
    assert torch.get_default_dtype() == torch.float32
    assert classifier(torch.rand(2, 1, 8, 8)).dtype == torch.float32
    assert any("float64" in note for note in classifier.notes)


CHANGES = """
import os, random, sys, warnings
import numpy, torch
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
torch.set_num_threads(3)
torch.set_grad_enabled(False)
torch.set_float32_matmul_precision("medium")
torch.use_deterministic_algorithms(True, warn_only=True)
torch.backends.cudnn.benchmark = True
random.seed(1); numpy.random.seed(1); torch.manual_seed(1)
warnings.simplefilter("error")
sys.path.append("/somewhere")
sys.argv = ["theirs"]
os.chdir("/")
"""


def settings():
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": torch.backends.cudnn.benchmark,
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.random.get_rng_state().tolist(),
        "filters": list(warnings.filters),
        "path": list(sys.path),
        "argv": list(sys.argv),
        "directory": Path.cwd(),
    }


@pytest.mark.parametrize("where", ["import", "factory", "failing factory"])
def test_global_settings_come_back(load, where):
    before = settings()
    if where == "import":
        load(CHANGES + 'torch.set_default_device("cpu")\n')
    else:
        end = "raise ValueError" if where.startswith("failing") else 'torch.set_default_device("cpu"); return net()'
        body = "".join(f"    {line}\n" for line in [*CHANGES.strip().splitlines(), end])
        fails = pytest.raises(UserError) if where.startswith("failing") else contextlib.nullcontext()
        with fails:
            load(f"def changing():\n{body}", "changing")
    assert settings() == before


def test_warnings_of_libraries_do_not_reach_the_terminal_and_notes_do(load):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier = load(
            "import warnings\nimport torch\nwarnings.warn('deprecated')\ntorch.set_default_dtype(torch.double)\n"
        )
    assert classifier.notes


def test_the_file_of_an_attack_function_changes_nothing_either(tmp_path):
    before = settings()
    (tmp_path / "attack.py").write_text(f"{CHANGES}\n\ndef attack(*arguments):\n    return 5\n")
    assert load_function(str(tmp_path / "attack.py"), "attack")() == 5
    assert settings() == before
