"""The terminal on stderr, and stdout for machine-readable output."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress

from robustbench_local.errors import UserError


class Screen(Console):
    """A console that becomes silent if its reader closes the pipe. The run continues and writes its files."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stderr.fileno())


def console(*, quiet: bool = False) -> Console:
    """A console on stderr. quiet: print nothing, as on all ranks but the first."""
    return Screen(stderr=True, highlight=False, soft_wrap=False, quiet=quiet)


class ProgressContext:
    """A progress bar that is shown inside a `with` statement, on a terminal only."""

    _progress: Progress

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def write_json(text: str) -> None:
    """Write machine-readable output to stdout. Raises UserError where stdout is closed or cannot be written."""
    if sys.stdout is None:
        raise UserError("cannot write to stdout: it is closed", slug="cannot-write-stdout")
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write to stdout: {error.strerror}", slug="cannot-write-stdout") from None
