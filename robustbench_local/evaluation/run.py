"""One evaluation from start to result: preflight, clean pass, cascade, diagnostics, verdict, files."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_local.attacks import ThreatModel
from robustbench_local.data.dataset import Dataset
from robustbench_local.diagnostics.diagnose import Diagnosis, as_warnings, continue_diagnosis, diagnose, over_blocks
from robustbench_local.diagnostics.input_plausibility import check_inputs
from robustbench_local.diagnostics.preflight import Preflight, first_images, preflight
from robustbench_local.diagnostics.probes import Probing
from robustbench_local.diagnostics.verdict import after_attacks, finding_of
from robustbench_local.engine.batch import RunContext
from robustbench_local.engine.cascade import Cascade, reports_of
from robustbench_local.engine.events import seconds_of
from robustbench_local.engine.function_attack import attack_findings
from robustbench_local.engine.journal import Journal, RunFingerprint
from robustbench_local.engine.ledger import SampleStates, write_outcome
from robustbench_local.engine.observer import Observer
from robustbench_local.engine.precision import build_search_models
from robustbench_local.errors import UserError
from robustbench_local.evaluation.build_result import CompletedRun, build_result
from robustbench_local.evaluation.plan import EvaluationPlan, plan_evaluation
from robustbench_local.evaluation.run_copy import metered_on
from robustbench_local.evaluation.run_identity import completed_result, run_fingerprint
from robustbench_local.evaluation.settings import EvaluationSettings, with_overrides
from robustbench_local.evaluation.stopping import blocks
from robustbench_local.io.atomic_write import check_writable
from robustbench_local.models import Classifier
from robustbench_local.models.metered import Metered, Passes
from robustbench_local.results.checks import GRADIENTS
from robustbench_local.results.reading import read_samples
from robustbench_local.results.schema import Accuracy, Diagnostic, Result, SampleRecord
from robustbench_local.runtime.device import BatchSize, automatic_batch_size, enough_memory
from robustbench_local.runtime.distributed import broadcast, gather, rank_and_world, require_process_group
from robustbench_local.runtime.precision import full_precision
from robustbench_local.runtime.resources import forget_peak_memory, seconds_since

MOST_TARGETS = 9
"""Classes to steer to that are recorded for every sample: as many as any adaptive attack uses."""


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation. path: the result file, if one was written."""

    result: Result
    path: Path | None
    records: list[SampleRecord] | None

    @property
    def samples(self) -> list[SampleRecord]:
        """One record for every sample, by index."""
        if self.records is not None:
            return self.records
        assert self.path is not None
        return read_samples(self.result, self.path)

    @property
    def clean_accuracy(self) -> Accuracy:
        return self.result.clean_accuracy

    @property
    def robust_accuracy(self) -> Accuracy:
        return self.result.robust_accuracy


def evaluate(
    classifier: Classifier,
    dataset: Dataset,
    threat_model: ThreatModel,
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    output: Path | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    config: dict[str, Any] | None = None,
    **overrides: Any,
) -> Evaluation:
    """Evaluate the accuracy of a classifier on clean images and under attack.

    output: the result file to write; the per-sample record is written beside it. resume: continue an interrupted run
    with the same output. observer: is informed of the progress. config: what else the result should record.
    overrides: fields of `EvaluationSettings`, such as `suite="standard", samples=100`.
    Under torchrun every process must make the same call; rank 0 writes the files, and all return the result. Several
    threads may evaluate at once, the same classifier included.
    Raises UserError where model, data and threat model do not fit together, the output cannot be written, or the run
    to resume is another one; TypeError for an unknown keyword.
    """
    settings = with_overrides(settings, overrides, "evaluate")
    require_process_group("evaluate")
    if resume and output is None:
        raise UserError(
            "resuming needs an output: set it to the --output of the interrupted run", slug="resume-without-output"
        )
    plan = plan_evaluation(classifier, dataset, threat_model, settings)
    if output is not None:
        check_writable(output)
    started = time.perf_counter()
    with full_precision(plan.device), enough_memory(plan.device), metered_on(classifier, plan.device) as model:
        forget_peak_memory(plan.device)
        checked = broadcast(preflight(model, plan.dataset, threat_model, plan.device))  # the same on every rank
        context, fingerprint = _set_up(plan, model, checked, observer or Observer())
        if resume and output is not None and (result := completed_result(output, fingerprint, plan.dataset)):
            return Evaluation(result, output, None)
        journal = Journal(output, fingerprint, resume=resume, rank=rank_and_world()[0])
        completed = _attack(_Run(plan, context, checked, journal, observer or Observer()), keep_journal=resume)
        completed = dataclasses.replace(completed, seconds=completed.seconds + seconds_since(started))
        result = build_result(plan, completed, fingerprint, output, config or {})
    records = completed.context.states.samples()
    if output is not None and rank_and_world()[0] == 0:
        write_outcome(output, result, records)
    gather([])  # the journals stay until the result is there
    if rank_and_world()[0] == 0:
        journal.discard()
    return Evaluation(result, output, records)


