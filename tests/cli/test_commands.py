"""Help, listings and the other commands through the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
        ("checks", ["forward-is-deterministic", "probes-find-no-more"]),
    ],
)
def test_lists(robust, kind, expected):
    outcome = robust("list", kind)
    names = [line.split()[0] for line in outcome.out.splitlines()]
    assert outcome.code == 0
    assert set(expected) <= set(names)


@pytest.fixture
def gated(robust, results, tmp_path):
    """The command line, in a folder with results of both bundled models on the digits."""
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    return robust


def test_gate_exit_codes(gated):
    robust = gated
    assert robust("gate", "strong.json", "--min-robust", "0.40", "--min-clean", "0.80").code == 0
    failed = robust("gate", "weak.json", "--min-robust", "0.60", "--min-clean", "0.80")
    assert failed.code == 3
    assert "gate: fail" in failed.err
    value = json.loads(Path("strong.json").read_text())["robust_accuracy"]["value"]
    undecided = robust("gate", "strong.json", "--min-robust", value - 0.005)
    assert undecided.code == 4
    assert "samples would decide" in undecided.err
    drop = ("--baseline", "strong.json", "--max-drop", "0.02")
    assert robust("attack", "digits-cnn-robust", "--output", "again.json", "--no-diagnostics").code == 0
    assert robust("gate", "again.json", *drop).code == 0
    assert robust("gate", "weak.json", *drop).code == 3
    assert robust("gate", "few.json", *drop).code == 5
    decision = json.loads(robust("gate", "weak.json", "--min-robust", "0.6", "--json").out)
    assert decision["outcome"] == "fail"
    assert decision["exit_code"] == 3


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["gone.json", "--min-robust", "0.4"], "gone.json"),
        (["weak.json"], "--min-robust"),
        (["weak.json", "--min-robust", "40"], "0.40"),
        (["weak.json", "--max-drop", "0.1"], "--baseline"),
        (["weak.samples.jsonl", "--min-robust", "0.4"], "not JSON"),
        (["weak.json", "--min-robust", "x"], "'x'"),
    ],
)
def test_gate_refuses_bad_input(gated, arguments, word):
    outcome = gated("gate", *arguments)
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
