"""Writing files so that a reader finds the old one or the new one, never half of one."""

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
"""How the name of a file ends that is to take another's place once it is whole."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write into a sentence for the user."""
    try:
        yield
    except OSError as error:
        mend = "make room there, or name" if error.errno in FULL else "name"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {mend} another place with --output") from None


def _place(path: Path) -> Path:
    """Where a file of that name is really to be put: what a link points to, and never over a device or a pipe."""
    if path.is_symlink():
        with contextlib.suppress(FileNotFoundError):  # what it points to may be yet to come
            path.stat()  # a link that leads to itself is refused here, and not by some versions of resolve
        path = path.resolve()
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


def lock(handle: int, *, unknown: bool = True) -> bool:
    """Keep other processes off an open file or folder until it is closed; False where one of them holds it.

    unknown: the answer where nobody can be kept off, as on Windows and some network file systems.
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
def exclusive_directory(folder: Path) -> Iterator[None]:
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
        if os.name != "nt":  # Windows does not open folders
            handle = os.open(folder, os.O_RDONLY)
            held.callback(os.close, handle)
            if not lock(handle):
                raise UserError(f"another training is running in {folder}: wait for it, or name another --output")
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
    write_all_or_none({path: data})


def write_all_or_none(contents: Mapping[Path, str | bytes]) -> None:
    """Replace files that belong together, none before the new content of all of them has reached the disk.

    Raises UserError when one of them cannot be written; the old files are intact then.
    """
    places: dict[Path, Path] = {}
    for path in contents:
        with writable(path):
            places[path] = place = _place(path)
            place.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(place)
    moves: list[tuple[Path, Path]] = []
    with contextlib.ExitStack() as held:
        try:
            for path, data in contents.items():
                with writable(path):
                    moves.append((_write_temporary(places[path], data, held), places[path]))
            for made, place in moves:
                with writable(place):
                    made.replace(place)
        finally:
            for made, _ in moves:
                with contextlib.suppress(OSError):  # it is in its place, or nothing can be done about it
                    made.unlink()


def _write_temporary(place: Path, data: str | bytes, held: contextlib.ExitStack) -> Path:
    """The content in a file beside its place, on the disk, and locked until `held` ends: others sweep there too."""
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.", suffix=UNFINISHED)
    made = Path(name)
    try:
        file = held.enter_context(os.fdopen(handle, "wb"))
        lock(handle)
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(handle)
        # mkstemp makes private files; the result is an ordinary one.
        mask = os.umask(0)
        os.umask(mask)
        made.chmod(0o666 & ~mask)
        if os.name == "nt":  # Windows does not move open files
            file.close()
    except BaseException:
        with contextlib.suppress(OSError):
            made.unlink()
        raise
    return made


def _remove_stale(place: Path) -> None:
    """Remove what is left unfinished of the file by processes that were killed while they wrote it."""
    # Between the name and the ending stand eight letters of mkstemp's, or it is another file's whose name begins alike.
    unfinished = re.compile(re.escape(f".{place.name}.") + "[a-z0-9_]{8}" + re.escape(UNFINISHED))
    for path in place.parent.iterdir():
        if not unfinished.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError), path.open("rb") as file:
            if lock(file.fileno(), unknown=False):
                path.unlink()