def _set_up(
    plan: EvaluationPlan, model: Metered, checked: Preflight, observer: Observer
) -> tuple[RunContext, RunFingerprint]:
    """What every attack of the run needs, and what identifies the run."""
    probe = first_images(plan.dataset, plan.device)
    search_models = build_search_models(model, probe[: checked.fits], plan.precision)
    fingerprint = run_fingerprint(plan, model, search_models.name, probe.split(checked.fits), checked.findings)
    context = RunContext(
        model=model,
        search_models=search_models,
        dataset=plan.dataset,
        threat_model=plan.threat_model,
        states=SampleStates(plan.dataset.indices, plan.dataset.labels),
        seed=plan.settings.seed,
        batch_size=BatchSize(plan.settings.batch_size or automatic_batch_size(model, probe[:1])),
        classes=checked.classes,
        device=plan.device,
        on_progress=observer.advance,
    )
    return context, fingerprint


@dataclass(frozen=True)
class _Run:
    """A run that is ready to attack."""

    plan: EvaluationPlan
    context: RunContext
    checked: Preflight
    journal: Journal
    observer: Observer


def _attack(run: _Run, *, keep_journal: bool) -> CompletedRun:
    """Run all attacks and checks.

    keep_journal: an earlier session's journal stays even where this session fails before its first attack.
    """
    journal, plan = run.journal, run.plan
    earlier_seconds = _seconds_of_all(journal)
    earlier_events = len(journal.clean), len(journal.searches)
    batch_size = run.context.batch_size.value
    try:
        cascades, findings = _run_blocks(run)
        reports = reports_of(cascades, journal)
        findings += after_attacks(reports, sum(event.not_numbers for event in journal.searches))
        findings += attack_findings([step.attack for step in plan.steps], reports)
    except UserError:
        if not keep_journal and not journal.searches and rank_and_world()[1] == 1:
            journal.discard()
        raise
    finally:
        journal.close()
    context = run.context
    if plan.settings.stopping_rule is not None:
        context = _first_samples(context, sum(len(cascade.positions) for cascade in cascades))
    return CompletedRun(
        context=context,
        clean=journal.clean,
        reports=reports,
        findings=findings,
        passes=_all_passes(context.model.passes, journal, earlier_events),
        seconds=earlier_seconds,
        batch_size=batch_size,
        block_ends=[int(cascade.positions[-1]) + 1 for cascade in cascades],
    )


def _run_blocks(run: _Run) -> tuple[list[Cascade], list[Diagnostic]]:
    """Take every block of samples through the suite and the attacks that the first block's diagnosis calls for.

    Without a stopping rule all samples are one block.
    """
    context, rule = run.context, run.plan.settings.stopping_rule
    states, n = context.states, len(context.dataset)
    gradients = finding_of(run.checked.findings, GRADIENTS)
    targets = max(MOST_TARGETS, *(step.attack.targets for step in run.plan.steps))
    cascades: list[Cascade] = []
    findings, diagnosis, probings = list(run.checked.findings), Diagnosis([]), list[Probing | None]()
    position_blocks: Iterable[Tensor] = torch.arange(n).split(n) if rule is None else blocks(n)
    for number, positions in enumerate(position_blocks):
        cascade = Cascade(context, run.journal, run.observer, positions, number)
        cascades.append(cascade)
        cascade.run_clean_pass(targets)
        if number:
            cascade.run_suite(run.plan.steps, gradients)
            probings.append(continue_diagnosis(cascade, diagnosis))
        else:
            findings, diagnosis = _first_block(run, cascade, findings, gradients)
            probings.append(diagnosis.probing)
        if rule is not None and rule.decided(
            int(states.correct.sum()), int(states.robust.sum()), int(positions[-1]) + 1, n
        ):
            break
    several = [probing for probing in probings if probing is not None] if len(cascades) > 1 else []
    return cascades, over_blocks(findings, several)


def _first_block(
    run: _Run, cascade: Cascade, findings: Sequence[Diagnostic], gradients: Diagnostic
) -> tuple[list[Diagnostic], Diagnosis]:
    """The suite and the diagnosis of the first block. Returns all findings so far, and the diagnosis."""
    context, plan = run.context, run.plan
    predictions = context.states.clean_prediction[cascade.positions]
    inputs = check_inputs(context.model, context.dataset, predictions, context.classes, context.device)
    findings = [*findings, *inputs, *cascade.run_suite(plan.steps, gradients)]
    if not plan.settings.diagnostics:
        return findings, Diagnosis([])
    diagnosis = diagnose(cascade, run.checked, findings, plan.protocol.name)
    return [*as_warnings(findings, run.checked.doubts, diagnosis), *diagnosis.findings], diagnosis


def _first_samples(context: RunContext, n: int) -> RunContext:
    """The context with the first n samples alone: those that were evaluated."""
    return dataclasses.replace(context, dataset=context.dataset.subset(torch.arange(n)), states=context.states.first(n))


def _all_passes(own: Passes, journal: Journal, earlier_events: tuple[int, int]) -> Passes:
    """The passes of the whole run: those of all events, of every process and session, and the checks' of this process.

    own: all passes of this process in this session. earlier_events: the journal's events when this session started.
    """
    rank = rank_and_world()[0]
    events = [*journal.clean, *journal.searches]
    new_events = [*journal.clean[earlier_events[0] :], *journal.searches[earlier_events[1] :]]
    own_events = [event for event in new_events if event.rank == rank]
    return Passes(
        sum(event.forward for event in events) + own.forward - sum(event.forward for event in own_events),
        sum(event.backward for event in events) + own.backward - sum(event.backward for event in own_events),
    )


def _seconds_of_all(journal: Journal) -> float:
    """How long all events took: at the end of every stage, all processes wait for the slowest."""
    stages = {event.stage for event in journal.searches}
    return seconds_of(journal.clean) + sum(seconds_of(journal.of_stage(stage)) for stage in stages)
