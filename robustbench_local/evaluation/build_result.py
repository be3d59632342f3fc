"""Summing an evaluation up: the result file's content from what is known of every sample."""

from __future__ import annotations

import datetime
import platform
import sys
from typing import Any

import torch

from robustbench_local import __version__
from robustbench_local.attacks import ThreatModel
from robustbench_local.data.dataset import dataset_sha256
from robustbench_local.engine.journal import RunFingerprint
from robustbench_local.engine.ledger import SampleStates
from robustbench_local.engine.search import RunContext
from robustbench_local.models import Classifier, fingerprint
from robustbench_local.models.metered import Passes, peak_memory
from robustbench_local.results.schema import (
    Accuracy,
    AttackReport,
    ClassReport,
    Cost,
    DataInfo,
    Diagnostic,
    ModelInfo,
    Protocol,
    Result,
    Sequential,
    TargetedGoal,
    ThreatModelInfo,
    Verdict,
)


def summed_up(
    *,
    classifier: Classifier,
    job: RunContext,
    protocol: Protocol,
    reports: list[AttackReport],
    diagnostics: list[Diagnostic],
    verdict: Verdict,
    passes: Passes,
    seconds: float,
    available: int,
    subset_seed: int | None,
    samples_file: str | None,
    binding: RunFingerprint,
    sequential: Sequential | None,
    config: dict[str, Any],
) -> Result:
    """job: its data set and ledger hold the samples that were evaluated. available: samples of the whole split.
    seconds: of the whole run.
    """
    ledger, dataset, n = job.ledger, job.dataset, len(job.dataset)

    def accuracy(correct: int) -> Accuracy:
        return Accuracy.of(correct, n) if sequential is None else Accuracy.anytime(correct, n, available)

    return Result(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=ModelInfo(
            name=classifier.name,
            sha256=fingerprint(classifier),
            classes=job.classes,
            parameters=sum(parameter.numel() for parameter in classifier.parameters()),
            normalization=classifier.normalization,
        ),
        data=DataInfo(
            name=dataset.name,
            split=dataset.split,
            n=n,
            available=available,
            lossy=dataset.lossy,
            sha256=dataset_sha256(ledger.hashes, ledger.labels),
            subset_seed=subset_seed,
        ),
        threat_model=threat_model_info(job.threat_model),
        protocol=protocol,
        clean_accuracy=accuracy(int(ledger.correct.sum())),
        robust_accuracy=accuracy(int(ledger.standing.sum())),
        per_class=_per_class(ledger, dataset.class_names or classifier.class_names),
        attacks=reports,
        diagnostics=diagnostics,
        verdict=verdict,
        samples_file=samples_file,
        cost=Cost(
            forward_passes=passes.forward,
            backward_passes=passes.backward,
            forward_passes_per_image=passes.forward / n,
            backward_passes_per_image=passes.backward / n,
            seconds=seconds,
            image_steps_per_second=passes.backward / seconds,
            peak_memory_bytes=peak_memory(job.device),
        ),
        environment=_environment(job.device),
        config={**config, "binding": binding.model_dump()},
        sequential=sequential,
    )


def threat_model_info(threat_model: ThreatModel) -> ThreatModelInfo:
    """The threat model as a result says it."""
    target = threat_model.target
    return ThreatModelInfo(
        norm=threat_model.norm,
        eps=threat_model.eps,
        eps_text=threat_model.eps_text,
        box=threat_model.box,
        goal="untargeted" if target is None else TargetedGoal(source=threat_model.source, target=target),
        reject=threat_model.reject,
    )


def _per_class(ledger: SampleStates, names: list[str] | None) -> list[ClassReport]:
    reports = []
    for label in ledger.labels.unique().tolist():
        mine = ledger.labels == label
        n = int(mine.sum())
        reports.append(
            ClassReport(
                label=label,
                name=names[label] if names and label < len(names) else None,
                clean_accuracy=Accuracy.of(int(ledger.correct[mine].sum()), n),
                robust_accuracy=Accuracy.of(int(ledger.standing[mine].sum()), n),
            )
        )
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
