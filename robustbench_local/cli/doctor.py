"""`robust doctor`: check a model and its data before an evaluation."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from robustbench_local.cli.early_checks import check_options
from robustbench_local.cli.options import (
    data_options,
    device_option,
    load_model_and_data,
    model_options,
    require_model_and_data,
)


@click.command("doctor")
@model_options
@data_options
@device_option
def doctor_command(**options: Any) -> None:
    """Check that MODEL and its data can be evaluated together, and how the model can be attacked.

    Prints one line for each check, with a suggested fix where one fails.

    \b
    robust doctor
    robust doctor net.py:make --checkpoint net.pt --data npz:images.npz
    """
    check_options(options)
    require_model_and_data(options)
    from robustbench_local.display.console import console
    from robustbench_local.display.evaluation import show_findings
    from robustbench_local.evaluation.doctor import doctor

    with contextlib.redirect_stdout(sys.stderr):
        classifier, dataset = load_model_and_data(options)
    clean, findings = doctor(classifier, dataset, device=options["device"])
    screen = console()
    screen.print(
        f"{classifier.name} on {dataset.name}: clean accuracy {clean.value:.1%} on {clean.n} images", markup=False
    )
    show_findings(screen, findings)
