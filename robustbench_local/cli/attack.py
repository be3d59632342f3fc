from __future__ import annotations

import contextlib
import datetime
import re
import sys
from pathlib import Path
from typing import Any

import click

from robustbench_local.cli.options import (
    batch_size,
    config_option,
    data_options,
    load_model_and_data,
    load_threat_model,
    model_options,
    run_options,
    threat_options,
)


@click.command("attack")
@model_options
@data_options
@threat_options
@click.option("--attack", "attacks", multiple=True, metavar="NAME[:KEY=VALUE,…]", help="Attack; repeatable.")
@click.option("--suite", metavar="NAME[/VERSION]", help="Protocol of attacks.  [default: fast]")
@run_options
@click.option("--output", type=click.Path(path_type=Path), help="Result file.  [default: a new one in runs/]")
@click.option("--json", "as_json", is_flag=True, help="Put the result on stdout, alone.")
@config_option
def attack_command(**options: Any) -> None:
    """Attack MODEL and report its clean and robust accuracy.

    Without MODEL the bundled digits classifier is attacked. MODEL is a bundled name, torchvision/NAME, timm/NAME, a
    file (.onnx, .pt2, .safetensors or .pt, with --arch), package.module:factory or path/file.py:factory.

    \b
    robust attack
    robust attack torchvision/resnet50 --data imagefolder:photos --eps 4/255
    robust attack net.py:make --checkpoint net.pt --normalize cifar10 \\
        --data cifar10 --attack pgd:steps=50,restarts=5 --samples 1000
    """
    size = batch_size(options["batch_size"])
    from robustbench_local.display import ProgressObserver, console, show_result, write_json
    from robustbench_local.evaluation import evaluate
    from robustbench_local.protocol import resolve_attack
    from robustbench_local.record import partial_path

    attacks = [resolve_attack(text) for text in options["attacks"]] or None
    # What a model's own code prints is for people; stdout belongs to the JSON.
    with contextlib.redirect_stdout(sys.stderr):
        classifier, dataset = load_model_and_data(options)
    threat_model = load_threat_model(options)
    output = options["output"] or _new_file(classifier.name, dataset.name, threat_model.norm, threat_model.eps_text)
    screen = console()
    try:
        observed = ProgressObserver(screen, options["samples"] or len(dataset))
        with contextlib.redirect_stdout(sys.stderr), observed as observer:
            evaluation = evaluate(
                classifier, dataset, threat_model, suite=options["suite"], attacks=attacks,
                samples=options["samples"], seed=options["seed"], batch_size=size, device=options["device"],
                output=output, observer=observer, config=_asked(options),
            )
    except KeyboardInterrupt:
        if partial_path(output).exists():
            screen.print(f"interrupted; the samples decided so far are in {partial_path(output)}", soft_wrap=True)
        raise
    show_result(screen, evaluation.result)
    if options["as_json"]:
        write_json(evaluation.result.to_json())
    screen.print(f"result: {output}", soft_wrap=True)


def _new_file(*parts: str) -> Path:
    """A name in runs/ that says what was evaluated and when."""
    moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in parts)
    return Path("runs") / f"{name}-{moment}.json"


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    """The options as given, for the result file."""
    kept = ("model", "checkpoint", "arch", "normalize", "data", "split", "resize", "attacks", "suite")
    return {"options": {name: str(options[name]) for name in kept if options[name]}}
