"""The stages of an evaluation in order: which samples each attack runs on, what it found, whether to trust gradients.

Everything that happens is an event: read back from an interrupted run's journal, received from another process, or
computed. Which of the three makes no difference to the outcome.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from robustbench_local.attacks.attack import number_of_runs, random_stream_name, settings, spec_text
from robustbench_local.attacks.suites import MASKED, MOVING, Stage
from robustbench_local.data.dataset import sample_sha256
from robustbench_local.engine.batch import RunContext
from robustbench_local.engine.events import STAGES_PER_BLOCK, CleanEvent, SearchEvent, seconds_of
from robustbench_local.engine.journal import Journal
from robustbench_local.engine.observer import Observer
from robustbench_local.engine.precision import untouched_model
from robustbench_local.engine.protocol import Step
from robustbench_local.engine.search import clean_pass, run_attack
from robustbench_local.errors import UserError
from robustbench_local.results.checks import PROBES_AGREE, REGIONS_SEARCHED
from robustbench_local.results.schema import AttackReport, Diagnostic
from robustbench_local.runtime.distributed import gather, rank_and_world
from robustbench_local.runtime.resources import seconds_since

E = TypeVar("E", CleanEvent, SearchEvent)


@dataclass(frozen=True)
class StageRun:
    """A finished stage.

    robust_before: how many samples were robust before it. because: the check that failed and caused it.
    """

    step: Step
    number: int
    robust_before: int
    attacked: int
    fooled: int
    seconds: float
    because: str | None = None


class Cascade:
    """A block of samples that goes through the stages; all samples of the run, unless it works block by block.

    positions: int64 [samples], the block's places in the run's dataset. block: its number.
    """

    def __init__(
        self, context: RunContext, journal: Journal, observer: Observer, positions: Tensor, block: int = 0
    ) -> None:
        self.context, self.positions = context, positions
        self.stage_runs: list[StageRun] = []
        self._journal, self._observer, self._block = journal, observer, block
        self._in_block = torch.zeros(len(context.states), dtype=torch.bool)
        self._in_block[positions] = True

    @property
    def robust_positions(self) -> Tensor:
        """The positions of the block that are still robust, the smallest margin first."""
        states = self.context.states
        positions = (states.robust & self._in_block).nonzero().squeeze(1)
        return positions[states.margin[positions].argsort(stable=True)]

    def run_clean_pass(self, number_of_targets: int = 0) -> None:
        """The clean pass over the block.

        number_of_targets: how many wrong classes targeted attacks need for every sample.
        Raises UserError where a sample has changed since the interrupted run.
        """
        context, states = self.context, self.context.states
        waiting = self._in_block.clone()
        restored = [event for event in self._journal.clean if self._in_block[event.positions[0]]]
        for event in restored:
            images, _ = context.load(torch.tensor(event.positions))
            if [sample_sha256(image) for image in images.cpu()] != event.hashes:
                raise UserError(
                    f"{context.dataset.name} has changed since the interrupted run: start without --resume",
                    slug="dataset-changed",
                )
            states.apply_clean(event)
            waiting[torch.tensor(event.positions)] = False
        self._observer.begin("clean", len(self.positions), sum(len(event.positions) for event in restored))

        def apply(event: CleanEvent) -> None:
            states.apply_clean(event)
            context.on_progress(len(event.positions), int(states.robust.sum()))

        mine: list[CleanEvent] = []
        for event in clean_pass(context, _share_of_this_rank(waiting.nonzero().squeeze(1)), number_of_targets):
            self._journal.add(event)
            mine.append(event)
            apply(event)
        self._receive(mine, apply)

    def run_suite(self, steps: Sequence[Step], gradients: Diagnostic) -> list[Diagnostic]:
        """Every stage of a suite; the tail only where gradients cannot be trusted.

        gradients: the preflight's finding about them. Returns what the probes found, where there are any.
        """
        doubtful, moving = gradients.status == "warn", False
        findings: list[Diagnostic] = []
        for number, step in enumerate(steps):
            if (step.stage.role == "tail" and not doubtful) or (step.stage.role == "follow-up" and not moving):
                continue
            if step.stage.role == "solver" and (reason := self._unsupported_reason(step)):
                findings.append(Diagnostic(slug=REGIONS_SEARCHED, status="skipped", advice=f"not searched: {reason}"))
                continue
            finished = self.run_stage(step, number)
            moving = finished.fooled > MOVING * finished.attacked
            doubtful |= step.stage.role == "probe" and finished.fooled > MASKED * finished.attacked
        probes = [finished for finished in self.stage_runs if finished.step.stage.role == "probe"]
        return [*findings, _probe_diagnostic(probes, gradients)] if probes else findings

    def use_full_precision(self) -> None:
        """Search with the untouched classifier from now on."""
        self.context = _with_untouched_model(self.context)

    def run_stage(self, step: Step, number: int, because: str | None = None, asked: Tensor | None = None) -> StageRun:
        """One stage on the samples that are still robust.

        number: below `STAGES_PER_BLOCK`, the same for the same stage of every block. asked: int64, the positions of
        the robust samples to attack; by default those that the stage chooses.
        """
        # The same attack again continues with further restarts instead of repeating its first ones.
        first_run = _first_run(self.context, step, [earlier.step for earlier in self.stage_runs])
        number = self._block * STAGES_PER_BLOCK + number
        started, states = time.perf_counter(), self.context.states
        robust = self.robust_positions
        positions = _smallest_margin_first(robust, step.stage) if asked is None else asked
        total = number_of_runs(step.attack, self.context.threat_model.number_of_targets(self.context.classes))
        runs = range(first_run, first_run + total)
        finished: dict[int, set[int]] = {run: set() for run in runs}

        def apply(event: SearchEvent) -> None:
            states.apply_search(event, spec_text(step.attack))
            finished[event.run].update(event.positions)
            self.context.on_progress(len(event.positions), int(states.robust.sum()))

        restored = self._journal.of_stage(number)
        for event in restored:
            states.apply_search(event, spec_text(step.attack))
            finished[event.run].update(event.positions)
        done = sum(len(event.positions) for event in restored)
        self._observer.begin(spec_text(step.attack), len(positions) * total, done)
        self._receive(self._search(step, number, positions, finished, apply), apply)
        fooled = sum(len(event.breaks) for event in self._journal.of_stage(number))
        seconds = seconds_since(started) + seconds_of(restored)
        stage_run = StageRun(step, number, len(robust), len(positions), fooled, seconds, because)
        self.stage_runs.append(stage_run)
        return stage_run

    def _search(
        self,
        step: Step,
        number: int,
        positions: Tensor,
        finished: dict[int, set[int]],
        apply: Callable[[SearchEvent], None],
    ) -> list[SearchEvent]:
        """This process's share of a stage. finished: by run, the positions that need no more work."""
        context, states = self.context, self.context.states
        if getattr(step.attack, "layers", "") or getattr(step.attack, "needs_untouched_model", False):
            # The layers of a search model have other names, and its weights are copies.
            context = _with_untouched_model(context)
        events: list[SearchEvent] = []

        def emit(event: SearchEvent) -> None:
            self._journal.add(event)
            events.append(event)
            apply(event)

        share = _share_of_this_rank(positions)
        for run, done in finished.items():
            waiting = [position for position in share[states.robust[share]].tolist() if position not in done]
            if waiting:
                run_attack(context, step.attack, number, run, torch.tensor(waiting), emit)
        return events

    def _receive(self, mine: list[E], apply: Callable[[E], None]) -> None:
        """Exchange events with the other processes, and apply theirs."""
        rank, _ = rank_and_world()
        for event in [event for other, events in enumerate(gather(mine)) if other != rank for event in events]:
            self._journal.remember(event)
            apply(event)

    def _unsupported_reason(self, step: Step) -> str:
        """Why the stage's attack cannot run on this model; empty where it can."""
        reason = getattr(step.attack, "unsupported_reason", None)
        if reason is None:
            return ""
        context = self.context
        return str(reason(context.search_models.float32.model, context.dataset.image_shape, context.threat_model))


