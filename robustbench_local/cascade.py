"""The stages of an evaluation in their order: what each is run on, what it found, and whether gradients can be trusted.

All that happens is events. Those of an interrupted run are read back from its journal, those of other processes come
through the process group, and the rest is computed; which of the three it was makes no difference to the outcome.
"""
from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from robustbench_local.attacks.attack import family, runs, settings, spec
from robustbench_local.attacks.suites import MASKED, MOVING, Stage
from robustbench_local.data.dataset import sample_sha256
from robustbench_local.engine import Job, clean_pass, search
from robustbench_local.errors import UserError
from robustbench_local.journal import Journal
from robustbench_local.observer import Observer
from robustbench_local.processes import gather, rank_and_world
from robustbench_local.protocol import Step
from robustbench_local.record import CleanEvent, SearchEvent, seconds_of
from robustbench_local.region_attack import RegionSearch
from robustbench_local.result import AttackReport, Diagnostic

SOLVED = "activation regions are searched"


def run_clean(job: Job, journal: Journal, observer: Observer, rivals: int = 0) -> None:
    """The clean pass over every sample. rivals: how many classes to steer to the attacks will ask for.

    Raises UserError where a sample is not what it was when an interrupted run looked at it.
    """
    ledger = job.ledger
    observer.begin("clean", len(ledger))
    waiting = torch.ones(len(ledger), dtype=torch.bool)

    def enter(event: CleanEvent) -> None:
        ledger.enter_clean(event)
        waiting[torch.tensor(event.positions)] = False
        job.advanced(len(event.positions), int(ledger.standing.sum()))

    for event in journal.clean:
        images, _ = job.load(torch.tensor(event.positions))
        if [sample_sha256(image) for image in images.cpu()] != event.hashes:
            raise UserError(f"{job.dataset.name} has changed since the interrupted run: start without --resume")
        enter(event)
    mine: list[CleanEvent] = []
    for event in clean_pass(job, _share(waiting.nonzero().squeeze(1)), sample_sha256, rivals):
        journal.add(event)
        mine.append(event)
        enter(event)
    for event in _of_others(mine):
        journal.clean.append(event)
        enter(event)


def run_stages(
    job: Job, steps: Sequence[Step], journal: Journal, observer: Observer, gradients: Diagnostic
) -> tuple[list[AttackReport], list[Diagnostic]]:
    """Every stage of the cascade; the tail only where gradients are in doubt.

    gradients: the finding of the preflight. The second value says what the probes found, where there are any.
    """
    reports: list[AttackReport] = []
    doubtful = gradients.status == "warn"
    findings: list[Diagnostic] = []
    moving = False
    for number, step in enumerate(steps):
        if (step.stage.role == "tail" and not doubtful) or (step.stage.role == "follow-up" and not moving):
            continue
        if step.stage.role == "solver" and (reason := _refusal(job, step)):
            findings.append(Diagnostic(check=SOLVED, status="skipped", advice=f"not searched: {reason}"))
            continue
        # The same attack again goes on with further restarts instead of repeating its first ones.
        first = _first_run(job, step, steps[:number])
        report = _run_stage(job, number, step, first, journal, observer)
        reports.append(report)
        moving = report.fooled > MOVING * report.attacked
        doubtful |= step.stage.role == "probe" and report.fooled > MASKED * report.attacked
    probes = [report for report in reports if report.role == "probe"]
    if probes:
        findings.append(_trust(probes, gradients))
    return reports, findings


def _refusal(job: Job, step: Step) -> str:
    """Why the solver cannot take this model; empty where it can."""
    assert isinstance(step.attack, RegionSearch)
    return step.attack.refusal(job.twins.fine.model, job.dataset.image_shape, job.threat_model)


