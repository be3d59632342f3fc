"""The checks that need no attack: whether a classifier can be evaluated on a data set."""

from __future__ import annotations

import torch

from robustbench_local.attacks import ThreatModel
from robustbench_local.data.dataset import Dataset, sample_sha256
from robustbench_local.diagnostics.input_plausibility import accuracy_is_plausible
from robustbench_local.diagnostics.preflight import first_images, preflight
from robustbench_local.engine.ledger import SampleStates
from robustbench_local.engine.observer import Observer
from robustbench_local.engine.precision import SearchModel, SearchModels
from robustbench_local.engine.search import RunContext, clean_pass, full_precision
from robustbench_local.evaluation.run_copy import metered_on
from robustbench_local.models import Classifier
from robustbench_local.results.schema import Accuracy, Diagnostic
from robustbench_local.runtime.device import BatchSize, automatic_batch_size, choose_device, enough_memory


def doctor(
    classifier: Classifier, dataset: Dataset, *, device: str | torch.device | None = None
) -> tuple[Accuracy, list[Diagnostic]]:
    """Run every check that precedes an attack; return the clean accuracy and the findings.

    Raises UserError where the classifier and the data set cannot be evaluated together.
    """
    device = device if isinstance(device, torch.device) else choose_device(device)
    with full_precision(device), enough_memory(device), metered_on(classifier, device) as model:
        threat_model = ThreatModel("linf", 0)
        checked = preflight(model, dataset, threat_model, device)
        ledger = SampleStates(dataset.indices, dataset.labels)
        context = RunContext(
            model=model,
            search_models=SearchModels(None, SearchModel(model.model, 0.0, "fp32")),
            dataset=dataset,
            threat_model=threat_model,
            ledger=ledger,
            seed=0,
            batch=BatchSize(automatic_batch_size(model, first_images(dataset, device)[:1])),
            classes=checked.classes,
            device=device,
            advanced=Observer().advance,
        )
        for event in clean_pass(context, torch.arange(len(dataset)), sample_sha256, 0):
            ledger.apply_clean(event)
        plausible = accuracy_is_plausible(model, dataset, ledger.clean_prediction, checked.classes, device)
    return Accuracy.of(int(ledger.correct.sum()), len(dataset)), [*checked.findings, plausible]