def reports_of(cascades: Sequence[Cascade], journal: Journal) -> list[AttackReport]:
    """A report for every stage, in the order in which they first ran; a stage of several blocks has one report."""
    stages: dict[int, list[StageRun]] = {}
    for stage_run in (stage_run for cascade in cascades for stage_run in cascade.stage_runs):
        stages.setdefault(stage_run.number % STAGES_PER_BLOCK, []).append(stage_run)
    states, reports = cascades[0].context.states, []
    n = sum(len(cascade.positions) for cascade in cascades)
    robust = int(states.correct.sum())
    for parts in stages.values():
        events = [event for part in parts for event in journal.of_stage(part.number)]
        step, fooled = parts[0].step, sum(part.fooled for part in parts)
        robust -= fooled
        reports.append(
            AttackReport(
                name=spec_text(step.attack),
                parameters=settings(step.attack),
                restarts=step.attack.restarts,
                role=step.stage.role,
                because=parts[0].because,
                share=step.stage.share,
                attacked=sum(part.attacked for part in parts),
                fooled=fooled,
                unconfirmed=sum(event.unconfirmed for event in events),
                low_precision_unconfirmed=sum(event.low_precision_unconfirmed for event in events),
                outside=sum(event.outside for event in events),
                robust_accuracy_after=robust / n,
                forward_passes=sum(event.forward for event in events),
                backward_passes=sum(event.backward for event in events),
                seconds=sum(part.seconds for part in parts),
            )
        )
    return reports


