"""What a run tells whoever watches it."""

from __future__ import annotations


class Observer:
    """Hears what a run is doing; does nothing with it. A display overrides what it shows."""

    def begin(self, stage: str, total: int) -> None:
        """A stage begins: the clean pass or one attack, with how many samples it has before it."""

    def advance(self, finished: int, standing: int) -> None:
        """Some samples have finished the stage; so many stand."""
