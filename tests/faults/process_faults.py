"""Processes that are killed, interrupted, robbed of their fellows, their readers or their exclusiveness."""

from __future__ import annotations

import functools
import json
import os
import signal
import time

from fault_commands import (
    COMMAND,
    Command,
    begun,
    ended,
    kill_and_resume,
    require_same,
    require_same_outcome,
    require_tidy,
    require_trained,
    told,
    train_and_resume,
    workers,
)
from fault_injections import closed, onto, without_locks
from fault_scene import Scene

from robustbench_local.engine.journal import journal_path
from robustbench_local.errors import UserError
from robustbench_local.results.reading import read_result, read_samples


def killed_evaluation(scene: Scene) -> None:
    codes = kill_and_resume(scene.folder, scene.moments, kills=2, longest=0.15)
    assert set(codes) <= {-signal.SIGKILL, 0}
    assert codes[-1] == 0
    scene.require_whole()


def killed_diagnostics(scene: Scene) -> None:
    """With the attacks that the diagnosis adds."""
    whole = scene.folder.with_name("whole")
    whole.mkdir()
    assert ended(whole, *COMMAND, "--output", "r.json", "--diagnostics").process.exitcode == 0
    codes = kill_and_resume(scene.folder, scene.moments, "--diagnostics", kills=2, longest=1.5)
    assert set(codes) <= {-signal.SIGKILL, 0}
    assert codes[-1] == 0
    require_same_outcome(told(scene.output), told(whole / "r.json"))


def killed_training(scene: Scene) -> None:
    codes = train_and_resume(scene.folder, scene.moments, kills=2)
    assert set(codes) <= {-signal.SIGKILL, 0}
    assert codes[-1] == 0
    require_trained(scene.folder, scene.trained)


def killed_update(scene: Scene) -> None:
    """The baseline and its record are the old pair or the new one; where they are of two, that is said."""
    for model, name in (("digits-cnn", "old.json"), ("digits-cnn-robust", "r.json")):
        assert ended(scene.folder, "attack", model, *COMMAND[1:], "--output", name).process.exitcode == 0
    pairs = [(path, path.with_name(f"{path.stem}.samples.jsonl")) for path in (scene.folder / "old.json", scene.output)]
    (baseline, record), (_, newest) = pairs
    old, new = record.read_bytes(), newest.read_bytes()
    gate = ["gate", "r.json", "--baseline", "old.json", "--max-drop", "0.5", "--update-baseline"]
    command = Command(scene.folder, *gate)
    time.sleep(scene.moments.uniform(0, 0.3))
    command.send(signal.SIGKILL)
    assert command.wait() in (-signal.SIGKILL, 0)
    assert record.read_bytes() in (old, new)
    slug = ""
    try:
        read_samples(read_result(baseline), baseline)
    except UserError as error:
        slug = error.slug
    if not slug:
        command = ended(scene.folder, *gate)
        assert command.process.exitcode == 0, command.err
    assert slug in ("", "samples-do-not-match"), slug
    assert record.read_bytes() == new
    require_tidy(scene.folder)


def interrupted_evaluation(scene: Scene) -> None:
    for number in range(3):
        command = scene.start(*["--resume"] * (number > 0))
        begun(scene.output)
        time.sleep(scene.moments.uniform(0, 0.12))
        command.send(scene.moments.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
        code = command.wait()
        assert code in (0, 130), command.err
        assert "Traceback" not in command.err, command.err
        if code == 0:
            break
        if journal_path(scene.output).exists():
            assert "--output r.json --resume" in command.err
    scene.require_resumed()


def dead_worker(scene: Scene) -> None:
    def start(*more: str) -> list[Command]:
        return workers(scene.folder, *COMMAND, "--output", "r.json", *more)

    started = start()
    while not all(journal_path(scene.output, rank).exists() for rank in range(2)):
        time.sleep(0.001)
    time.sleep(scene.moments.uniform(0, 0.1))
    victim = scene.moments.randrange(2)
    started[victim].send(signal.SIGKILL)
    code, other = started[victim].wait(), started[1 - victim]
    if code == 0:  # it was through before
        assert other.wait() == 0
    elif other.wait(30) != 0:
        assert code == -signal.SIGKILL
        scene.require_refused(other, "another process of this run has ended", "--resume")
    together = scene.moments.random() < 0.5
    for worker in start("--resume") if together else [scene.start("--resume")]:
        assert worker.wait() == 0, worker.err
    result, record = told(scene.output)
    # Those that were through before were two.
    assert result["config"]["processes"] == 1 + (together or code == 0)
    result["config"]["processes"] = 1
    require_same(result, scene.expected[0])
    # Their batches are cut otherwise than those of one, which moves a last digit here and there.
    samples = [[json.loads(line) for line in each.splitlines()] for each in (record, scene.expected[1])]
    require_same(*samples, rounding=1e-5)
    require_tidy(scene.folder)


def two_runs(scene: Scene) -> None:
    # Held up at a random moment, the first run is there for as long as it takes the others to see it.
    first = scene.started_then(0.05)
    first.send(signal.SIGSTOP)
    running = not scene.output.exists()
    for more in ((), ("--resume",)):
        second = scene.run(*more, log=scene.folder.with_name("second"))
        if running:
            scene.require_refused(second, "another run is writing")
    first.send(signal.SIGCONT)
    assert first.wait() == 0, first.err
    scene.require_whole()


def two_runs_without_locks(scene: Scene) -> None:
    scene.interrupted()
    runs = [
        scene.start("--resume", prepare=[without_locks], log=scene.folder.with_name(f"run{number}"))
        for number in range(2)
    ]
    time.sleep(scene.moments.uniform(0.1, 0.4))
    for run in runs:
        run.send(signal.SIGKILL)
        run.wait()
    scene.require_resumed()


def reader_leaves(scene: Scene) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    path = f"/proc/{os.getpid()}/fd/{writing}"
    both = [functools.partial(onto, 2, path)]
    if scene.moments.random() < 0.5:
        both.append(functools.partial(onto, 1, path))
    command = scene.start("--json", prepare=both)
    time.sleep(scene.moments.uniform(0.2, 0.5))  # it has to have opened its end, which is there until it has ended
    os.close(reading)
    assert command.wait() == 0
    os.close(writing)
    scene.require_whole()


def closed_output(scene: Scene) -> None:
    handle = scene.moments.choice([1, 2])
    command = scene.run(*["--json"] * (handle == 1), prepare=[functools.partial(closed, handle)])
    assert command.process.exitcode == (2 if handle == 1 else 0), command.err
    assert "Traceback" not in command.err
    scene.require_whole()


def full_output(scene: Scene) -> None:
    command = scene.run("--json", prepare=[functools.partial(onto, 1, "/dev/full")])
    scene.require_refused(command, "cannot write to stdout: No space left on device")
    scene.require_whole()


FAULTS = {
    "an evaluation is killed (kill -9)": killed_evaluation,
    "an evaluation is killed during its diagnostics": killed_diagnostics,
    "a training is killed": killed_training,
    "a baseline update is killed": killed_update,
    "ctrl-C, SIGTERM or SIGHUP": interrupted_evaluation,
    "one of several processes dies": dead_worker,
    "two runs with the same output": two_runs,
    "two runs with the same output, without file locks": two_runs_without_locks,
    "the reader of a pipe exits": reader_leaves,
    "stdout or stderr is closed": closed_output,
    "stdout is full": full_output,
}
