"""Fixtures of every test."""

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from result_files import write_result

from robustbench_local.cli import main

ROOT = Path(__file__).resolve().parents[1]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def pytest_sessionfinish(session):
    """A worker of xdist that still tidies up five seconds after its last test is sent SIGINT, to no good.

    The KeyboardInterrupt would be printed from wherever it happens, such as the callback of a weak dictionary.
    """
    if hasattr(session.config, "workerinput"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of real data and published checkpoints; tests that need it are skipped where it is absent."""
    directory = Path(os.environ.get("ROBUST_SHARED", ROOT.parent / "shared"))
    if not (directory / "published" / "manifest.json").is_file():
        pytest.skip(f"no published checkpoints in {directory.name}/ (set ROBUST_SHARED)")
    return directory


@pytest.fixture
def robust(capsys, monkeypatch, tmp_path):
    """Run the command line in this process, in a new working directory; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["robust", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return Outcome(end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def make_result():
    """Write a result file and its samples."""
    return write_result


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Threads that share a core wait for each other, and the order of a sum changes its last bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
