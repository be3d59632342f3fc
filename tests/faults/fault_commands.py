"""The command line in processes of its own, to be killed, starved and cut off.

They are forked from a server that has imported everything, so each begins at once; what is done to a process before
its command starts is a function of `fault_injections` or of here, because it has to be found again over there.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from robustbench_local.engine.journal import journal_path
from robustbench_local.engine.ledger import record_path

Prepare = Callable[[], contextlib.AbstractContextManager[None]]
OUT, ERR = "stdout.txt", "stderr.txt"
CLOCKED = ("created", "seconds", "image_steps_per_second", "peak_memory_bytes")
COMMAND = ["attack", "--samples", "60", "--suite", "fast", "--batch-size", "16", "--device", "cpu", "--no-diagnostics"]
TRAINING = [
    "defend",
    "--samples",
    "160",
    "--epochs",
    "3",
    "--batch-size",
    "32",
    "--method",
    "n-fgsm",
    "--suite",
    "fast",
    "--eval-samples",
    "8",
    "--device",
    "cpu",
    "--output",
    "t",
]

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "fault_commands",
        "robustbench_local.cli.attack",
        "robustbench_local.cli.gate",
        "robustbench_local.cli.defend",
        "robustbench_local.training.run",
        "robustbench_local.display.evaluation",
        "robustbench_local.display.training",
        "robustbench_local.models.loaders.user_code",
        "robustbench_local.runtime.distributed",
    ]
)


def _child(arguments: list[str], folder: Path, log: Path, environment: dict[str, str], prepare: list[Prepare]) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in ((1, OUT), (2, ERR)):
        handle = os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    sys.argv = ["robust", *arguments]
    from robustbench_local.cli import main

    torch.set_num_threads(1)
    with contextlib.ExitStack() as prepared:
        for each in prepare:
            prepared.enter_context(each())
        main()


class Command:
    """`robust ARGUMENTS` in a folder, under way."""

    def __init__(
        self,
        folder: Path,
        *arguments: object,
        prepare: list[Prepare] | None = None,
        log: Path | None = None,
        **environment: str,
    ):
        self._log = log or folder.with_name(f"{folder.name}-log")
        self._log.mkdir(exist_ok=True)
        told = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
        self.process = _server.Process(
            target=_child, args=([str(each) for each in arguments], folder, self._log, told, prepare or [])
        )
        self.process.start()

    def send(self, number: int) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait(self, seconds: float = 60) -> int:
        """The exit code; that of a signal is negative."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds:g} seconds: {self.err}")
        return self.process.exitcode

    @property
    def out(self) -> str:
        return (self._log / OUT).read_text()

    @property
    def err(self) -> str:
        return (self._log / ERR).read_text()


def ended(folder: Path, *arguments: object, **options) -> Command:
    """The command, after it has ended."""
    command = Command(folder, *arguments, **options)
    command.wait()
    return command


def workers(folder: Path, *arguments: object, **options) -> list[Command]:
    """Two processes of one run, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        Command(
            folder,
            *arguments,
            log=folder.with_name(f"{folder.name}-log-{rank}"),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            **options,
        )
        for rank in range(2)
    ]


def require_refusal(command: Command, *words: str) -> None:
    """It has ended as a fault should end: exit code 2 and one sentence, no traceback."""
    assert command.process.exitcode == 2, command.err
    assert "Traceback" not in command.err, command.err
    assert "Error:" not in command.err, command.err
    told = [line for line in command.err.splitlines() if line.startswith("robust: ")]
    assert len(told) == 1, command.err
    for word in words:
        assert word in told[0], told[0]


def require_tidy(folder: Path) -> None:
    """Nothing half-written lies about."""
    assert [path.name for path in folder.rglob(".*")] == []


def told(output: Path) -> tuple[dict, bytes]:
    """The result and the record without what a clock says."""
    result = json.loads(output.read_text())
    for each in (result, *result["attacks"], result["cost"], *result["cost"]["parts"]):
        for name in CLOCKED:
            each.pop(name, None)
    return result, record_path(output).read_bytes()


BATCH_ROUNDING = 1e-6
"""A resumed run has other batches, in which float32 sums may round otherwise."""


def require_same_outcome(found: tuple[dict, bytes], expected: tuple[dict, bytes]) -> None:
    """Says where two results, or their records, differ by more than the rounding of other batches."""
    records = ([json.loads(line) for line in record.splitlines()] for _, record in (found, expected))
    require_same(found[0], expected[0])
    require_same(*records, rounding=BATCH_ROUNDING)


def require_same(found: object, expected: object, place: str = "", rounding: float = 0.0) -> None:
    """Says where two values differ. rounding: how much numbers may, relative to their size."""
    if isinstance(found, dict) and isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for name in expected:
            require_same(found[name], expected[name], f"{place}.{name}", rounding)
    elif isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for number, pair in enumerate(zip(found, expected, strict=True)):
            require_same(*pair, f"{place}[{number}]", rounding)
    elif isinstance(found, float) and isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=rounding), place
    else:
        assert found == expected, place


def begun(output: Path, seconds: float = 60) -> int:
    """Wait until the run of that output has written more than it had; how long its journal is."""
    path = journal_path(output)
    length = path.stat().st_size if path.exists() else 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (path.exists() and path.stat().st_size > length) and not output.exists():
        time.sleep(0.001)
    return path.stat().st_size if path.exists() else 0


def kill_and_resume(folder: Path, moments: random.Random, *more: str, kills: int, longest: float) -> list[int]:
    """Run the command, kill it at random moments and resume it until it is through; the exit codes on the way."""
    output, codes = folder / "r.json", []
    for attempt in range(kills + 1):
        command = Command(folder, *COMMAND, "--output", "r.json", *more, *["--resume"] * (attempt > 0))
        if attempt < kills:
            if moments.random() < 0.8:
                begun(output)
            time.sleep(moments.uniform(0, longest))
            command.send(signal.SIGKILL)
        codes.append(command.wait())
        if codes[-1] == 0:
            break
    return codes


def train_and_resume(folder: Path, moments: random.Random, *, kills: int) -> list[int]:
    """Train, kill it at random moments and go on until it is through; the exit codes on the way."""
    codes = []
    for attempt in range(kills + 1):
        command = Command(folder, *TRAINING, *["--resume"] * (attempt > 0))
        if attempt < kills:
            time.sleep(moments.uniform(0.1, 1.0))
            command.send(signal.SIGKILL)
        codes.append(command.wait())
        if codes[-1] == 0:
            break
    return codes


def trained(folder: Path) -> dict[str, object]:
    """What a training has left behind, without what a clock says."""
    folder = folder / "t"
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for report in metrics:
        report.pop("seconds")
        report.pop("images_per_second")
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "metrics": metrics,
        "weights": (folder / "model.safetensors").read_bytes(),
        "result": told(folder / "result.json"),
    }


def require_trained(folder: Path, expected: dict[str, object]) -> None:
    require_same(trained(folder), expected)
