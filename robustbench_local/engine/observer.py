"""What a run reports while it works."""

from __future__ import annotations


class Observer:
    """Receives the progress of a run and ignores it. A display overrides what it shows."""

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """A stage starts: the clean pass or one attack.

        total: how many samples it has, counted once per run of the attack. done: how many of them an interrupted
        session finished; they take no time now, so they belong in no speed.
        """

    def advance(self, finished: int, robust: int) -> None:
        """finished: how many more samples have finished the stage. robust: samples of the run that are still robust."""
