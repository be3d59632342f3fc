"""Build the result file's content from a completed run."""

from __future__ import annotations

import datetime
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustbench_local import __version__
from robustbench_local.attacks import ThreatModel
from robustbench_local.data.dataset import Dataset, dataset_sha256
from robustbench_local.diagnostics.verdict import verdict_of
from robustbench_local.engine.batch import RunContext
from robustbench_local.engine.events import CleanEvent, seconds_of
from robustbench_local.engine.journal import RunFingerprint
from robustbench_local.engine.ledger import SampleStates, record_path
from robustbench_local.evaluation.plan import EvaluationPlan
from robustbench_local.models import Classifier
from robustbench_local.models import fingerprint as model_fingerprint
from robustbench_local.models.metered import Passes
from robustbench_local.results.schema import (
    Accuracy,
    AttackReport,
    ClassReport,
    Cost,
    CostPart,
    CostPartName,
    DataInfo,
    Diagnostic,
    ModelInfo,
    Result,
    Sequential,
    TargetedGoal,
    ThreatModelInfo,
)
from robustbench_local.runtime.distributed import rank_and_world
from robustbench_local.runtime.resources import peak_memory

PARTS_AFTER_SUITE: dict[str, CostPartName] = {"diagnostic": "probes", "adaptive": "adaptive attacks"}
"""The part of the cost that attacks of these roles belong to; all others are the suite's."""


@dataclass(frozen=True)
class CompletedRun:
    """What a run has found.

    context: its dataset and states hold the samples that were evaluated. clean: the events of the clean pass. seconds:
    of all sessions. batch_size: images per batch at the start. block_ends: how many samples had been evaluated after
    each block.
    """

    context: RunContext
    clean: Sequence[CleanEvent]
    reports: list[AttackReport]
    findings: list[Diagnostic]
    passes: Passes
    seconds: float
    batch_size: int
    block_ends: list[int]


def build_result(
    plan: EvaluationPlan, run: CompletedRun, fingerprint: RunFingerprint, output: Path | None, config: Mapping[str, Any]
) -> Result:
    """Return the content of the result file.

    fingerprint: what identifies the run. config: what the caller records in addition to the settings.
    """
    context, n = run.context, len(run.context.dataset)
    states, rule = context.states, plan.settings.stopping_rule

    def accuracy(correct: int) -> Accuracy:
        return Accuracy.of(correct, n) if rule is None else Accuracy.anytime(correct, n, plan.available)

    return Result(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=_model_info(context),
        data=_data_info(plan, context),
        threat_model=threat_model_info(context.threat_model),
        protocol=plan.protocol,
        clean_accuracy=accuracy(int(states.correct.sum())),
        robust_accuracy=accuracy(int(states.robust.sum())),
        per_class=_per_class(states, context.dataset.class_names or context.model.model.class_names),
        attacks=run.reports,
        diagnostics=run.findings,
        verdict=verdict_of(run.findings, assessed=plan.settings.diagnostics),
        samples_file=None if output is None else record_path(output).name,
        cost=_cost(run),
        environment=_environment(context.device),
        config={**_config(plan, run, fingerprint), **config, "binding": _binding(fingerprint)},
        sequential=None
        if rule is None
        else Sequential(gate=rule.name, order_seed=plan.settings.seed, looks=run.block_ends),
    )


def _model_info(context: RunContext) -> ModelInfo:
    classifier = context.model.model
    return ModelInfo(
        name=classifier.name,
        sha256=model_fingerprint(classifier),
        classes=context.classes,
        parameters=sum(parameter.numel() for parameter in classifier.parameters()),
        normalization=classifier.normalization,
    )


def _data_info(plan: EvaluationPlan, context: RunContext) -> DataInfo:
    dataset, states = context.dataset, context.states
    return DataInfo(
        name=dataset.name,
        split=dataset.split,
        n=len(dataset),
        available=plan.available,
        lossy=dataset.lossy,
        sha256=dataset_sha256(states.hashes, states.labels),
        subset_seed=None if plan.settings.samples is None else plan.settings.seed,
    )


