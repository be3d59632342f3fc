"""An observer that interrupts a run."""

from __future__ import annotations

from robustbench_local.engine.observer import Observer


class StopAfter(Observer):
    """Interrupts when so many batches have been finished."""

    def __init__(self, batches):
        self.left = batches

    def advance(self, finished, robust):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
