"""Writes files so that a reader finds the old content or the new, never a part of it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from robustbench_local.errors import UserError

UNFINISHED = ".unfinished"
"""The suffix of a temporary file that will replace another once it is complete."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn the operating system's write errors into a UserError."""
    try:
        yield
    except OSError as error:
        fix = "make room there, or name" if error.errno in DISK_FULL else "name"
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; {fix} another path with --output",
            slug="disk-full" if error.errno in DISK_FULL else "cannot-write",
        ) from None


def _destination(path: Path) -> Path:
    """The file that is really written: the target of a link, and never a device or a pipe."""
    if path.is_symlink():
        with contextlib.suppress(FileNotFoundError):  # the target may not exist yet
            path.stat()  # refuses a link to itself, which some versions of resolve do not
        path = path.resolve()
    if path.is_dir():
        raise UserError(
            f"cannot write {path}: it is a directory; name a file in it with --output", slug="output-is-a-directory"
        )
    if path.exists() and not path.is_file():
        raise UserError(
            f"cannot write {path}: it is a device or a pipe; name a file with --output", slug="output-not-a-plain-file"
        )
    return path


def check_writable(path: Path) -> None:
    """Create the directory of `path` and a temporary file in it, before hours are spent on what will be written there.

    Raises UserError where that fails.
    """
    with writable(path):
        path = _destination(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def lock(handle: int, *, unknown: bool = True) -> bool:
    """Lock an open file or directory until it is closed; False where another process has locked it.

    unknown: the answer where locks do not exist, as on Windows and some network file systems.
    """
    try:
        import fcntl
    except ImportError:
        return unknown
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return unknown
    return True


@contextlib.contextmanager
def exclusive_directory(directory: Path) -> Iterator[None]:
    """Create a directory and keep other trainings out of it. Where the training is refused, it is removed if empty.

    Raises UserError where another process uses it, or where it cannot be created or written to.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(
            f"--output {directory} is a file, but a training needs a directory: name another", slug="output-is-a-file"
        )
    is_new = not directory.exists()
    with writable(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    with contextlib.ExitStack() as stack:
        if os.name != "nt":  # Windows does not open directories
            handle = os.open(directory, os.O_RDONLY)
            stack.callback(os.close, handle)
            if not lock(handle):
                raise UserError(
                    f"another training is running in {directory}: wait for it, or name another --output",
                    slug="output-in-use",
                )
        try:
            yield
        except UserError:
            if is_new:
                with contextlib.suppress(OSError):  # not empty
                    directory.rmdir()
            raise


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace the file in one move, after its new content has reached the disk.

    Raises UserError where it cannot be written. The old file is intact then.
    """
    write_all_or_none({path: data})


def write_all_or_none(contents: Mapping[Path, str | bytes]) -> None:
    """Replace several files, none before the new content of all of them has reached the disk.

    Raises UserError where one of them cannot be written. The old files are intact then.
    """
    destinations: dict[Path, Path] = {}
    for path in contents:
        with writable(path):
            destinations[path] = destination = _destination(path)
            destination.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(destination)
    moves: list[tuple[Path, Path]] = []
    with contextlib.ExitStack() as stack:
        try:
            for path, data in contents.items():
                with writable(path):
                    moves.append((_write_temporary(destinations[path], data, stack), destinations[path]))
            for temporary, destination in moves:
                with writable(destination):
                    temporary.replace(destination)
        finally:
            for temporary, _ in moves:
                with contextlib.suppress(OSError):  # it was moved, or cannot be removed
                    temporary.unlink()


def _write_temporary(destination: Path, data: str | bytes, stack: contextlib.ExitStack) -> Path:
    """A file beside the destination with the new content, on the disk, and locked until `stack` closes.

    Without the lock another process would remove it as stale.
    """
    handle, name = tempfile.mkstemp(dir=destination.parent, prefix=f".{destination.name}.", suffix=UNFINISHED)
    temporary = Path(name)
    try:
        # Unbuffered: closing a buffered file on a full disk would fail a second time.
        file = stack.enter_context(os.fdopen(handle, "wb", buffering=0))
        lock(handle)
        rest = memoryview(data.encode() if isinstance(data, str) else data)
        while rest:  # a disk that is almost full accepts only a part at first
            rest = rest[file.write(rest) :]
        os.fsync(handle)
        # mkstemp makes private files; the result has the usual permissions.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        if os.name == "nt":  # Windows does not move open files
            file.close()
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def _remove_stale(destination: Path) -> None:
    """Remove temporary files of processes that were killed while they wrote this file."""
    # Only mkstemp's eight letters may be in between: another file's longer name may start with the same letters.
    unfinished = re.compile(re.escape(f".{destination.name}.") + "[a-z0-9_]{8}" + re.escape(UNFINISHED))
    for path in destination.parent.iterdir():
        if not unfinished.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError), path.open("rb") as file:
            if lock(file.fileno(), unknown=False):
                path.unlink()
