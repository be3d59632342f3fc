"""Help, listings and the other commands through the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_local import ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.cli import COMMANDS


def test_help_imports_nothing_heavy():
    code = (
        "import sys, robustbench_local.cli as c\n"
        "sys.argv = ['robust', '--help']\n"
        "try: c.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'pydantic', 'rich', 'art'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_an_example(robust, command):
    outcome = robust(command, "--help")
    assert outcome.code == 0
    assert f"robust {command}" in outcome.out.replace("Usage: robust", "")


def test_unknown_commands_name_the_nearest(robust):
    outcome = robust("atack")
    assert outcome.code == 2
    assert "'attack'" in outcome.err


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("models", ["digits-cnn", "digits-cnn-robust", "resnet18", "wide-resnet-28-10", "torchvision/resnet50"]),
        ("datasets", ["digits", "cifar10", "imagefolder:PATH", "npz:PATH"]),
        ("attacks", ["fgsm", "pgd", "art/DeepFool", "fast/1"]),
        ("defenses", ["pgd-at", "standard"]),
        ("configs", ["digits-cnn-robust"]),
    ],
)
def test_lists(robust, kind, expected):
    outcome = robust("list", kind)
    names = [line.split()[0] for line in outcome.out.splitlines()]
    assert outcome.code == 0
    assert set(expected) <= set(names)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Results of both bundled models on the digits."""
    folder = tmp_path_factory.mktemp("evaluated")
    for model in ("digits-cnn", "digits-cnn-robust"):
        output = folder / f"{model}.json"
        evaluate(load_classifier(model), load_dataset("digits"), ThreatModel("linf", 0.1), output=output)
    return folder


@pytest.fixture
def results(robust, evaluated, tmp_path):
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    return robust


def test_gate_exit_codes(results):
    robust = results
    assert robust("gate", "digits-cnn-robust.json", "--min-robust", "0.40", "--min-clean", "0.80").code == 0
    failed = robust("gate", "digits-cnn.json", "--min-robust", "0.60", "--min-clean", "0.80")
    assert failed.code == 3
    assert "gate: fail" in failed.err
    value = json.loads(Path("digits-cnn-robust.json").read_text())["robust_accuracy"]["value"]
    undecided = robust("gate", "digits-cnn-robust.json", "--min-robust", value - 0.005)
    assert undecided.code == 4
    assert "samples would decide" in undecided.err
    drop = ("--baseline", "digits-cnn-robust.json", "--max-drop", "0.02")
    assert robust("attack", "digits-cnn-robust", "--output", "again.json", "--no-diagnostics").code == 0
    assert robust("gate", "again.json", *drop).code == 0
    assert robust("gate", "digits-cnn.json", *drop).code == 3
    assert robust("attack", "--samples", 50, "--output", "fewer.json", "--no-diagnostics").code == 0
    assert robust("gate", "fewer.json", *drop).code == 5
    decision = json.loads(robust("gate", "digits-cnn.json", "--min-robust", "0.6", "--json").out)
    assert decision["outcome"] == "fail"
    assert decision["exit_code"] == 3


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["gone.json", "--min-robust", "0.4"], "gone.json"),
        (["digits-cnn.json"], "--min-robust"),
        (["digits-cnn.json", "--min-robust", "40"], "0.40"),
        (["digits-cnn.json", "--max-drop", "0.1"], "--baseline"),
        (["digits-cnn.samples.jsonl", "--min-robust", "0.4"], "not JSON"),
        (["digits-cnn.json", "--min-robust", "x"], "'x'"),
    ],
)
def test_gate_refuses_bad_input(results, arguments, word):
    outcome = results("gate", *arguments)
    assert outcome.code == 2
    assert word in outcome.err
    assert "Traceback" not in outcome.err


def test_doctor_says_what_it_found(robust, tmp_path):
    assert "clean accuracy" in robust("doctor").err
    (tmp_path / "f.py").write_text(
        "from robustbench_local import load_classifier\n"
        "from torch import nn\n"
        "class Half(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.inner = load_classifier('digits-cnn').module\n"
        "    def forward(self, x): return self.inner(x * 0.5 + 0.5)\n"
    )
    outcome = robust("doctor", "f.py:Half", "--data", "digits")
    assert outcome.code == 0
    assert "--normalize 0.5:0.5" in outcome.err


def test_importing_the_package_loads_nothing_heavy_and_lists_its_public_names():
    code = (
        "import sys, robustbench_local as package\n"
        "assert not {'torch', 'numpy', 'click'} & set(sys.modules)\n"
        "assert set(package.__all__) <= set(dir(package))\n"
        "assert all(hasattr(package, name) for name in package.__all__)\n"
        "assert not hasattr(package, 'evaluator')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
