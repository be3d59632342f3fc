"""What happens during a run, as immutable records: the journal stores them, `SampleStates` is built from them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from robustbench_local.results.schema import Distance
from robustbench_local.runtime.distributed import rank_and_world

STAGES_PER_BLOCK = 1000
"""Stage numbers of a block of samples; more than a block has stages, so that every block's stages have their own."""
DIAGNOSTIC_STAGES = 100
"""The first stage number, within a block, of the attacks that diagnostics run; those of a suite are below."""


class Event(BaseModel):
    """Something that happened to some samples.

    positions: places in the run's dataset, from 0. forward, backward: passes in images. seconds: how long it took.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default_factory=lambda: rank_and_world()[0])
    positions: list[int]
    forward: int
    backward: int
    seconds: float


class CleanEvent(Event):
    """Some unperturbed images were classified.

    rivals: the wrong classes with the highest logits, as many as the run's targeted attacks need.
    """

    kind: Literal["clean"] = "clean"
    hashes: list[str]
    predictions: list[int]
    margins: list[float]
    rivals: list[list[int]]


class AdversarialExample(BaseModel):
    """A verified adversarial example."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    position: int
    step: int
    prediction: int
    margin: float
    distance: Distance


class SearchEvent(Event):
    """Some samples finished one run of the attack of one stage.

    margins: the smallest margin of every sample, None where none could be verified. breaks: the successes. unconfirmed,
    low_precision_unconfirmed: claimed successes that verification refuted. not_numbers: points with NaN logits.
    outside: points outside the ball or the box, or not finite, which never count as a success.
    """

    kind: Literal["search"] = "search"
    stage: int
    run: int
    margins: list[float | None]
    breaks: list[AdversarialExample]
    unconfirmed: int
    low_precision_unconfirmed: int
    not_numbers: int
    outside: int = 0


def seconds_of(events: Sequence[Event]) -> float:
    """How long some events took: processes work in parallel, so the busiest one counts."""
    by_rank: dict[int, float] = {}
    for event in events:
        by_rank[event.rank] = by_rank.get(event.rank, 0.0) + event.seconds
    return max(by_rank.values(), default=0.0)
