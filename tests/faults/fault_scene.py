"""The scene of a fault: a folder, random moments, and what an undisturbed run would have found."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from fault_commands import COMMAND, Command, begun, ended, require_refusal, require_same_outcome, require_tidy, told

from robustbench_local.engine.journal import journal_path

FILES = ["r.json", "r.samples.jsonl"]


@dataclass(frozen=True)
class Scene:
    """One attempt at surviving a fault.

    expected: the result and record of the undisturbed command. trained: weights and metrics of the undisturbed
    training. Both without what a clock says.
    """

    folder: Path
    moments: random.Random
    expected: tuple[dict, bytes]
    trained: dict[str, object]

    @property
    def output(self) -> Path:
        return self.folder / "r.json"

    def start(self, *more: object, **options) -> Command:
        return Command(self.folder, *COMMAND, "--output", "r.json", *more, **options)

    def run(self, *more: object, **options) -> Command:
        return ended(self.folder, *COMMAND, "--output", "r.json", *more, **options)

    def started_then(self, longest: float = 0.12, **options) -> Command:
        """A run that is under way at a random moment."""
        command = self.start(**options)
        begun(self.output)
        time.sleep(self.moments.uniform(0, longest))
        return command

    def interrupted(self, *more: object) -> None:
        """Leave what a run leaves that was killed when it had found something."""
        while True:
            command = self.start(*more)
            while command.process.is_alive() and not self._has_found():
                time.sleep(0.001)
            time.sleep(self.moments.uniform(0, 0.05))
            command.send(signal.SIGKILL)
            command.wait()
            if self._has_found() and not self.output.exists():
                return
            for path in self.folder.iterdir():  # it was through before
                path.unlink()

    def _has_found(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return b'"search"' in journal_path(self.output).read_bytes()
        return False

    def require_whole(self) -> None:
        """The undisturbed outcome, and nothing besides."""
        require_same_outcome(told(self.output), self.expected)
        assert sorted(path.name for path in self.folder.iterdir()) == FILES

    def require_resumed(self, *more: object, **options) -> None:
        """Going on ends like a run that nothing has disturbed."""
        command = self.run("--resume", *more, **options)
        assert command.process.exitcode == 0, command.err
        self.require_whole()

    def require_refused(self, command: Command, *words: str) -> None:
        command.wait()
        require_refusal(command, *words)
        require_tidy(self.folder)
