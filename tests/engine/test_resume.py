"""Runs that are killed, continued, or spread over processes: the same result, nothing lost, nothing counted twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from fault_commands import Command, ended, workers
from interrupting import StopAfter

from robustbench_local import Classifier, ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import APGD, PGD
from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.engine.journal import journal_path, journals
from robustbench_local.engine.ledger import record_path
from robustbench_local.engine.observer import Observer
from robustbench_local.errors import UserError

THREAT = ThreatModel("linf", 0.1)
ATTACKS = [PGD(steps=5), PGD(steps=10, restarts=2, loss="scaled-ce"), APGD(steps=5, targets=3, loss="dlr")]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits").subset(range(120))


@pytest.fixture(scope="module")
def model():
    return load_classifier("digits-cnn-robust")


def told(output):
    """The result and the record without what a clock says."""
    result = json.loads(output.read_text())
    for each in (result, *result["attacks"], result["cost"], *result["cost"]["parts"]):
        for name in ("created", "seconds", "image_steps_per_second", "peak_memory_bytes"):
            each.pop(name, None)
    return result, record_path(output).read_text()


@pytest.fixture(scope="module")
def references(model, digits, tmp_path_factory):
    """What an uninterrupted run leaves, without and with diagnostics."""
    outputs = [tmp_path_factory.mktemp("whole") / "r.json" for _ in range(2)]
    for diagnostics, output in enumerate(outputs):
        evaluate(model, digits, THREAT, attacks=ATTACKS, batch_size=16, output=output, diagnostics=bool(diagnostics))
    return [told(output) for output in outputs]


@pytest.fixture(scope="module")
def reference(references):
    return references[True]


def interrupted(model, digits, output, batches, **options):
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            model, digits, THREAT, attacks=ATTACKS, batch_size=16, output=output, observer=StopAfter(batches), **options
        )


@pytest.mark.parametrize(
    ("batches", "diagnostics"), [(0, False), (3, False), (8, False), (13, True), (20, False), (26, True)]
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(model, digits, references, tmp_path, batches, diagnostics):
    output = tmp_path / "r.json"
    interrupted(model, digits, output, batches, diagnostics=diagnostics)
    assert journals(output)
    assert not output.exists()
    options = {"attacks": ATTACKS, "batch_size": 16, "diagnostics": diagnostics}
    evaluate(model, digits, THREAT, output=output, resume=True, **options)
    assert told(output) == references[diagnostics]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.samples.jsonl"]


def test_a_run_may_be_interrupted_again_and_again(model, digits, reference, tmp_path):
    output = tmp_path / "r.json"
    interrupted(model, digits, output, 4)
    for _ in range(30):
        before = journal_path(output).stat().st_size
        try:
            evaluate(
                model, digits, THREAT, attacks=ATTACKS, batch_size=16, output=output, resume=True, observer=StopAfter(4)
            )
            break
        except KeyboardInterrupt:
            assert journal_path(output).stat().st_size > before
    assert told(output) == reference


def test_a_line_cut_off_in_the_middle_is_forgotten(model, digits, references, tmp_path):
    output = tmp_path / "r.json"
    interrupted(model, digits, output, 12, diagnostics=False)
    whole = journal_path(output).read_bytes()
    journal_path(output).write_bytes(whole[:-40])
    options = {"attacks": ATTACKS, "batch_size": 16, "diagnostics": False}
    evaluate(model, digits, THREAT, output=output, resume=True, **options)
    assert told(output) == references[False]


def test_resuming_a_complete_run_gives_its_result(model, digits, tmp_path):
    output = tmp_path / "r.json"
    first = evaluate(model, digits, THREAT, attacks=[PGD(steps=2)], output=output)
    stamp = output.stat().st_mtime_ns
    again = evaluate(model, digits, THREAT, attacks=[PGD(steps=2)], output=output, resume=True)
    assert again.result == first.result
    assert again.samples == first.samples
    assert output.stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="another run"):
        evaluate(model, digits, THREAT, attacks=[PGD(steps=3)], output=output, resume=True)


@pytest.mark.parametrize("changed", ["model", "samples", "threat model", "attacks", "seed", "pixels"])
def test_another_run_is_not_resumed(model, digits, tmp_path, changed):
    output = tmp_path / "r.json"
    interrupted(model, digits, output, 12)
    before = journal_path(output).read_bytes()
    options = {"attacks": ATTACKS, "seed": 0}
    threat_model = THREAT
    match = f"another .*{changed}"
    if changed == "model":
        model = load_classifier("digits-cnn")
    elif changed == "samples":
        digits = digits.subset(range(100))
    elif changed == "threat model":
        threat_model = ThreatModel("linf", 0.11)
    elif changed == "attacks":
        options["attacks"] = ATTACKS[:2]
    elif changed == "seed":
        options["seed"] = 1
    else:
        images = digits.images(range(len(digits))).clone()
        images[7, 0, 0, 0] += 0.25
        digits = type(load_dataset("digits"))(images, digits.labels, name=digits.name, split=digits.split)
        match = "has changed"
    with pytest.raises(UserError, match=match):
        evaluate(model, digits, threat_model, output=output, resume=True, **options)
    assert journal_path(output).read_bytes() == before, "nothing is lost by asking"


def test_a_damaged_journal_is_refused(model, digits, tmp_path):
    output = tmp_path / "r.json"
    interrupted(model, digits, output, 12)
    lines = journal_path(output).read_text().splitlines(keepends=True)
    journal_path(output).write_text("".join([*lines[:3], "{}\n", *lines[4:]]))
    with pytest.raises(UserError, match="line 4 is damaged"):
        evaluate(model, digits, THREAT, attacks=ATTACKS, output=output, resume=True)


def test_a_fresh_start_does_not_throw_away_what_was_found(model, digits, references, tmp_path):
    output = tmp_path / "r.json"
    interrupted(model, digits, output, 12, diagnostics=False)
    before = journal_path(output).read_bytes()
    with pytest.raises(UserError, match="--resume to continue"):
        evaluate(model, digits, THREAT, attacks=ATTACKS, batch_size=16, output=output, diagnostics=False)
    assert journal_path(output).read_bytes() == before
    journal_path(output).unlink()
    journal_path(output, 1).write_text("of another process\n")
    evaluate(model, digits, THREAT, attacks=ATTACKS, batch_size=16, output=output, diagnostics=False)
    assert told(output) == references[False]
    assert not journals(output)


@pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
def test_two_runs_do_not_write_one_record(model, digits, tmp_path):
    output = tmp_path / "r.json"

    class Second(Observer):
        """While one run is under way, starts another."""

        def begin(self, stage, total, done=0):
            for resume in (True, False):
                with pytest.raises(UserError, match="another run is writing"):
                    evaluate(
                        model, digits, THREAT, attacks=ATTACKS[:1], diagnostics=False, output=output, resume=resume
                    )

    evaluate(model, digits, THREAT, attacks=ATTACKS[:1], diagnostics=False, output=output, observer=Second())


class Tempered(torch.nn.Module):
    """The same weights, other code."""

    def __init__(self, inner, divisor):
        super().__init__()
        self.inner = inner
        self.divide = lambda logits: logits / divisor

    def forward(self, images):
        return self.divide(self.inner(images))


def test_other_code_with_the_same_weights_is_another_run(model, digits, tmp_path):
    made = [Classifier(Tempered(model.module, divisor), input_shape=(1, 8, 8)) for divisor in (1, 20)]
    output = tmp_path / "r.json"
    interrupted(made[0], digits, output, 12)
    with pytest.raises(UserError, match="another model"):
        evaluate(made[1], digits, THREAT, attacks=ATTACKS, output=output, resume=True)


def test_a_complete_run_on_other_pixels_is_another_run(model, digits, tmp_path):
    output = tmp_path / "r.json"
    images = digits.images(range(40)).clone()
    made = [ArrayDataset(pixels, digits.labels[:40]) for pixels in (images, images * 0.9)]
    evaluate(model, made[0], THREAT, attacks=ATTACKS[:1], diagnostics=False, output=output)
    with pytest.raises(UserError, match="another run"):
        evaluate(model, made[1], THREAT, attacks=ATTACKS[:1], diagnostics=False, output=output, resume=True)


COMMAND = [
    "attack",
    "digits-cnn-robust",
    "--samples",
    "90",
    "--batch-size",
    "16",
    "--device",
    "cpu",
    "--attack",
    "pgd:steps=10,loss=scaled-ce",
    "--attack",
    "apgd:steps=10,loss=dlr,targets=3",
    "--output",
    "r.json",
]


@pytest.fixture
def folder(tmp_path):
    """Where a command runs; what it prints is kept beside it."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def wait_until(happened, *commands):
    deadline = time.monotonic() + 60
    while all(each.process.is_alive() for each in commands) and time.monotonic() < deadline and not happened():
        time.sleep(0.002)