def _cost(run: CompletedRun) -> Cost:
    passes, n, parts = run.passes, len(run.context.dataset), _cost_parts(run)
    seconds = max(run.seconds, sum(part.seconds for part in parts))  # a clock that was set back adds up to less
    return Cost(
        forward_passes=passes.forward,
        backward_passes=passes.backward,
        forward_passes_per_image=passes.forward / n,
        backward_passes_per_image=passes.backward / n,
        seconds=seconds,
        image_steps_per_second=passes.backward / seconds,
        peak_memory_bytes=peak_memory(run.context.device),
        parts=parts,
    )


def _cost_parts(run: CompletedRun) -> list[CostPart]:
    """Where the passes and the time of a run went; the checks get whatever is left."""
    by_part: dict[CostPartName, list[AttackReport]] = {"suite": []}
    for report in run.reports:
        by_part.setdefault(PARTS_AFTER_SUITE.get(report.role, "suite"), []).append(report)
    attacks = [
        CostPart(
            name=name,
            forward_passes=sum(report.forward_passes for report in reports),
            backward_passes=sum(report.backward_passes for report in reports),
            seconds=sum(report.seconds for report in reports),
        )
        for name, reports in by_part.items()
    ]
    seconds = max(0.0, run.seconds - sum(part.seconds for part in attacks))
    # Another process may take longer for its share of the clean pass than this one has waited for it.
    clean = CostPart(
        name="clean pass",
        forward_passes=sum(event.forward for event in run.clean),
        backward_passes=sum(event.backward for event in run.clean),
        seconds=min(seconds, seconds_of(run.clean)),
    )
    checks = CostPart(
        name="checks",
        forward_passes=run.passes.forward - sum(part.forward_passes for part in (clean, *attacks)),
        backward_passes=run.passes.backward - sum(part.backward_passes for part in (clean, *attacks)),
        seconds=seconds - clean.seconds,
    )
    return [clean, attacks[0], checks, *attacks[1:]]


def _config(plan: EvaluationPlan, run: CompletedRun, fingerprint: RunFingerprint) -> dict[str, Any]:
    """The settings as resolved. `assess` and `until` are the names of version 1 for diagnostics and stopping rule."""
    return {
        "seed": plan.settings.seed,
        "batch_size": run.batch_size,
        "device": str(plan.device),
        "samples": plan.settings.samples,
        "precision": fingerprint.arithmetic,
        "processes": rank_and_world()[1],
        "assess": fingerprint.diagnostics,
        "until": fingerprint.stopping_rule,
        **_loading(run.context.model.model, run.context.dataset),
    }


def _loading(classifier: Classifier, dataset: Dataset) -> dict[str, Any]:
    """What was decided while model and data were loaded; `checkpoint_key` is "" for the top level of the file."""
    key = {} if classifier.weights is None else {"checkpoint_key": classifier.weights}
    notes = [*classifier.notes, *dataset.notes]
    return {**key, "loading": notes} if notes else key


def _binding(fingerprint: RunFingerprint) -> dict[str, Any]:
    """The fingerprint without what `_config` records under other names."""
    return fingerprint.model_dump(exclude={"diagnostics", "stopping_rule"})


def threat_model_info(threat_model: ThreatModel) -> ThreatModelInfo:
    """Return the threat model in the form of the result file."""
    target = threat_model.target
    return ThreatModelInfo(
        norm=threat_model.norm,
        eps=threat_model.eps,
        eps_text=threat_model.eps_text,
        box=threat_model.box,
        goal="untargeted" if target is None else TargetedGoal(source=threat_model.source, target=target),
        reject=threat_model.reject,
    )


def _per_class(states: SampleStates, names: list[str] | None) -> list[ClassReport]:
    reports = []
    for label in states.labels.unique().tolist():
        members = states.labels == label
        n = int(members.sum())
        reports.append(
            ClassReport(
                label=label,
                name=names[label] if names and label < len(names) else None,
                clean_accuracy=Accuracy.of(int(states.correct[members].sum()), n),
                robust_accuracy=Accuracy.of(int(states.robust[members].sum()), n),
            )
        )
    return reports


def _environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware that can influence a number."""
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
