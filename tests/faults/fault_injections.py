"""What is done to a process before its command starts, and undone after it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

NEWNS, PRIVATE = 0x00020000, 1 << 14 | 1 << 18
"""CLONE_NEWNS; MS_REC and MS_PRIVATE, so that nobody else sees what is mounted."""


@contextlib.contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file may become larger than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """The folder, with what is in it, lies on a disk of that size; what is on it in the end is put back."""
    libc = ctypes.CDLL(None, use_errno=True)
    behind = os.open(folder, os.O_RDONLY)

    def require(status: int) -> None:
        if status != 0:
            raise OSError(ctypes.get_errno(), "no disk could be made")

    require(libc.unshare(NEWNS))
    require(libc.mount(b"none", b"/", None, PRIVATE, None))
    require(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=%dk" % kilobytes))
    shutil.copytree(Path(f"/proc/self/fd/{behind}"), folder, dirs_exist_ok=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.fchdir(behind)
        for path in Path().iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(folder, Path(), dirs_exist_ok=True)


def may_mount() -> bool:
    """Whether this process may make disks of its own."""
    if sys.platform != "linux":
        return False
    child = os.fork()
    if child == 0:
        libc = ctypes.CDLL(None)
        os._exit(libc.unshare(NEWNS) or libc.mount(b"none", b"/", None, PRIVATE, None))
    return os.waitpid(child, 0)[1] == 0


@contextlib.contextmanager
def deleted_at(folder: Path, line: int) -> Iterator[None]:
    """The folder is gone when the journal has so many lines."""
    from robustbench_local.engine.journal import Journal

    add, lines = Journal.add, []

    def delete(journal, event):
        add(journal, event)
        lines.append(event)
        if len(lines) == line:
            shutil.rmtree(folder)

    Journal.add = delete
    yield


@contextlib.contextmanager
def bound_by_permissions() -> Iterator[None]:
    """The superuser is refused what permissions refuse to others."""
    if os.geteuid() == 0 and sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        held = (ctypes.c_uint32 * 6)()
        libc.capget(header, held)
        held[0] &= ~0b110  # of those in effect CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        if libc.capset(header, held) != 0:
            raise OSError(ctypes.get_errno(), "the superuser's rights could not be dropped")
    yield


@contextlib.contextmanager
def without_locks() -> Iterator[None]:
    """Like a network file system that knows no locks."""
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    kept, fcntl.flock = fcntl.flock, refuse
    try:
        yield
    finally:
        fcntl.flock = kept


@contextlib.contextmanager
def jumping_clocks(seed: int) -> Iterator[None]:
    """Every look at a clock may find that it has been set forward or back by hours."""
    moments, hours = random.Random(seed), [0.0]
    kept = {name: getattr(time, name) for name in ("time", "monotonic", "perf_counter")}

    def jumping(clock):
        def now():
            if moments.random() < 0.2:
                hours[0] = moments.uniform(-5000, 5000)
            return clock() + 3600 * hours[0]

        return now

    for name, clock in kept.items():
        setattr(time, name, jumping(clock))
    try:
        yield
    finally:
        for name, clock in kept.items():
            setattr(time, name, clock)


@contextlib.contextmanager
def closed(handle: int) -> Iterator[None]:
    """Stdout or stderr was closed before the command began, as by `>&-`."""
    os.close(handle)
    setattr(sys, {1: "stdout", 2: "stderr"}[handle], None)
    yield


@contextlib.contextmanager
def onto(handle: int, target: int | str) -> Iterator[None]:
    """Stdout or stderr goes to another handle, or to a file such as /dev/full."""
    os.dup2(os.open(target, os.O_WRONLY) if isinstance(target, str) else target, handle)
    yield


@contextlib.contextmanager
def killed_in_the_second_epoch() -> Iterator[None]:
    """A training whose every step is saved is killed at the second epoch's third batch."""
    import robustbench_local.training.loop as loop
    from robustbench_local.training.step import TrainingStep

    learn, loop.SAVE_SECONDS = TrainingStep.train_batch, 0

    def deadly(step, batch, epoch, number, **settings):
        if (epoch, number) == (2, 3):
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(step, batch, epoch, number, **settings)

    TrainingStep.train_batch = deadly
    yield


@contextlib.contextmanager
def heeding_ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, whatever the parent does with it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
