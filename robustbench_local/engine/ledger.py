"""What is known of every sample during a run, built from events alone: what happened live, or was read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from robustbench_local.io.atomic_write import write_all_or_none
from robustbench_local.results.schema import Distance, Result, SampleRecord
from robustbench_local.runtime.distributed import rank_and_world


class Event(BaseModel):
    """Something that has happened to some samples. Positions count the samples of the run, from 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default_factory=lambda: rank_and_world()[0])
    positions: list[int]
    forward: int
    backward: int
    seconds: float


class CleanEvent(Event):
    """Some images were classified as they are."""

    kind: Literal["clean"] = "clean"
    hashes: list[str]
    predictions: list[int]
    margins: list[float]
    rivals: list[list[int]]
    """The classes worth steering to, as many as the run will ask for."""


class AdversarialExample(BaseModel):
    """A verified adversarial example."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    position: int
    step: int
    prediction: int
    margin: float
    distance: Distance


class SearchEvent(Event):
    """Some samples have finished one run of the attack of one stage."""

    kind: Literal["search"] = "search"
    stage: int
    run: int
    margins: list[float | None]
    """The smallest margins seen, None where nothing believable was."""
    breaks: list[AdversarialExample]
    unconfirmed: int
    low_precision_unconfirmed: int
    not_numbers: int


def seconds_of(events: Sequence[Event]) -> float:
    """How long some events took: processes work at the same time, so the busiest counts."""
    by_rank: dict[int, float] = {}
    for event in events:
        by_rank[event.rank] = by_rank.get(event.rank, 0.0) + event.seconds
    return max(by_rank.values(), default=0.0)


def record_path(output: Path) -> Path:
    """`runs/x.json` -> `runs/x.samples.jsonl`. Another ending stays: `eps-0.1` and `eps-0.2` are two runs."""
    return output.with_name(output.name.removesuffix(".json") + ".samples.jsonl")


class SampleStates:
    """Every sample's standing. It changes by events only, so that reading a journal back gives the same ledger."""

    def __init__(self, indices: Tensor, labels: Tensor):
        n = len(labels)
        self.indices, self.labels = indices, labels
        self.hashes: list[str] = [""] * n
        self.clean_prediction = torch.full((n,), -1)
        self.clean_margin = torch.full((n,), float("nan"), dtype=torch.float64)
        self.margin = torch.full((n,), float("inf"), dtype=torch.float64)
        self.rivals: dict[int, list[int]] = {}
        self.correct = torch.zeros(n, dtype=torch.bool)
        self.standing = torch.zeros(n, dtype=torch.bool)
        self._breaks: dict[int, tuple[str, int, AdversarialExample]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, n: int) -> SampleStates:
        """What is known of the first n samples."""
        part = SampleStates(self.indices[:n], self.labels[:n])
        part.hashes, part.rivals, part._breaks = self.hashes[:n], self.rivals, self._breaks
        for name in ("clean_prediction", "clean_margin", "margin", "correct", "standing"):
            setattr(part, name, getattr(self, name)[:n])
        return part

    def apply_clean(self, event: CleanEvent) -> None:
        """The clean pass over some samples; those it misclassifies are decided by it."""
        positions, predictions = torch.tensor(event.positions), torch.tensor(event.predictions)
        self.clean_prediction[positions] = predictions
        margins = torch.tensor(event.margins, dtype=torch.float64)
        self.clean_margin[positions] = self.margin[positions] = margins
        self.correct[positions] = self.standing[positions] = predictions == self.labels[positions]
        for position, digest, rivals in zip(event.positions, event.hashes, event.rivals, strict=True):
            self.hashes[position] = digest
            if rivals and self.correct[position]:
                self.rivals[position] = rivals

    def apply_search(self, event: SearchEvent, attack: str) -> None:
        """Some samples have finished a run of the attack, and some of them are broken."""
        for position, margin in zip(event.positions, event.margins, strict=True):
            if margin is not None:
                self.margin[position] = min(margin, float(self.margin[position]))
        for found in event.breaks:
            if not self.standing[found.position]:
                raise RuntimeError(f"sample {int(self.indices[found.position])} is broken a second time")
            self.standing[found.position] = False
            self.margin[found.position] = min(found.margin, float(self.margin[found.position]))
            self._breaks[found.position] = attack, event.run, found

    def samples(self) -> list[SampleRecord]:
        """One record for every sample, by index."""
        records = [self._sample(position) for position in range(len(self))]
        return sorted(records, key=lambda record: record.index)

    def _sample(self, position: int) -> SampleRecord:
        attack, run, found = self._breaks.get(position) or (None, None, None)
        return SampleRecord(
            index=int(self.indices[position]),
            input_sha256=self.hashes[position],
            label=int(self.labels[position]),
            clean_prediction=int(self.clean_prediction[position]),
            robust=bool(self.standing[position]),
            adversarial_prediction=found.prediction if found else None,
            broken_by=attack,
            restart=run,
            step=found.step if found else None,
            distance=found.distance if found else None,
            clean_margin=float(self.clean_margin[position]),
            margin=float(self.margin[position]),
        )


def write_outcome(output: Path, result: Result, samples: list[SampleRecord]) -> None:
    """Put the result, and the per-sample record beside it, in their places: both or neither."""
    record = "".join(f"{sample.model_dump_json()}\n" for sample in samples)
    write_all_or_none({record_path(output): record, output: result.to_json()})
