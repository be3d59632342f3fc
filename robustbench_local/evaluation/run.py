"""One evaluation from start to result: preflight, clean pass, cascade, verdict, files."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.attack import Attack
from robustbench_local.attacks.randomness import hash_indices
from robustbench_local.data import stratified_subset
from robustbench_local.data.dataset import Dataset, sample_sha256
from robustbench_local.diagnostics.diagnose import (
    Diagnosis,
    after_attacks,
    diagnose,
    finding_of,
    over_blocks,
    verdict_of,
)
from robustbench_local.diagnostics.input_plausibility import accuracy_is_plausible
from robustbench_local.diagnostics.preflight import Preflight, preflight, probe_images
from robustbench_local.engine.cascade import Cascade, reports_of
from robustbench_local.engine.journal import Journal, RunFingerprint, journals
from robustbench_local.engine.ledger import SampleStates, record_path, seconds_of, write_outcome
from robustbench_local.engine.observer import Observer
from robustbench_local.engine.precision import SearchModel, SearchModels, build_search_models, check_precision
from robustbench_local.engine.protocol import Step, custom, require_goes_with, require_layers, resolve_suite
from robustbench_local.engine.search import RunContext, clean_pass, full_precision
from robustbench_local.errors import UserError
from robustbench_local.evaluation.build_result import summed_up, threat_model_info
from robustbench_local.evaluation.stopping import StoppingRule, blocks
from robustbench_local.io.atomic_write import check_writable
from robustbench_local.models import Classifier, fingerprint
from robustbench_local.models.metered import Metered, Passes, forget_peak_memory, seconds_since
from robustbench_local.results.checks import DETERMINISTIC, GRADIENTS
from robustbench_local.results.reading import read_result, read_samples
from robustbench_local.results.schema import Accuracy, Diagnostic, Result, SampleRecord, Sequential
from robustbench_local.runtime.device import BatchSize, automatic_batch_size, choose_device, enough_memory
from robustbench_local.runtime.distributed import broadcast, device_for, gather, rank_and_world, require_process_group

MOST_TARGETS = 9
"""Classes to steer to that are remembered of every sample: as many as any attack that a diagnostic calls for wants."""


@dataclass(frozen=True)
class Evaluation:
    """The outcome: summed up in `result`, one by one in `samples`."""

    result: Result
    path: Path | None
    kept: list[SampleRecord] | None

    @property
    def samples(self) -> list[SampleRecord]:
        if self.kept is not None:
            return self.kept
        assert self.path is not None
        return read_samples(self.result, self.path)

    @property
    def clean_accuracy(self) -> Accuracy:
        return self.result.clean_accuracy

    @property
    def robust_accuracy(self) -> Accuracy:
        return self.result.robust_accuracy


@contextlib.contextmanager
def _on_device(classifier: Classifier, device: torch.device) -> Iterator[Metered]:
    """The classifier on the device, counted; afterwards it is where and what it was."""
    state = next(iter(classifier.state_dict().values()), None)
    home, probabilities = getattr(state, "device", device), classifier.probabilities
    try:
        yield Metered(classifier.to(device))
    finally:
        classifier.to(home)
        classifier.probabilities = probabilities


def evaluate(
    classifier: Classifier,
    dataset: Dataset,
    threat_model: ThreatModel,
    *,
    suite: str | None = None,
    attacks: Sequence[Attack] | None = None,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
    output: Path | None = None,
    resume: bool = False,
    assess: bool = True,
    until: StoppingRule | None = None,
    observer: Observer | None = None,
    config: dict[str, Any] | None = None,
) -> Evaluation:
    """How many images of the data set the attacks leave standing.

    suite: a protocol's name, by default "fast"; attacks: instead of a suite, attacks of one's own. samples: a seeded
    subset, stratified in the set's own proportions. precision: the arithmetic of the search, "auto", "fp32", "tf32" or
    "bf16"; verdicts are always float32's. output: the result file, with the per-sample record beside it. resume: go on
    where an interrupted run of the same output was. assess: look at how far the outcome can be believed, and attack
    adaptively where there is a reason to. until: evaluate block by block, in a seeded random order, until these floors
    are decided. config: what else the result should remember of how it was asked for. Under torchrun every process must
    make the same call; the first one writes, all return the result.
    Raises UserError where model, data and threat model do not fit together, the output cannot be written, or what is
    to be resumed is another run.
    """
    if suite is not None and attacks is not None:
        raise UserError("give a suite or attacks, not both: a protocol cannot carry its name with other attacks in it")
    if attacks is not None and not attacks:
        raise UserError("there is no attack in the list of attacks: give at least one, or leave it out for a suite")
    require_process_group("evaluate")
    if resume and output is None:
        raise UserError("there is nothing to resume without an output: name the interrupted run's --output")
    protocol, steps = custom(attacks) if attacks else resolve_suite(suite or "fast")
    require_goes_with(protocol, threat_model)
    require_layers(classifier, steps)
    where = device if isinstance(device, torch.device) else device_for(device)
    precision = check_precision(precision, where)
    dataset = _attackable(dataset, threat_model)
    available = len(dataset)
    if until is not None:
        if samples is not None:
            raise UserError(
                "an evaluation that stops when a gate is decided chooses its own number of samples: leave "
                "--samples or --until-gate out"
            )
        dataset = dataset.subset(hash_indices(seed, dataset.indices).argsort(stable=True))
    if samples is not None:
        dataset = dataset.subset(stratified_subset(dataset.labels, samples, seed))
    if output is not None:
        check_writable(output)
    observer, rank = observer or Observer(), rank_and_world()[0]
    started = time.perf_counter()
    with full_precision(where), enough_memory(where), _on_device(classifier, where) as metered:
        forget_peak_memory(where)
        found = broadcast(preflight(metered, dataset, threat_model, where))  # what follows depends on it everywhere
        probe = _first_images(dataset, where)
        search_models = build_search_models(metered, probe[: found.fits], precision)
        binding = RunFingerprint(
            model=_identity(metered, probe.split(found.fits), found.findings),
            samples=_samples_hash(dataset),
            threat_model=_threat_model_hash(threat_model),
            protocol=protocol.sha256,
            seed=seed,
            arithmetic=search_models.name,
        )
        asked = {"assess": assess, "until": None if until is None else repr(until)}
        if resume and output is not None and (whole := _complete(output, binding, dataset, asked)) is not None:
            return whole
        ledger = SampleStates(dataset.indices, dataset.labels)
        size = batch_size or automatic_batch_size(metered, probe[:1])
        job = RunContext(
            model=metered,
            search_models=search_models,
            dataset=dataset,
            threat_model=threat_model,
            ledger=ledger,
            seed=seed,
            batch=BatchSize(size),
            classes=found.classes,
            device=where,
            advanced=observer.advance,
        )
        journal = Journal(output, binding, resume=resume, rank=rank)
        earlier = seconds_of([*journal.clean, *journal.searches])
        before = len(journal.clean), len(journal.searches)
        try:
            cascades, diagnostics = _attacked(job, steps, journal, observer, found, assess=assess, until=until)
            reports = reports_of(cascades, journal)
            diagnostics += after_attacks(reports, sum(event.not_numbers for event in journal.searches))
        except UserError:
            if not resume and not journal.searches and rank_and_world()[1] == 1:
                journal.discard()
            raise
        finally:
            journal.close()
        if until is not None:
            job = _first_samples(job, sum(len(cascade.positions) for cascade in cascades))
        result = summed_up(
            classifier=classifier,
            job=job,
            protocol=protocol,
            reports=reports,
            diagnostics=diagnostics,
            verdict=verdict_of(diagnostics, assessed=assess),
            passes=_all_passes(metered.passes, journal, before),
            seconds=seconds_since(started) + earlier,
            available=available,
            subset_seed=None if samples is None else seed,
            samples_file=None if output is None else record_path(output).name,
            binding=binding,
            sequential=None if until is None else _stopped(cascades, until, seed),
            config={
                "seed": seed,
                "batch_size": size,
                "device": str(where),
                "samples": samples,
                "precision": search_models.name,
                "processes": rank_and_world()[1],
                **asked,
                **(config or {}),
            },
        )
    decided = job.ledger.samples()
    if output is not None and rank == 0:
        write_outcome(output, result, decided)
    gather([])  # the journals stay until the result is there
    if rank == 0:
        journal.discard()
    return Evaluation(result, output, decided)


def _attacked(
    job: RunContext,
    steps: Sequence[Step],
    journal: Journal,
    observer: Observer,
    found: Preflight,
    *,
    assess: bool,
    until: StoppingRule | None,
) -> tuple[list[Cascade], list[Diagnostic]]:
    """All samples, or block after block until the floors are decided, through the suite and what the first block's
    diagnosis calls for.
    """
    ledger, n = job.ledger, len(job.dataset)
    targets = max(MOST_TARGETS, *(step.attack.targets for step in steps))
    gradients = finding_of(found.findings, GRADIENTS)
    cascades: list[Cascade] = []
    diagnostics, diagnosis = list(found.findings), Diagnosis([], [])
    for number, positions in enumerate(torch.arange(n).split(n) if until is None else blocks(n)):
        cascade = Cascade(job, journal, observer, positions, number)
        cascades.append(cascade)
        cascade.clean(targets)
        if number:
            cascade.suite(steps, gradients)
            cascade.run_extra_stages(diagnosis.extra_stages)
        else:
            predictions = ledger.clean_prediction[positions]
            diagnostics.append(accuracy_is_plausible(job.model, job.dataset, predictions, job.classes, job.device))
            diagnostics += cascade.suite(steps, gradients)
            if assess:
                diagnosis = diagnose(cascade, found, diagnostics)
                diagnostics += diagnosis.findings
        counts = int(ledger.correct.sum()), int(ledger.standing.sum())
        if until is not None and until.decided(*counts, int(positions[-1]) + 1, n):
            break
    return cascades, over_blocks(diagnostics, cascades) if len(cascades) > 1 else diagnostics


def _first_samples(job: RunContext, n: int) -> RunContext:
    """The same with the first n samples, which are all that was evaluated."""
    return dataclasses.replace(job, dataset=job.dataset.subset(torch.arange(n)), ledger=job.ledger.first(n))


def _stopped(cascades: Sequence[Cascade], until: StoppingRule, seed: int) -> Sequential:
    return Sequential(gate=until.name, order_seed=seed, looks=[int(cascade.positions[-1]) + 1 for cascade in cascades])


def _all_passes(own: Passes, journal: Journal, before: tuple[int, int]) -> Passes:
    """The passes of the whole run: every event's, of whatever process and session, and what this process spent beside
    its own events on looking at the model. before: how many events there were when this session began.
    """
    rank = rank_and_world()[0]
    events = [*journal.clean, *journal.searches]
    fresh = [*journal.clean[before[0] :], *journal.searches[before[1] :]]
    mine = [event for event in fresh if event.rank == rank]
    return Passes(
        sum(event.forward for event in events) + own.forward - sum(event.forward for event in mine),
        sum(event.backward for event in events) + own.backward - sum(event.backward for event in mine),
    )


def _complete(output: Path, binding: RunFingerprint, dataset: Dataset, asked: dict[str, Any]) -> Evaluation | None:
    """The evaluation that is to be resumed, where it had ended after all. asked: what else must be the same."""
    if journals(output) or not output.is_file():
        return None
    result = read_result(output)
    same_data = dataset.subset(range(result.data.n)).sha256() == result.data.sha256
    same = result.config.get("binding") == binding.model_dump() and asked.items() <= result.config.items()
    if not same or not same_data:
        raise UserError(f"{output} is the result of another run: name another --output, or leave out --resume")
    return Evaluation(result, output, None)


@torch.no_grad()
def _identity(metered: Metered, batches: Sequence[Tensor], findings: Sequence[Diagnostic]) -> str:
    """A hash of the model: its name, its layers, its weights, and roughly what it says of a few images, because its
    code may have changed while its weights have not. A random model says nothing twice.
    """
    classifier = metered.model
    told = [classifier.name, repr(classifier.module), fingerprint(classifier)]
    if not any(finding.slug == DETERMINISTIC and finding.status == "warn" for finding in findings):
        logits = torch.cat([metered(images) for images in batches]).double().cpu()
        largest = logits.abs().max().clamp_min(1e-300)
        told += [f"{float(largest):.2g}", repr((logits / largest * 10).round().int().tolist())]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _first_images(dataset: Dataset, device: torch.device) -> Tensor:
    """A few images from all over the data set, to try things on."""
    return dataset.images(probe_images(dataset)).to(device)


def _samples_hash(dataset: Dataset) -> str:
    """Which samples these are: their places in the data set and their labels. Their pixels are checked one by one."""
    content = torch.stack([dataset.indices, dataset.labels]).numpy().tobytes()
    return hashlib.sha256(f"{dataset.name} {dataset.split} ".encode() + content).hexdigest()


def _threat_model_hash(threat_model: ThreatModel) -> str:
    return hashlib.sha256(threat_model_info(threat_model).model_dump_json(exclude={"eps_text"}).encode()).hexdigest()


def examine(
    classifier: Classifier, dataset: Dataset, *, device: str | torch.device | None = None
) -> tuple[Accuracy, list[Diagnostic]]:
    """Everything that is checked before an attack, and the clean accuracy: what `robust doctor` shows.

    Raises UserError where model and data do not fit together.
    """
    where = device if isinstance(device, torch.device) else choose_device(device)
    with full_precision(where), enough_memory(where), _on_device(classifier, where) as metered:
        unmoved = ThreatModel("linf", 0)
        found = preflight(metered, dataset, unmoved, where)
        ledger = SampleStates(dataset.indices, dataset.labels)
        size = automatic_batch_size(metered, _first_images(dataset, where)[:1])
        job = RunContext(
            model=metered,
            search_models=SearchModels(None, SearchModel(classifier, 0.0, "fp32")),
            dataset=dataset,
            threat_model=unmoved,
            ledger=ledger,
            seed=0,
            batch=BatchSize(size),
            classes=found.classes,
            device=where,
            advanced=Observer().advance,
        )
        for event in clean_pass(job, torch.arange(len(dataset)), sample_sha256, 0):
            ledger.apply_clean(event)
        plausible = accuracy_is_plausible(metered, dataset, ledger.clean_prediction, found.classes, where)
    return Accuracy.of(int(ledger.correct.sum()), len(dataset)), [*found.findings, plausible]


def _attackable(dataset: Dataset, threat_model: ThreatModel) -> Dataset:
    """The samples that the threat model speaks of: all, or with a target those that are not of its class already."""
    chosen = threat_model.in_scope(dataset.labels)
    if not chosen.any():
        raise UserError(
            f"{dataset.name} has no image of the source class {threat_model.source}: the classes present are "
            f"{', '.join(map(str, dataset.labels.unique().tolist()[:20]))}"
            if threat_model.source is not None
            else f"every image of {dataset.name} is of the target class {threat_model.target} already"
        )
    return dataset if chosen.all() else dataset.subset(chosen.nonzero().squeeze(1))
