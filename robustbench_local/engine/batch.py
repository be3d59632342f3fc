"""What an attack runs on: the settings that all attacks of a run share, and rows that join and leave a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustbench_local.attacks.attack import State
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.data.dataset import Dataset
from robustbench_local.engine.ledger import SampleStates
from robustbench_local.engine.precision import SearchModels
from robustbench_local.models.metered import Metered
from robustbench_local.runtime.device import BatchSize, is_out_of_memory


@dataclass(frozen=True)
class RunContext:
    """What stays the same for every attack of a run.

    model: the untouched float32 classifier, which verifies every success. on_progress: called with how many samples
    just finished a run of an attack, and how many samples are still robust.
    """

    model: Metered
    search_models: SearchModels
    dataset: Dataset
    threat_model: ThreatModel
    states: SampleStates
    seed: int
    batch_size: BatchSize
    classes: int
    device: torch.device
    on_progress: Callable[[int, int], None]

    def load(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 [rows, ...] and labels int64 [rows] of some positions, on the device."""
        return self.dataset.images(positions).to(self.device), self.dataset.labels[positions].to(self.device)

    def logits(self, points: Tensor) -> Tensor:
        """The untouched model's logits [rows, classes], in batches that fit into memory."""
        logits: list[Tensor] = []
        while (done := sum(map(len, logits))) < len(points):
            try:
                logits.append(self.model(points[done : done + self.batch_size.value]))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.batch_size.halve(self.device)
        return torch.cat(logits)


class ActiveRows(NamedTuple):
    """Rows under attack: the attack's state on the device, and the engine's account of every row on the host.

    host: int64 [rows] each: `position`, `step`, the passes `forward` and `backward` spent on the row so far, how often
    a claimed success was `refuted`, and how often one in low precision was (`low_precision_refuted`).
    """

    state: State
    host: dict[str, Tensor]

    @property
    def rows(self) -> int:
        return len(self.host["position"])

    def take(self, rows: Tensor) -> ActiveRows:
        """Some of the rows. rows: bool [rows], on the host."""
        on_device = rows.to(next(iter(self.state.values())).device)
        return ActiveRows(
            {key: value[on_device] for key, value in self.state.items()},
            {key: value[rows] for key, value in self.host.items()},
        )

    def split(self, size: int) -> tuple[ActiveRows, ActiveRows]:
        """The first `size` rows, and the others."""
        first = torch.arange(self.rows) < size
        return self.take(first), self.take(~first)

    def without_best(self) -> ActiveRows:
        """The same rows, as if the model had not evaluated any of their points yet."""
        unknown = torch.full_like(self.state["best_margin"], float("inf"))
        return ActiveRows({**self.state, "best_margin": unknown}, self.host)


def join_rows(parts: list[ActiveRows]) -> ActiveRows:
    """All rows of the parts in one batch."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return ActiveRows(
        {key: torch.cat([part.state[key] for part in parts]) for key in first.state},
        {key: torch.cat([part.host[key] for part in parts]) for key in first.host},
    )


class WaitingRows:
    """Rows that wait for a free place in the batch.

    load_more: takes a number of rows and returns about as many further rows, or None if none are left.
    """

    def __init__(self, load_more: Callable[[int], ActiveRows | None]) -> None:
        self._load_more = load_more
        self._returned: list[ActiveRows] = []

    def fill(self, batch: ActiveRows | None, size: int) -> ActiveRows | None:
        """The batch with waiting rows in its free places; None when no row is left."""
        parts = [] if batch is None else [batch]
        while (room := size - sum(part.rows for part in parts)) > 0:
            part = self._returned.pop() if self._returned else self._load_more(room)
            if part is None:
                break
            if part.rows > room:
                part, rest = part.split(room)
                self._returned.append(rest)
            parts.append(part)
        return join_rows(parts) if parts else None

    def put_back(self, batch: ActiveRows) -> None:
        """Let some rows wait again."""
        self._returned.append(batch)


def positions_in_order(positions: Tensor) -> Callable[[int], Tensor | None]:
    """A function that takes a number and returns as many of the positions, in order; None when none are left."""
    waiting = iter(positions.split(1))

    def take(count: int) -> Tensor | None:
        rows = list(itertools.islice(waiting, count))
        return torch.cat(rows) if rows else None

    return take
