"""One evaluation from start to result: preflight, clean pass, cascade, verdict, files."""
from __future__ import annotations

import contextlib
import datetime
import hashlib
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_local import __version__
from robustbench_local.arithmetic import Twin, Twins, check_precision, make_twins
from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.attack import Attack
from robustbench_local.cascade import run_clean, run_stages
from robustbench_local.data import stratified_subset
from robustbench_local.data.dataset import Dataset, sample_sha256
from robustbench_local.device import BatchSize, automatic_batch_size, choose_device
from robustbench_local.engine import Job, clean_pass, full_precision
from robustbench_local.errors import UserError
from robustbench_local.files import check_writable, write_atomically
from robustbench_local.journal import Binding, Journal, journals
from robustbench_local.metering import Metered, Passes, forget_peak_memory, peak_memory
from robustbench_local.models import Classifier, fingerprint
from robustbench_local.observer import Observer
from robustbench_local.preflight import DETERMINISTIC, GRADIENTS, accuracy_is_plausible, after_attacks, preflight
from robustbench_local.processes import device_for, gather, rank_and_world, require_met
from robustbench_local.protocol import custom, require_goes_with, resolve_suite
from robustbench_local.record import Ledger, record_path, seconds_of, summed_hash, write_samples
from robustbench_local.result import (
    Accuracy,
    AttackReport,
    ClassReport,
    Cost,
    DataInfo,
    Diagnostic,
    ModelInfo,
    Protocol,
    Result,
    SampleRecord,
    TargetedGoal,
    ThreatModelInfo,
    Verdict,
    read_result,
    read_samples,
)


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
    classifier: Classifier, dataset: Dataset, threat_model: ThreatModel, *,
    suite: str | None = None, attacks: Sequence[Attack] | None = None, samples: int | None = None, seed: int = 0,
    batch_size: int | None = None, device: str | torch.device | None = None, precision: str = "auto",
    output: Path | None = None, resume: bool = False, observer: Observer | None = None,
    config: dict[str, Any] | None = None,
) -> Evaluation:
    """How many images of the data set the attacks leave standing.

    suite: a protocol's name, by default "fast"; attacks: instead of a suite, attacks of one's own. samples: a seeded
    subset, stratified in the set's own proportions. precision: the arithmetic of the search, "auto", "fp32", "tf32" or
    "bf16"; verdicts are always float32's. output: the result file, with the per-sample record beside it. resume: go on
    where an interrupted run of the same output was. config: what else the result should remember of how it was asked
    for. Under torchrun every process must make the same call; the first one writes, all return the result.
    Raises UserError where model, data and threat model do not fit together, the output cannot be written, or what is
    to be resumed is another run.
    """
    if suite is not None and attacks is not None:
        raise UserError("give a suite or attacks, not both: a protocol cannot carry its name with other attacks in it")
    if attacks is not None and not attacks:
        raise UserError("there is no attack in the list of attacks: give at least one, or leave it out for a suite")
    require_met("evaluate")
    if resume and output is None:
        raise UserError("there is nothing to resume without an output: name the interrupted run's --output")
    protocol, steps = custom(attacks) if attacks else resolve_suite(suite or "fast")
    require_goes_with(protocol, threat_model)
    where = device if isinstance(device, torch.device) else device_for(device)
    precision = check_precision(precision, where)
    dataset = _attackable(dataset, threat_model)
    available = len(dataset)
    if samples is not None:
        dataset = dataset.subset(stratified_subset(dataset.labels, samples, seed))
    if output is not None:
        check_writable(output)
    observer, rank = observer or Observer(), rank_and_world()[0]
    started = time.perf_counter()
    with full_precision(where), _on_device(classifier, where) as metered:
        forget_peak_memory(where)
        classes, diagnostics = preflight(metered, dataset, threat_model, where)
        probe = _first_images(dataset, where)
        twins = make_twins(metered, probe, precision)
        binding = Binding(
            model=_identity(metered, probe, diagnostics), samples=_samples_hash(dataset), seed=seed,
            arithmetic=twins.name, threat_model=_threat_model_hash(threat_model), protocol=protocol.sha256,
        )
        if resume and output is not None and (whole := _complete(output, binding, dataset)) is not None:
            return whole
        ledger = Ledger(dataset.indices, dataset.labels)
        size = batch_size or automatic_batch_size(metered, probe[:1])
        job = Job(
            model=metered, twins=twins, dataset=dataset, threat_model=threat_model, ledger=ledger, seed=seed,
            batch=BatchSize(size), classes=classes, device=where, advanced=observer.advance,
        )
        journal = Journal(output, binding, resume=resume, rank=rank)
        earlier = seconds_of([*journal.clean, *journal.searches])
        before = len(journal.clean), len(journal.searches)
        try:
            run_clean(job, journal, observer, max(step.attack.targets for step in steps))
            gradients = next(finding for finding in diagnostics if finding.check == GRADIENTS)
            reports, findings = run_stages(job, steps, journal, observer, gradients)
            diagnostics += [accuracy_is_plausible(metered, dataset, ledger.correct, classes, where), *findings]
            diagnostics += after_attacks(reports, sum(event.not_numbers for event in journal.searches))
        except UserError:
            if not resume and not journal.searches and rank_and_world()[1] == 1:
                journal.discard()
            raise
        finally:
            journal.close()
        result = _summary(
            classifier=classifier, job=job, protocol=protocol, reports=reports, diagnostics=diagnostics,
            passes=_all_passes(metered.passes, journal, before), seconds=time.perf_counter() - started + earlier,
            available=available, subset_seed=None if samples is None else seed,
            samples_file=None if output is None else record_path(output).name, binding=binding,
            config={
                "seed": seed, "batch_size": size, "device": str(where), "samples": samples,
                "precision": twins.name, "processes": rank_and_world()[1], **(config or {}),
            },
        )
    decided = ledger.samples()
    if output is not None and rank == 0:
        write_samples(output, decided)
        write_atomically(output, result.to_json())
    gather([])  # the journals stay until the result is there
    if rank == 0:
        journal.discard()
    return Evaluation(result, output, decided)


