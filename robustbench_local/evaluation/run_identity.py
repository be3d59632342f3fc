"""What makes two runs the same run: needed to continue one that was interrupted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustbench_local.attacks import ThreatModel
from robustbench_local.data.dataset import Dataset, dataset_sha256, sample_sha256
from robustbench_local.engine.journal import RunFingerprint, difference, journals
from robustbench_local.errors import UserError
from robustbench_local.evaluation.build_result import threat_model_info
from robustbench_local.evaluation.plan import EvaluationPlan
from robustbench_local.models import fingerprint
from robustbench_local.models.metered import Metered
from robustbench_local.results.checks import DETERMINISTIC
from robustbench_local.results.reading import read_result
from robustbench_local.results.schema import Diagnostic, Result


def run_fingerprint(
    plan: EvaluationPlan,
    model: Metered,
    arithmetic: str,
    image_batches: Sequence[Tensor],
    findings: Sequence[Diagnostic],
) -> RunFingerprint:
    """Return what identifies the run.

    arithmetic: the precision that the search uses. image_batches: a few images, float [rows, ...] each, for which the
    model's answers are recorded. findings: those of the preflight, which say whether the model is random.
    """
    rule = plan.settings.stopping_rule
    return RunFingerprint(
        model=_model_hash(model, image_batches, findings),
        samples=_samples_hash(plan.dataset),
        threat_model=_threat_model_hash(plan.threat_model),
        protocol=plan.protocol.sha256,
        seed=plan.settings.seed,
        arithmetic=arithmetic,
        diagnostics=plan.settings.diagnostics,
        stopping_rule=None if rule is None else repr(rule),
    )


def completed_result(output: Path, current: RunFingerprint, dataset: Dataset) -> Result | None:
    """Return the result of the run that is to be resumed, if that run did complete.

    Raises UserError where the result belongs to another run.
    """
    if journals(output) or not output.is_file():
        return None
    result = read_result(output)
    reason = difference(_recorded_fingerprint(result), current)
    if reason is None and not _same_images(result, dataset):
        reason = "other images"
    if reason is not None:
        raise UserError(
            f"{output} is the result of another run, with {reason}: choose another --output, or leave out --resume",
            slug="resume-other-run",
        )
    return result


def _recorded_fingerprint(result: Result) -> RunFingerprint | None:
    """The fingerprint in a result file; None where it has none that can be read."""
    recorded = result.config.get("binding")
    if not isinstance(recorded, dict) or not {"assess", "until"} <= result.config.keys():
        return None
    fields = {**recorded, "diagnostics": result.config["assess"], "stopping_rule": result.config["until"]}
    try:
        return RunFingerprint.model_validate(fields)
    except ValueError:
        return None


def _same_images(result: Result, dataset: Dataset) -> bool:
    n = result.data.n
    hashes = [sample_sha256(dataset.images([position])[0]) for position in range(n)]
    return dataset_sha256(hashes, dataset.labels[:n]) == result.data.sha256


@torch.no_grad()
def _model_hash(model: Metered, image_batches: Sequence[Tensor], findings: Sequence[Diagnostic]) -> str:
    """A hash of the model's name, layers and weights, and of its rounded logits for a few images.

    The logits show that the model's code has changed where its weights have not. Those of a random model are left out.
    """
    classifier = model.model
    parts = [classifier.name, repr(classifier.module), fingerprint(classifier)]
    if not any(finding.slug == DETERMINISTIC and finding.status == "warn" for finding in findings):
        logits = torch.cat([model(images) for images in image_batches]).double().cpu()
        largest = logits.abs().max().clamp_min(1e-300)
        parts += [f"{float(largest):.2g}", repr((logits / largest * 10).round().int().tolist())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _samples_hash(dataset: Dataset) -> str:
    """A hash of the samples' indices and labels. Their pixels are checked one by one, by the clean pass."""
    content = torch.stack([dataset.indices, dataset.labels]).numpy().tobytes()
    return hashlib.sha256(f"{dataset.name} {dataset.split} ".encode() + content).hexdigest()


def _threat_model_hash(threat_model: ThreatModel) -> str:
    return hashlib.sha256(threat_model_info(threat_model).model_dump_json(exclude={"eps_text"}).encode()).hexdigest()
