from __future__ import annotations

from typing import Any

import click

from robustbench_local.cli.options import data_options, load_model_and_data, model_options


@click.command("doctor")
@model_options
@data_options
@click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: the best there is]")
def doctor_command(device: str | None, **options: Any) -> None:
    """Check that MODEL and its data can be evaluated together, and how its answers can be attacked.

    \b
    robust doctor
    robust doctor net.py:make --checkpoint net.pt --data npz:images.npz
    """
    from robustbench_local.display.console import console
    from robustbench_local.display.evaluation import show_findings
    from robustbench_local.evaluation.doctor import doctor

    classifier, dataset = load_model_and_data(options)
    clean, findings = doctor(classifier, dataset, device=device)
    screen = console()
    screen.print(
        f"{classifier.name} on {dataset.name}: clean accuracy {clean.value:.1%} on {clean.n} images", markup=False
    )
    show_findings(screen, findings)
