"""The stages of an evaluation in their order: what each is run on, what it found, and whether gradients can be trusted.

All that happens is events. Those of an interrupted run are read back from its journal, those of other processes come
through the process group, and the rest is computed; which of the three it was makes no difference to the outcome.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_local.attacks.attack import number_of_runs, random_stream_name, settings, spec_text
from robustbench_local.attacks.suites import MASKED, MOVING, Stage
from robustbench_local.certification.region_attack import RegionSearch
from robustbench_local.data.dataset import sample_sha256
from robustbench_local.engine.journal import Journal
from robustbench_local.engine.ledger import CleanEvent, SearchEvent, seconds_of
from robustbench_local.engine.observer import Observer
from robustbench_local.engine.precision import SearchModel, SearchModels
from robustbench_local.engine.protocol import Step
from robustbench_local.engine.search import RunContext, clean_pass, run_attack
from robustbench_local.errors import UserError
from robustbench_local.models.metered import seconds_since
from robustbench_local.results.checks import PROBES_AGREE, REGIONS_SEARCHED
from robustbench_local.results.schema import AttackReport, Diagnostic
from robustbench_local.runtime.distributed import gather, rank_and_world

STAGES = 1000
"""More stages than a block of samples goes through, so that every block's have numbers of their own."""


@dataclass(frozen=True)
class StageRun:
    """A stage that has been run. stood: how many samples stood before it. because: the check that called for it."""

    step: Step
    number: int
    stood: int
    attacked: int
    fooled: int
    seconds: float
    because: str | None = None


class Cascade:
    """A block of samples on its way through the stages; the whole run's, unless it goes block by block.

    positions: int64 [samples], the block's places in the run. block: its number.
    """

    def __init__(self, job: RunContext, journal: Journal, observer: Observer, positions: Tensor, block: int = 0):
        self.job, self.positions = job, positions
        self.ran: list[StageRun] = []
        self._journal, self._observer, self._block = journal, observer, block
        self._mine = torch.zeros(len(job.ledger), dtype=torch.bool)
        self._mine[positions] = True

    @property
    def standing(self) -> Tensor:
        """The positions of the block that stand, the smallest margin first and what is hopeless last."""
        ledger = self.job.ledger
        positions = (ledger.standing & self._mine).nonzero().squeeze(1)
        return positions[ledger.margin[positions].argsort(stable=True)]

    def clean(self, rivals: int = 0) -> None:
        """The clean pass over the block. rivals: how many classes to steer to the attacks will ask for.

        Raises UserError where a sample is not what it was when an interrupted run looked at it.
        """
        job, ledger = self.job, self.job.ledger
        self._observer.begin("clean", len(self.positions))
        waiting = self._mine.clone()

        def enter(event: CleanEvent) -> None:
            ledger.apply_clean(event)
            waiting[torch.tensor(event.positions)] = False
            job.advanced(len(event.positions), int(ledger.standing.sum()))

        for event in self._journal.clean:
            if not self._mine[event.positions[0]]:
                continue
            images, _ = job.load(torch.tensor(event.positions))
            if [sample_sha256(image) for image in images.cpu()] != event.hashes:
                raise UserError(f"{job.dataset.name} has changed since the interrupted run: start without --resume")
            enter(event)
        found: list[CleanEvent] = []
        for event in clean_pass(job, _share(waiting.nonzero().squeeze(1)), sample_sha256, rivals):
            self._journal.add(event)
            found.append(event)
            enter(event)
        for event in _from_other_ranks(found):
            self._journal.remember(event)
            enter(event)

    def suite(self, steps: Sequence[Step], gradients: Diagnostic) -> list[Diagnostic]:
        """Every stage of a suite; the tail only where gradients are in doubt.

        gradients: the finding of the preflight. Returns what the probes found, where there are any.
        """
        doubtful, moving = gradients.status == "warn", False
        findings: list[Diagnostic] = []
        for number, step in enumerate(steps):
            if (step.stage.role == "tail" and not doubtful) or (step.stage.role == "follow-up" and not moving):
                continue
            if step.stage.role == "solver" and (reason := _refusal(self.job, step)):
                findings.append(Diagnostic(slug=REGIONS_SEARCHED, status="skipped", advice=f"not searched: {reason}"))
                continue
            ran = self.run(step, number)
            moving = ran.fooled > MOVING * ran.attacked
            doubtful |= step.stage.role == "probe" and ran.fooled > MASKED * ran.attacked
        probes = [ran for ran in self.ran if ran.step.stage.role == "probe"]
        return [*findings, _probe_diagnostic(probes, gradients)] if probes else findings

    def run_extra_stages(self, extra: Sequence[tuple[int, Step, str]]) -> None:
        """Stages that another block's diagnosis has called for: number, step, and the check."""
        self.use_full_precision()
        for number, step, because in extra:
            if len(self.standing):
                self.run(step, number, because)

    def use_full_precision(self) -> None:
        """Search with the untouched classifier from here on."""
        self.job = _full_precision(self.job)

    def run(self, step: Step, number: int, because: str | None = None) -> StageRun:
        """One stage on what stands. number: below `STAGES`, the same for the same stage of every block."""
        # The same attack again goes on with further restarts instead of repeating its first ones.
        first, number = _first_run(self.job, step, [ran.step for ran in self.ran]), self._block * STAGES + number
        moment, ledger = time.perf_counter(), self.job.ledger
        # A twin's layers have other names, so what is known by the layers' names has to be done to the model itself.
        job = _full_precision(self.job) if getattr(step.attack, "layers", "") else self.job
        standing = self.standing
        chosen = _smallest_margin_first(standing, step.stage)
        total = number_of_runs(step.attack, self.job.threat_model.number_of_targets(self.job.classes))
        self._observer.begin(spec_text(step.attack), len(chosen) * total)
        numbers = range(first, first + total)
        finished: dict[int, set[int]] = {run: set() for run in numbers}

        def enter(event: SearchEvent) -> None:
            ledger.apply_search(event, spec_text(step.attack))
            finished[event.run].update(event.positions)
            self.job.advanced(len(event.positions), int(ledger.standing.sum()))

        read_back = self._journal.of_stage(number)
        for event in read_back:
            enter(event)
        found: list[SearchEvent] = []

        def emit(event: SearchEvent) -> None:
            self._journal.add(event)
            found.append(event)
            enter(event)

        share = _share(chosen)
        for run in numbers:
            waiting = [place for place in share[ledger.standing[share]].tolist() if place not in finished[run]]
            if waiting:
                run_attack(job, step.attack, number, run, torch.tensor(waiting), emit)
        for event in _from_other_ranks(found):
            self._journal.remember(event)
            enter(event)
        fooled = sum(len(event.breaks) for event in self._journal.of_stage(number))
        seconds = seconds_since(moment) + seconds_of(read_back)
        ran = StageRun(step, number, len(standing), len(chosen), fooled, seconds, because)
        self.ran.append(ran)
        return ran


