"""`robust attack`: what it writes and prints, and one line for everything a user can get wrong."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from fault_commands import Command
from fault_injections import heeding_ctrl_c
from PIL import Image
from safetensors.torch import save_file

from robustbench_local.models import build_architecture
from robustbench_local.results.reading import read_result, read_samples


def test_without_arguments_the_bundled_digits_are_attacked(robust, tmp_path):
    outcome = robust("attack")
    assert outcome.code == 0
    assert outcome.out == ""
    assert "digits-cnn on digits (360 of 360 images), L∞ 0.1" in outcome.err
    assert all(word in outcome.err for word in ("clean", "fgsm", "pgd", "robust", "fast/2", "result: runs/"))
    (output,) = (tmp_path / "runs").glob("*.json")
    result = read_result(output)
    assert result.protocol.name == "fast"
    assert result.threat_model.eps == 0.1
    assert result.data.n == 360
    assert len(read_samples(result, output)) == 360


def test_json_is_alone_on_stdout(robust, tmp_path):
    outcome = robust("attack", "--samples", 40, "--json", "--output", "r.json")
    assert outcome.code == 0
    assert json.loads(outcome.out) == json.loads((tmp_path / "r.json").read_text())


def test_attacks_by_name_are_recorded(robust, tmp_path):
    outcome = robust(
        "attack",
        "digits-cnn-robust",
        "--samples",
        50,
        "--attack",
        "fgsm",
        "--attack",
        "pgd:steps=5,restarts=2,step-size=2/255",
        "--norm",
        "l2",
        "--eps",
        "1/2",
        "--output",
        "r.json",
        "--no-diagnostics",
    )
    assert outcome.code == 0
    result = read_result(tmp_path / "r.json")
    assert [attack.name for attack in result.attacks] == ["fgsm", f"pgd:steps=5,restarts=2,step-size={2 / 255}"]
    assert result.protocol.name == "custom"
    assert result.threat_model.eps_text == "1/2"
    assert result.data.subset_seed == 0


def test_config_file_gives_defaults_and_flags_win(robust, tmp_path):
    (tmp_path / "c.yaml").write_text("data: digits\neps: 0.05\nsamples: 30\nattack: [fgsm]\n")
    assert robust("attack", "--config", "c.yaml", "--eps", "0.2", "--output", "r.json").code == 0
    result = read_result(tmp_path / "r.json")
    assert (result.threat_model.eps, result.data.n, result.attacks[0].name) == (0.2, 30, "fgsm")


def test_a_checkpoint_and_an_image_folder(robust, tmp_path):
    torch.manual_seed(0)
    save_file(build_architecture("cnn-small").state_dict(), tmp_path / "net.safetensors")
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    outcome = robust(
        "attack",
        "net.safetensors",
        "--arch",
        "cnn-small",
        "--data",
        "imagefolder:photos",
        "--eps",
        "8/255",
        "--output",
        "r.json",
    )
    assert outcome.code == 0, outcome.err
    assert read_result(tmp_path / "r.json").data.n == 6


FACTORY = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
def color(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
def softmaxed(): return nn.Sequential(net(), nn.Softmax(1))
def broken():
    model = net()
    model[1].weight.data[0, 0] = float("nan")
    return model
class Halved(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x):
        return self.net(x * 0.5)
def halved(): return Halved(InPlace().net)
def exits(): raise SystemExit(0)
def talks():
    print("HELLO")
    return net()
class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, x):
        return self.net(x.mul_(0.5))
class Late(InPlace):
    calls = 0
    def forward(self, x):
        self.calls += 1
        if self.calls > 24: raise RuntimeError("late failure")
        return self.net(x)
class Alone(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10, track_running_stats=False))
    def forward(self, x): return self.net(x)
def slow():
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()
        def forward(self, x):
            import time; time.sleep(0.02)
            return self.net(x)
    return Slow()
"""


@pytest.fixture
def files(tmp_path):
    """One folder with everything that a user can get wrong."""
    (tmp_path / "f.py").write_text(FACTORY)
    digits = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    labels = np.arange(20) % 10
    np.savez(tmp_path / "good.npz", images=digits, labels=labels)
    np.savez(tmp_path / "gray_levels.npz", images=digits * 255, labels=labels)
    np.savez(tmp_path / "normalized.npz", images=digits * 4 - 2, labels=labels)
    np.savez(tmp_path / "labels.npz", images=digits, labels=labels + 1)
    np.savez(tmp_path / "empty.npz", images=digits[:0], labels=labels[:0])
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html>sign in</html>")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    save_file(build_architecture("cnn-small").state_dict(), tmp_path / "small.safetensors")
    (tmp_path / "file").write_text("")
    (tmp_path / "map.yaml").write_text("samples: {a: 1}\n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bad.yaml").write_text("epss: 0.1\n")
    (tmp_path / "tag.yaml").write_text("eps: !!python/object/apply:os.system ['touch pwned']\n")
    return tmp_path


