"""What reaches the terminal besides a command's own output: errors, and warnings of this package and of user code."""

from __future__ import annotations

import contextlib
import linecache
import os
import re
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import click

import robustbench_local
from robustbench_local.errors import RobustWarning, UserError

_PACKAGE_FOLDERS = (
    Path(robustbench_local.__path__[0]),
    *(Path(root) / name for root in robustbench_local.__path__[1:] for name in ("attacks", "defenses")),
)
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
_INSTALLED = {"site-packages", "dist-packages"}
_CALL_OF_WARN = re.compile(r"warn\w*\(")
_EXIT_DELAY = 1.0
"""Seconds. torchrun ends all processes as soon as one has ended, so the one that prints must be the first."""


def show_error(error: UserError) -> None:
    """Print `robust: message [slug]` on stderr; of several processes with the same error, one prints it."""
    repeated = error.reported_elsewhere
    if repeated is None:  # raised before the processes met: all of them raise it
        repeated = os.environ.get("RANK", "0") != "0"
    if repeated:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(_EXIT_DELAY)
        return
    click.echo(f"robust: {_printable(str(error))} [{error.slug}]", err=True)


def _printable(text: str) -> str:
    from robustbench_local.io.safe_read import printable

    return "\n".join(map(printable, text.splitlines()))


@contextlib.contextmanager
def routed_warnings() -> Iterator[None]:
    """Print this package's warnings as `robust: warning: message [slug]` and drop those of libraries, inside the block.

    Warnings that the user's own code issues stay as they are. With Python's `-W` or PYTHONWARNINGS nothing changes.
    """
    # torch's C++ code writes its warnings to stderr directly; it reads the level when it is loaded.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if sys.warnoptions:
        yield
        return
    show_as_usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if isinstance(message, RobustWarning):
            click.echo(f"robust: warning: {_printable(str(message))} [{message.slug}]", err=True)
        elif not _is_from_library(filename):
            show_as_usual(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", RobustWarning)
        warnings.showwarning = show
        yield


def _is_from_library(filename: str) -> bool:
    """Whether library code issued the warning, even where the warning is attributed to the line that called it."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename == warnings.__file__:
        frame = frame.f_back
    if any(_is_library_file(name) for name in (filename, frame.f_code.co_filename)):
        return True
    # Compiled code has no frame of its own: where it warns, the line in the user's file calls something else.
    return _CALL_OF_WARN.search(linecache.getline(frame.f_code.co_filename, frame.f_lineno)) is None


def _is_library_file(filename: str) -> bool:
    path = Path(filename)
    installed = not _INSTALLED.isdisjoint(path.parts) or path.is_relative_to(_STANDARD_LIBRARY)
    return installed or filename.startswith("<frozen ") or any(map(path.is_relative_to, _PACKAGE_FOLDERS))