def _run_stage(
    job: Job, number: int, step: Step, first: int, journal: Journal, observer: Observer
) -> AttackReport:
    attack, ledger = step.attack, job.ledger
    moment, stood = time.perf_counter(), int(ledger.standing.sum())
    chosen = _nearest_to_falling(ledger.standing, ledger.margin, step.stage)
    total = runs(attack, _rivals(job))
    observer.begin(spec(attack), len(chosen) * total)
    numbers = range(first, first + total)
    finished: dict[int, set[int]] = {run: set() for run in numbers}

    def enter(event: SearchEvent) -> None:
        ledger.enter_search(event, spec(attack))
        finished[event.run].update(event.positions)
        job.advanced(len(event.positions), int(ledger.standing.sum()))

    read_back = journal.of_stage(number)
    for event in read_back:
        enter(event)
    mine: list[SearchEvent] = []

    def emit(event: SearchEvent) -> None:
        journal.add(event)
        mine.append(event)
        enter(event)

    share = _share(chosen)
    for run in numbers:
        waiting = [position for position in share[ledger.standing[share]].tolist() if position not in finished[run]]
        if waiting:
            search(job, attack, number, run, torch.tensor(waiting), emit)
    for event in _of_others(mine):
        journal.searches.append(event)
        enter(event)
    seconds = time.perf_counter() - moment + seconds_of(read_back)
    return _report(step, journal.of_stage(number), len(chosen), stood, len(ledger), seconds)


def _rivals(job: Job) -> int:
    """How many classes there are to steer to."""
    return 1 if job.threat_model.target is not None else job.classes - 1


def _first_run(job: Job, step: Step, earlier: Sequence[Step]) -> int:
    """The number of a stage's first run: after those of the stages whose random numbers it shares, and such that it
    begins with the likeliest target."""
    before = sum(
        runs(other.attack, _rivals(job)) for other in earlier if family(other.attack) == family(step.attack)
    )
    targets = max(1, min(step.attack.targets, _rivals(job)))
    return -(-before // targets) * targets


def _share(positions: Tensor) -> Tensor:
    """This process's part of some samples."""
    rank, world = rank_and_world()
    return positions[rank::world]


def _of_others(mine: list) -> list:
    rank, _ = rank_and_world()
    return [event for other, events in enumerate(gather(mine)) if other != rank for event in events]


def _nearest_to_falling(standing: Tensor, margin: Tensor, stage: Stage) -> Tensor:
    """The positions that a stage is run on, the smallest margin first and what is hopeless last."""
    positions = standing.nonzero().squeeze(1)
    order = positions[margin[positions].argsort(stable=True)]
    return order[: max(stage.least, math.ceil(stage.share * len(order)))]


def _report(
    step: Step, events: list[SearchEvent], attacked: int, stood: int, n: int, seconds: float
) -> AttackReport:
    fooled = sum(len(event.breaks) for event in events)
    return AttackReport(
        name=spec(step.attack),
        parameters=settings(step.attack),
        restarts=step.attack.restarts,
        role=step.stage.role,
        share=step.stage.share,
        attacked=attacked,
        fooled=fooled,
        unconfirmed=sum(event.unconfirmed for event in events),
        low_precision_unconfirmed=sum(event.low_precision_unconfirmed for event in events),
        robust_accuracy_after=(stood - fooled) / n,
        forward_passes=sum(event.forward for event in events),
        backward_passes=sum(event.backward for event in events),
        seconds=seconds,
    )


def _trust(probes: list[AttackReport], gradients: Diagnostic) -> Diagnostic:
    """What the probes say: did an attack without gradients fool what gradients could not?"""
    found, asked = sum(probe.fooled for probe in probes), sum(probe.attacked for probe in probes)
    check = "gradients lead to the weakest samples"
    if gradients.status == "warn":
        return Diagnostic(
            check=check, status="warn", value="no gradient", threshold=0.0,
            advice="gradients were missing before the first attack, so the attacks that work without them were run on "
            "all that stood; the robust accuracy may still be an overestimate",
        )
    share = found / max(asked, 1)
    masked = share > MASKED
    return Diagnostic(
        check=check, status="warn" if masked else "pass", value=share, threshold=MASKED,
        advice=f"this share of {asked} samples on which the gradient attacks had failed fell to a probe (gradient "
        "masking?): every further attack of the suite was run on all that stood" if masked else "",
    )