GOOD = ("--data", "npz:good.npz", "--eps", "0.1")
BAD = {
    "resume without a name": (["digits-cnn", "--resume"], "--output"),
    "unknown precision": (["digits-cnn", "--precision", "fp16"], "bf16"),
    "precision of another device": (["digits-cnn", "--precision", "tf32", "--device", "cpu"], "NVIDIA"),
    "AutoAttack in L1": (["digits-cnn", "--norm", "l1", "--eps", "1", "--suite", "autoattack"], "--suite standard"),
    "solver in L2": (["digits-cnn", "--norm", "l2", "--eps", "0.5", "--attack", "regions"], "L∞"),
    "no queries": (["digits-cnn", "--attack", "square:steps=0"], "at least 1"),
    "fewer targets than none": (["digits-cnn", "--attack", "apgd:targets=-1"], "at least 0"),
    "unknown schedule": (["digits-cnn", "--attack", "pgd:schedule=linear"], "cosine"),
    "momentum of a perpetuum mobile": (["digits-cnn", "--attack", "pgd:momentum=1"], "below 1"),
    "no such model": (["digit-cnn"], "digits-cnn"),
    "missing model file": (["gone.pt", "--arch", "cnn-small", *GOOD], "gone.pt"),
    "missing factory file": (["gone.py:net", *GOOD], "gone.py"),
    "missing factory": (["f.py:nett", *GOOD], "'net'"),
    "missing data": (["f.py:net", "--data", "npz:gone.npz", "--eps", "0.1"], "gone.npz"),
    "unknown data": (["f.py:net", "--data", "cifra10"], "cifar10"),
    "wrong architecture": (["small.safetensors", "--arch", "cnn-medium", *GOOD], "small.safetensors"),
    "web page": (["page.pt", "--arch", "cnn-small", *GOOD], "web page"),
    "gray levels": (["f.py:net", "--data", "npz:gray_levels.npz", "--eps", "0.1"], "255"),
    "normalized": (["f.py:net", "--data", "npz:normalized.npz", "--eps", "0.1"], "--normalize"),
    "labels": (["f.py:net", "--data", "npz:labels.npz", "--eps", "0.1"], "label 10"),
    "empty": (["f.py:net", "--data", "npz:empty.npz", "--eps", "0.1"], "empty"),
    "NaN weights": (["f.py:broken", *GOOD], "NaN"),
    "gray into color": (["f.py:color", *GOOD], "3 channels"),
    "eps of gray levels": (["f.py:net", "--data", "npz:good.npz", "--eps", "8"], "8/255"),
    "eps missing": (["f.py:net", "--data", "npz:good.npz"], "--eps"),
    "eps no number": (["f.py:net", "--data", "npz:good.npz", "--eps", "small"], "small"),
    "unknown attack": (["--attack", "pdg"], "'pgd'"),
    "unknown setting": (["--attack", "pgd:step=3"], "'steps'"),
    "unknown suite": (["--suite", "fats"], "'fast'"),
    "suite and attack": (["--suite", "fast", "--attack", "pgd"], "not both"),
    "unwritable": (["--output", "file/r.json"], "file/r.json"),
    "output is a folder": (["--output", "photos"], "directory"),
    "corrupt image": (["f.py:net", "--data", "imagefolder:photos", "--eps", "0.1"], "torn.png"),
    "batch size": (["--batch-size", "0"], "--batch-size"),
    "samples": (["--samples", "1000"], "360"),
    "device": (["--device", "gpu9"], "--device"),
    "source without target": (["--source", "3"], "target"),
    "target that does not exist": (["--target", "12"], "12"),
    "config with an unknown option": (["--config", "bad.yaml"], "'eps'"),
    "config with a tag": (["--config", "tag.yaml"], "tag.yaml"),
    "model forgotten": (["--data", "cifar10"], "name the model"),
    "unknown option": (["--epss", "0.1"], "--eps"),
    "normalize": (["f.py:net", *GOOD, "--normalize", "imagnet"], "imagenet"),
    "factory that exits": (["f.py:exits", *GOOD], "SystemExit"),
    "model that fails": (["f.py:Late", *GOOD], "late failure"),
    "output is a pipe": (["--output", "pipe"], "pipe"),
    "far too many steps": (["--attack", "pgd:steps=99999999999999999999"], "steps"),
    "device without memory": (["--device", "meta"], "--device"),
    "config with a mapping": (["--config", "map.yaml"], "samples"),
    "eps with two bars": (["--eps", "8/255/2"], "8/255/2"),
    "no usual eps": (["--norm", "l2"], "--eps 0.5"),
    "crop larger than size": (["f.py:color", "--data", "imagefolder:photos", "--resize", "8:9"], "--resize"),
    "resize of an array": (["f.py:net", *GOOD, "--resize", "8"], "--resize"),
    "empty data name": (["f.py:net", "--data", "", "--eps", "0.1"], "dataset"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(robust, files, case):
    arguments, word = BAD[case]
    before = {path: path.stat().st_mtime_ns for path in files.rglob("*")}
    outcome = robust("attack", *arguments)
    assert outcome.code == 2, outcome.err
    assert word in outcome.err
    assert "Traceback" not in outcome.err
    assert len(outcome.err.strip().splitlines()) <= (12 if case == "wrong architecture" else 4), outcome.err
    after = {path: path.stat().st_mtime_ns for path in files.rglob("*") if "__pycache__" not in str(path)}
    if case == "model that fails":  # half-way, when there was something to lose
        (journal,) = (path for path in after if path.suffix == ".partial")
        assert "--resume" in outcome.err
        assert after.pop(journal)
    assert {path for path in after if path.is_file()} == {path for path in before if path.is_file()}, "nothing written"


def test_a_model_that_works_in_place_is_attacked_all_the_same(robust, files):
    margins = []
    for model in ("InPlace", "halved"):
        assert robust("attack", f"f.py:{model}", *GOOD, "--samples", 10, "--output", "r.json").code == 0
        margins.append([sample.margin for sample in read_samples(read_result(files / "r.json"), files / "r.json")])
    assert margins[0] == margins[1]


def test_what_a_model_prints_does_not_spoil_the_json(robust, files):
    outcome = robust("attack", "f.py:talks", *GOOD, "--json", "--output", "r.json")
    assert outcome.code == 0
    assert json.loads(outcome.out)
    assert "HELLO" in outcome.err


def test_a_link_is_written_through(robust, tmp_path):
    (tmp_path / "r.json").symlink_to(tmp_path / "real.json")
    assert robust("attack", "--samples", 10, "--attack", "fgsm", "--output", "r.json").code == 0
    assert (tmp_path / "r.json").is_symlink()
    assert read_result(tmp_path / "real.json")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["list", "datasets"], 0), (["gate", "r.json", "--min-clean", "1", "--json"], 3)]
)
def test_a_reader_that_leaves_early_changes_no_outcome(files, robust, arguments, code):
    quickly = ("--attack", "fgsm", "--no-diagnostics")
    assert robust("attack", "f.py:net", *GOOD, *quickly, "--output", "r.json").code == 0
    script = "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); sys.argv = ['robust', *sys.argv[1:]]\n"
    script += "from robustbench_local.cli import main\nmain()"
    command = [sys.executable, "-c", script, *arguments]
    ran = subprocess.run(command, cwd=files, capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_softmax_model_is_warned_of_and_attacked(robust, files):
    outcome = robust("attack", "f.py:softmaxed", *GOOD, "--output", "r.json", "--no-diagnostics")
    assert outcome.code == 0
    assert "softmax" in outcome.err
    assert read_result(files / "r.json").verdict.status == "doubtful"


def test_a_model_for_many_images_only_is_asked_about_pairs_and_not_trusted(robust, files):
    outcome = robust("attack", "f.py:Alone", *GOOD, "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["verdict"]["status"] != "trusted"
    assert next(each for each in result["diagnostics"] if each["slug"] == "batch-independent")["status"] == "warn"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_keeps_what_was_decided(files):
    attacks = ("--attack", "fgsm", "--attack", "pgd:steps=2000,step-size=0", "--batch-size", "5")
    # A suite that runs in a shell's background ignores the signal, and so would its children.
    command = Command(files, "attack", "f.py:slow", *GOOD, *attacks, "--output", "r.json", prepare=[heeding_ctrl_c])
    partial = files / "r.samples.jsonl.partial"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (partial.exists() and "search" in partial.read_text()):
        time.sleep(0.1)
    command.send(signal.SIGINT)
    assert command.wait() == 130, command.err
    assert "Traceback" not in command.err
    assert "--output r.json --resume" in command.err
    kinds = [json.loads(line.partition(" ")[2])["kind"] for line in partial.read_text().splitlines()]
    assert kinds
    assert not (files / "r.json").exists()