def _all_passes(own: Passes, journal: Journal, before: tuple[int, int]) -> Passes:
    """The passes of the whole run: every event's, of whatever process and session, and what this process spent beside
    its own events on looking at the model. before: how many events there were when this session began."""
    rank = rank_and_world()[0]
    events = [*journal.clean, *journal.searches]
    fresh = [*journal.clean[before[0] :], *journal.searches[before[1] :]]
    mine = [event for event in fresh if event.rank == rank]
    return Passes(
        sum(event.forward for event in events) + own.forward - sum(event.forward for event in mine),
        sum(event.backward for event in events) + own.backward - sum(event.backward for event in mine),
    )


def _complete(output: Path, binding: Binding, dataset: Dataset) -> Evaluation | None:
    """The evaluation that is to be resumed, where it had ended after all."""
    if journals(output) or not output.is_file():
        return None
    result = read_result(output)
    low, high = result.threat_model.box
    hashes = [sample_sha256(dataset.images([position])[0].clamp(low, high)) for position in range(len(dataset))]
    same_data = summed_hash(hashes, dataset.labels) == result.data.sha256
    if result.config.get("binding") != binding.model_dump() or not same_data:
        raise UserError(f"{output} is the result of another run: name another --output, or leave out --resume")
    return Evaluation(result, output, None)


