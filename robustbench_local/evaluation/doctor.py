"""The checks that need no attack: whether a classifier can be evaluated on a dataset."""

from __future__ import annotations

import torch

from robustbench_local.attacks import ThreatModel
from robustbench_local.data.dataset import Dataset
from robustbench_local.diagnostics.input_plausibility import check_inputs
from robustbench_local.diagnostics.preflight import first_images, preflight
from robustbench_local.engine.batch import RunContext
from robustbench_local.engine.ledger import SampleStates
from robustbench_local.engine.observer import Observer
from robustbench_local.engine.precision import untouched_model
from robustbench_local.engine.search import clean_pass
from robustbench_local.evaluation.plan import labels_of_model
from robustbench_local.evaluation.run_copy import metered_on
from robustbench_local.models import Classifier
from robustbench_local.results.schema import Accuracy, Diagnostic
from robustbench_local.runtime.device import BatchSize, automatic_batch_size, choose_device, enough_memory
from robustbench_local.runtime.precision import full_precision


def doctor(
    classifier: Classifier, dataset: Dataset, *, device: str | torch.device | None = None
) -> tuple[Accuracy, list[Diagnostic]]:
    """Run every check that precedes an attack; return the clean accuracy and the findings.

    Raises UserError where the classifier and the dataset cannot be evaluated together.
    """
    dataset = labels_of_model(classifier, dataset)
    device = device if isinstance(device, torch.device) else choose_device(device)
    with full_precision(device), enough_memory(device), metered_on(classifier, device) as model:
        threat_model = ThreatModel("linf", 0)
        checked = preflight(model, dataset, threat_model, device)
        states = SampleStates(dataset.indices, dataset.labels)
        context = RunContext(
            model=model,
            search_models=untouched_model(model.model),
            dataset=dataset,
            threat_model=threat_model,
            states=states,
            seed=0,
            batch_size=BatchSize(automatic_batch_size(model, first_images(dataset, device)[:1])),
            classes=checked.classes,
            device=device,
            on_progress=Observer().advance,
        )
        for event in clean_pass(context, torch.arange(len(dataset)), 0):
            states.apply_clean(event)
        inputs = check_inputs(model, dataset, states.clean_prediction, checked.classes, device)
    return Accuracy.of(int(states.correct.sum()), len(dataset)), [*checked.findings, *inputs]