def _with_untouched_model(context: RunContext) -> RunContext:
    return replace(context, search_models=untouched_model(context.model.model))


def _first_run(context: RunContext, step: Step, earlier: Sequence[Step]) -> int:
    """The number of a stage's first run.

    It comes after the runs of all stages with the same random numbers, and starts with the top wrong class.
    """
    classes = context.threat_model.number_of_targets(context.classes)
    before = sum(
        number_of_runs(other.attack, classes)
        for other in earlier
        if random_stream_name(other.attack) == random_stream_name(step.attack)
    )
    targets = max(1, min(step.attack.targets, classes))
    return -(-before // targets) * targets


def _share_of_this_rank(positions: Tensor) -> Tensor:
    """This process's part of some samples."""
    rank, world = rank_and_world()
    return positions[rank::world]


def _smallest_margin_first(robust: Tensor, stage: Stage) -> Tensor:
    """The robust positions, ordered by margin, that a stage runs on."""
    return robust[: max(stage.least, math.ceil(stage.share * len(robust)))]


def _probe_diagnostic(probes: list[StageRun], gradients: Diagnostic) -> Diagnostic:
    """Whether an attack without gradients fooled samples on which gradient attacks had failed."""
    fooled, attacked = sum(probe.fooled for probe in probes), sum(probe.attacked for probe in probes)
    if gradients.status == "warn":
        return Diagnostic(
            slug=PROBES_AGREE,
            status="warn",
            value="no gradient",
            threshold=0.0,
            advice="gradients were missing before the first attack, so the gradient-free attacks ran on every image "
            "not yet fooled; the robust accuracy may still be an overestimate",
        )
    share = fooled / max(attacked, 1)
    masked = share > MASKED
    return Diagnostic(
        slug=PROBES_AGREE,
        status="warn" if masked else "pass",
        value=share,
        threshold=MASKED,
        advice=f"a gradient-free probe fooled {fooled} of {attacked} samples on which the gradient attacks had failed "
        "(gradient masking?): every further attack of the suite ran on every image not yet fooled"
        if masked
        else "",
    )
