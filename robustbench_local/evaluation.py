"""One evaluation from start to result: preflight, clean pass, cascade, verdict, files."""
from __future__ import annotations

import contextlib
import datetime
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustbench_local import __version__
from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.attack import Attack, spec
from robustbench_local.data import stratified_subset
from robustbench_local.data.dataset import Dataset, sample_sha256
from robustbench_local.engine import Job, clean_pass, full_precision, run_attack
from robustbench_local.errors import UserError
from robustbench_local.files import check_writable, write_atomically
from robustbench_local.metering import Meter, Metered, forget_peak_memory, peak_memory
from robustbench_local.models import Classifier, fingerprint
from robustbench_local.observer import Observer
from robustbench_local.preflight import accuracy_is_plausible, after_attacks, preflight
from robustbench_local.protocol import custom, resolve_suite
from robustbench_local.record import Ledger, Record, record_path, summed_hash
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
    read_samples,
)


def choose_device(name: str | None) -> torch.device:
    """The device of that name; without one CUDA, else MPS, else CPU.

    Raises UserError for a device that this machine does not have.
    """
    if name is None:
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps") or (device.type == "cpu" and device.index):
            raise RuntimeError("it is not cpu, cuda, cuda:N or mps")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}): choose cpu, or leave it out") from None
    return device


def default_batch_size(image_shape: tuple[int, int, int], device: torch.device) -> int:
    """Large enough to keep the device busy, small enough that freed activations stay in a CPU's allocator."""
    pixels = image_shape[0] * image_shape[1] * image_shape[2]
    if device.type == "cpu":
        return max(8, min(256, 200_000 // pixels))
    return max(32, min(1024, 1_600_000 // pixels))


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
    batch_size: int | None = None, device: str | torch.device | None = None, output: Path | None = None,
    observer: Observer | None = None, config: dict[str, Any] | None = None,
) -> Evaluation:
    """How many images of the data set the attacks leave standing.

    suite: a protocol's name, by default "fast"; attacks: instead of a suite, attacks of one's own. samples: a seeded
    subset, stratified in the set's own proportions. output: the result file, with the per-sample record beside it.
    config: what else the result should remember of how it was asked for.
    Raises UserError where model, data and threat model do not fit together or the output cannot be written.
    """
    if suite is not None and attacks is not None:
        raise UserError("give a suite or attacks, not both: a protocol cannot carry its name with other attacks in it")
    if attacks is not None and not attacks:
        raise UserError("there is no attack in the list of attacks: give at least one, or leave it out for a suite")
    protocol, cascade = (custom(attacks), tuple(attacks)) if attacks else resolve_suite(suite or "fast")
    where = device if isinstance(device, torch.device) else choose_device(device)
    dataset = _attackable(dataset, threat_model)
    available = len(dataset)
    if samples is not None:
        dataset = dataset.subset(stratified_subset(dataset.labels, samples, seed))
    if output is not None:
        check_writable(output)
    observer = observer or Observer()
    with full_precision(where), _on_device(classifier, where) as metered:
        forget_peak_memory(where)
        meter = Meter(metered)
        classes, diagnostics = preflight(metered, dataset, threat_model, where)
        record = Record(output)
        ledger = Ledger(dataset.indices, dataset.labels, record)
        job = Job(
            model=metered, dataset=dataset, threat_model=threat_model, ledger=ledger, seed=seed,
            batch_size=batch_size or default_batch_size(dataset.image_shape, where), classes=classes, device=where,
            advanced=observer.advance,
        )
        try:
            reports = _cascade(job, cascade, observer)
            diagnostics.append(accuracy_is_plausible(metered, dataset, ledger.correct, classes, where))
            diagnostics += after_attacks(reports, ledger.not_numbers)
            kept = record.complete()
        except UserError:
            record.discard()
            raise
        finally:
            record.close()
        result = _summary(
            classifier=classifier, job=job, protocol=protocol, reports=reports, diagnostics=diagnostics, meter=meter,
            available=available, subset_seed=None if samples is None else seed,
            samples_file=None if output is None else record_path(output).name,
            config={
                "seed": seed, "batch_size": job.batch_size, "device": str(where), "samples": samples, **(config or {})
            },
        )
    if output is not None:
        write_atomically(output, result.to_json())
    return Evaluation(result, output, kept)


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
        ledger = Ledger(dataset.indices, dataset.labels, Record(None))
        clean_pass(Job(
            model=metered, dataset=dataset, threat_model=unmoved, ledger=ledger, seed=0,
            batch_size=default_batch_size(dataset.image_shape, where), classes=classes, device=where,
            advanced=Observer().advance,
        ), sample_sha256)
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


def _cascade(job: Job, cascade: Sequence[Attack], observer: Observer) -> list[AttackReport]:
    observer.begin("clean", len(job.dataset))
    clean_pass(job, sample_sha256)
    reports = []
    for number, attack in enumerate(cascade, start=1):
        observer.begin(spec(attack), int(job.ledger.standing.sum()) * attack.restarts)
        reports.append(run_attack(job, attack, last=number == len(cascade)))
    return reports


def _summary(
    *, classifier: Classifier, job: Job, protocol: Protocol, reports: list[AttackReport],
    diagnostics: list[Diagnostic], meter: Meter, available: int, subset_seed: int | None, samples_file: str | None,
    config: dict[str, Any],
) -> Result:
    ledger, dataset, n = job.ledger, job.dataset, len(job.dataset)
    seconds = meter.seconds
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
            forward_passes=meter.forward_passes, backward_passes=meter.backward_passes,
            forward_passes_per_image=meter.forward_passes / n, backward_passes_per_image=meter.backward_passes / n,
            seconds=seconds, image_steps_per_second=meter.backward_passes / seconds,
            peak_memory_bytes=peak_memory(job.device),
        ),
        environment=_environment(job.device),
        config=config,
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