def reports_of(cascades: Sequence[Cascade], journal: Journal) -> list[AttackReport]:
    """A report for every stage, in the order in which they were run first; that of several blocks is one."""
    stages: dict[int, list[StageRun]] = {}
    for ran in (ran for cascade in cascades for ran in cascade.ran):
        stages.setdefault(ran.number % STAGES, []).append(ran)
    ledger, reports = cascades[0].job.ledger, []
    n = sum(len(cascade.positions) for cascade in cascades)
    stands = int(ledger.correct.sum())
    for parts in stages.values():
        events = [event for ran in parts for event in journal.of_stage(ran.number)]
        step, fooled = parts[0].step, sum(ran.fooled for ran in parts)
        stands -= fooled
        reports.append(
            AttackReport(
                name=spec_text(step.attack),
                parameters=settings(step.attack),
                restarts=step.attack.restarts,
                role=step.stage.role,
                because=parts[0].because,
                share=step.stage.share,
                attacked=sum(ran.attacked for ran in parts),
                fooled=fooled,
                unconfirmed=sum(event.unconfirmed for event in events),
                low_precision_unconfirmed=sum(event.low_precision_unconfirmed for event in events),
                robust_accuracy_after=stands / n,
                forward_passes=sum(event.forward for event in events),
                backward_passes=sum(event.backward for event in events),
                seconds=sum(ran.seconds for ran in parts),
            )
        )
    return reports


def _full_precision(job: RunContext) -> RunContext:
    return replace(job, search_models=SearchModels(None, SearchModel(job.model.model, 0.0, "fp32")))


def _refusal(job: RunContext, step: Step) -> str:
    """Why the solver cannot take this model; empty where it can."""
    assert isinstance(step.attack, RegionSearch)
    return step.attack.refusal(job.search_models.fine.model, job.dataset.image_shape, job.threat_model)


def _first_run(job: RunContext, step: Step, earlier: Sequence[Step]) -> int:
    """The number of a stage's first run: after those of the stages whose random numbers it shares, and such that it
    begins with the likeliest target.
    """
    rivals = job.threat_model.number_of_targets(job.classes)
    before = sum(
        number_of_runs(other.attack, rivals)
        for other in earlier
        if random_stream_name(other.attack) == random_stream_name(step.attack)
    )
    targets = max(1, min(step.attack.targets, rivals))
    return -(-before // targets) * targets


def _share(positions: Tensor) -> Tensor:
    """This process's part of some samples."""
    rank, world = rank_and_world()
    return positions[rank::world]


def _from_other_ranks(mine: list) -> list:
    rank, _ = rank_and_world()
    return [event for other, events in enumerate(gather(mine)) if other != rank for event in events]


def _smallest_margin_first(standing: Tensor, stage: Stage) -> Tensor:
    """Those of the standing positions, by rising margin, that a stage is run on."""
    wanted = max(stage.least, math.ceil(stage.share * len(standing)))
    return standing[: wanted if stage.most is None else min(wanted, stage.most)]


def _probe_diagnostic(probes: list[StageRun], gradients: Diagnostic) -> Diagnostic:
    """What the probes say: did an attack without gradients fool what gradients could not?"""
    found, asked = sum(probe.fooled for probe in probes), sum(probe.attacked for probe in probes)
    slug = PROBES_AGREE
    if gradients.status == "warn":
        return Diagnostic(
            slug=slug,
            status="warn",
            value="no gradient",
            threshold=0.0,
            advice="gradients were missing before the first attack, so the attacks that work without them were run on "
            "all that stood; the robust accuracy may still be an overestimate",
        )
    share = found / max(asked, 1)
    masked = share > MASKED
    return Diagnostic(
        slug=slug,
        status="warn" if masked else "pass",
        value=share,
        threshold=MASKED,
        advice=f"{found} of {asked} samples on which the gradient attacks had failed fell to a probe (gradient "
        "masking?): every further attack of the suite was run on all that stood"
        if masked
        else "",
    )