def kill_and_resume(folder, times, seed):
    """Kill the command at random moments and resume it until it has ended; how often it was killed."""
    journal, moments, killed = journal_path(folder / "r.json"), random.Random(seed), 0

    def length():
        return journal.stat().st_size if journal.exists() else 0

    for attempt in range(times + 1):
        before = length()
        command = Command(folder, *COMMAND, *["--resume"] * (attempt > 0))
        if attempt < times:
            wait_until(lambda before=before: length() > before, command)
            time.sleep(moments.uniform(0, 0.1))
            command.send(signal.SIGKILL)
        code = command.wait(120)
        killed += code == -signal.SIGKILL
        if code == 0:
            break
    assert (folder / "r.json").exists()
    return killed


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    command = ended(folder, *COMMAND)
    assert command.process.exitcode == 0, command.err
    return told(folder / "r.json")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killed_processes_lose_and_double_nothing(folder, uninterrupted):
    assert kill_and_resume(folder, 2, seed=1) >= 1
    assert told(folder / "r.json") == uninterrupted


@pytest.mark.soak
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("seed", range(20))
def test_twenty_runs_killed_at_random_moments(folder, uninterrupted, seed):
    killed = kill_and_resume(folder, 4, seed)
    print(f"\nrun {seed}: killed {killed} times", end="")
    assert told(folder / "r.json") == uninterrupted