@torch.no_grad()
def _identity(metered: Metered, images: Tensor, findings: Sequence[Diagnostic]) -> str:
    """A hash of the model: its name, its layers, its weights, and roughly what it says of a few images, because its
    code may have changed while its weights have not. A random model says nothing twice."""
    classifier = metered.model
    told = [classifier.name, repr(classifier.module), fingerprint(classifier)]
    if not any(finding.check == DETERMINISTIC and finding.status == "warn" for finding in findings):
        logits = metered(images).double().cpu()
        largest = logits.abs().max().clamp_min(1e-300)
        told += [f"{float(largest):.2g}", repr((logits / largest * 10).round().int().tolist())]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _first_images(dataset: Dataset, device: torch.device) -> Tensor:
    """A few images from all over the data set, to try things on."""
    positions = torch.arange(len(dataset))[:: max(1, len(dataset) // 32)][:32]
    return dataset.images(positions).to(device).clamp(0, 1)


def _samples_hash(dataset: Dataset) -> str:
    """Which samples these are: their places in the data set and their labels. Their pixels are checked one by one."""
    content = torch.stack([dataset.indices, dataset.labels]).numpy().tobytes()
    return hashlib.sha256(f"{dataset.name} {dataset.split} ".encode() + content).hexdigest()


def _threat_model_hash(threat_model: ThreatModel) -> str:
    return hashlib.sha256(_threat_model_info(threat_model).model_dump_json(exclude={"eps_text"}).encode()).hexdigest()


def examine(
    classifier: Classifier, dataset: Dataset, *, device: str | torch.device | None = None
) -> tuple[Accuracy, list[Diagnostic]]:
    """Everything that is checked before an attack, and the clean accuracy: what `robust doctor` shows.

    Raises UserError where model and data do not fit together.
    """
    where = device if isinstance(device, torch.device) else choose_device(device)
    with full_precision(where), _on_device(classifier, where) as metered:
        unmoved = ThreatModel("linf", 0)
        classes, findings = preflight(metered, dataset, unmoved, where)
        ledger = Ledger(dataset.indices, dataset.labels)
        size = automatic_batch_size(metered, _first_images(dataset, where)[:1])
        job = Job(
            model=metered, twins=Twins(None, Twin(classifier, 0.0, "fp32")), dataset=dataset, threat_model=unmoved,
            ledger=ledger, seed=0, batch=BatchSize(size), classes=classes, device=where, advanced=Observer().advance,
        )
        for event in clean_pass(job, torch.arange(len(dataset)), sample_sha256, 0):
            ledger.enter_clean(event)
        findings.append(accuracy_is_plausible(metered, dataset, ledger.correct, classes, where))
    return Accuracy.of(int(ledger.correct.sum()), len(dataset)), findings


def _attackable(dataset: Dataset, threat_model: ThreatModel) -> Dataset:
    """The samples that the threat model speaks of: all, or with a target those that are not of its class already."""
    chosen = threat_model.attackable(dataset.labels)
    if not chosen.any():
        raise UserError(
            f"{dataset.name} has no image of the source class {threat_model.source}: the classes present are "
            f"{', '.join(map(str, dataset.labels.unique().tolist()[:20]))}"
            if threat_model.source is not None
            else f"every image of {dataset.name} is of the target class {threat_model.target} already"
        )
    return dataset if chosen.all() else dataset.subset(chosen.nonzero().squeeze(1))


def _summary(
    *, classifier: Classifier, job: Job, protocol: Protocol, reports: list[AttackReport],
    diagnostics: list[Diagnostic], passes: Passes, seconds: float, available: int, subset_seed: int | None,
    samples_file: str | None, binding: Binding, config: dict[str, Any],
) -> Result:
    ledger, dataset, n = job.ledger, job.dataset, len(job.dataset)
    warned = [finding for finding in diagnostics if finding.status in ("warn", "fail")]
    return Result(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=ModelInfo(
            name=classifier.name, sha256=fingerprint(classifier), classes=job.classes,
            parameters=sum(parameter.numel() for parameter in classifier.parameters()),
            normalization=classifier.normalization,
        ),
        data=DataInfo(
            name=dataset.name, split=dataset.split, n=n, available=available, lossy=dataset.lossy,
            sha256=summed_hash(ledger.hashes, ledger.labels), subset_seed=subset_seed,
        ),
        threat_model=_threat_model_info(job.threat_model),
        protocol=protocol,
        clean_accuracy=Accuracy.of(int(ledger.correct.sum()), n),
        robust_accuracy=Accuracy.of(int(ledger.standing.sum()), n),
        per_class=_per_class(ledger, dataset.class_names or classifier.class_names),
        attacks=reports,
        diagnostics=diagnostics,
        verdict=Verdict(
            status="doubtful" if warned else "not-assessed",
            reasons=[f"{finding.check}: {finding.advice}" for finding in warned],
        ),
        samples_file=samples_file,
        cost=Cost(
            forward_passes=passes.forward, backward_passes=passes.backward,
            forward_passes_per_image=passes.forward / n, backward_passes_per_image=passes.backward / n,
            seconds=seconds, image_steps_per_second=passes.backward / seconds,
            peak_memory_bytes=peak_memory(job.device),
        ),
        environment=_environment(job.device),
        config={**config, "binding": binding.model_dump()},
    )


def _threat_model_info(threat_model: ThreatModel) -> ThreatModelInfo:
    target = threat_model.target
    return ThreatModelInfo(
        norm=threat_model.norm, eps=threat_model.eps, eps_text=threat_model.eps_text, box=threat_model.box,
        goal="untargeted" if target is None else TargetedGoal(source=threat_model.source, target=target),
    )


def _per_class(ledger: Ledger, names: list[str] | None) -> list[ClassReport]:
    reports = []
    for label in ledger.labels.unique().tolist():
        mine = ledger.labels == label
        n = int(mine.sum())
        reports.append(ClassReport(
            label=label,
            name=names[label] if names and label < len(names) else None,
            clean_accuracy=Accuracy.of(int(ledger.correct[mine].sum()), n),
            robust_accuracy=Accuracy.of(int(ledger.standing[mine].sum()), n),
        ))
    return reports


def _environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware, as far as they can move a number."""
    import numpy
    import torchvision

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "robustbench_local": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "device": name,
        "threads": str(torch.get_num_threads()),
    }
