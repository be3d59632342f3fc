"""Writing files so that a reader finds the old one or the new one, never half of one."""
from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from robustbench_local.errors import UserError


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write into a sentence for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another place with --output") from None


def _place(path: Path) -> Path:
    """Where a file of that name is really to be put: what a link points to, and never over a device or a pipe."""
    path = path.resolve() if path.is_symlink() else path
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file in it with --output")
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it is a device or a pipe; name a file with --output")
    return path


def check_writable(path: Path) -> None:
    """Make the folder of `path` and prove that a file can be made in it, before hours are spent on what goes there.

    Raises UserError when it cannot.
    """
    with writable(path):
        path = _place(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the folder and keep other trainings out of it; one that was made in vain, and is empty, goes again.

    Raises UserError where another process is in it, or it cannot be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file, but a training fills a folder: name another")
    fresh = not folder.exists()
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    with contextlib.ExitStack() as held:
        with contextlib.suppress(ImportError):  # Windows has no locks on folders
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            held.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another training is running in {folder}: wait for it, or name another --output"
                ) from None
            except OSError:  # a file system without locks, such as some network ones
                pass
        try:
            yield
        except UserError:
            if fresh:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()
            raise


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace the file in one move, after its new content has reached the disk.

    Raises UserError when it cannot be written; the old file is intact then.
    """
    content = data.encode() if isinstance(data, str) else data
    with writable(path):
        path = _place(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes private files; the result is an ordinary one.
            mask = os.umask(0)
            os.umask(mask)
            Path(name).chmod(0o666 & ~mask)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