def forked(folder):
    """The command in two processes; stdout and stderr of both."""
    commands = workers(folder, *COMMAND, "--json")
    assert [command.wait(120) for command in commands] == [0, 0], [command.err for command in commands]
    return "".join(command.out for command in commands), "".join(command.err for command in commands)


def torchrun(folder):
    run = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(random.randint(20000, 60000))]
    ended = subprocess.run(
        [sys.executable, *run, "-m", "robustbench_local", *COMMAND, "--json"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, ended.stderr


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.parametrize("start", [forked, pytest.param(torchrun, marks=pytest.mark.soak)])
def test_two_processes_give_the_verdicts_of_one(start, folder, uninterrupted):
    out, err = start(folder)
    result, record = told(folder / "r.json")
    assert result["config"].pop("processes") == 2
    assert json.loads(out)["config"]["processes"] == 2
    expected, samples = uninterrupted
    expected = {**expected, "config": {**expected["config"]}}
    assert expected["config"].pop("processes") == 1
    assert (result, record) == (expected, samples)
    assert sorted(path.name for path in folder.iterdir()) == ["r.json", "r.samples.jsonl"]
    assert err.count("all attacks") == 1, "one process speaks"


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_what_two_processes_began_one_can_end(folder, uninterrupted):
    output = folder / "r.json"
    second = journal_path(output, 1)
    commands = workers(folder, *COMMAND)
    wait_until(lambda: second.exists() and '"search"' in second.read_text(), *commands)
    for command in commands:
        command.send(signal.SIGTERM)
    for command in commands:
        command.wait()
    if output.exists():
        pytest.skip("the run ended before it could be killed")
    resumed = ended(folder, *COMMAND, "--resume")
    assert resumed.process.exitcode == 0, resumed.err
    assert told(output) == uninterrupted
    assert sorted(path.name for path in folder.iterdir()) == ["r.json", "r.samples.jsonl"]
