from __future__ import annotations

import contextlib
import datetime
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

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
from robustbench_local.errors import UserError

if TYPE_CHECKING:
    from robustbench_local.attacks import ThreatModel
    from robustbench_local.gates.stopping import GateStoppingRule


@click.command("attack")
@model_options
@data_options
@threat_options
@click.option("--attack", "attacks", multiple=True, metavar="NAME[:KEY=VALUE,…]", help="Attack; repeatable.")
@click.option("--suite", metavar="NAME[/VERSION]", help="Protocol of attacks.  [default: fast]")
@run_options
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    metavar="auto|fp32|tf32|bf16",
    help="Arithmetic of the search; verdicts are always float32's.",
)
@click.option(
    "--diagnostics/--no-diagnostics",
    default=True,
    help="Whether to look at how far the outcome can be believed, and attack adaptively where it cannot.",
)
@click.option("--until-gate", metavar="NAME|FILE", help="Stop as soon as the floors of this gate are decided.")
@click.option("--output", type=click.Path(path_type=Path), help="Result file.  [default: a new one in runs/]")
@click.option("--resume", is_flag=True, help="Go on where the interrupted run of this --output was.")
@click.option("--json", "as_json", is_flag=True, help="Put the result on stdout, alone.")
@config_option
def attack_command(**options: Any) -> None:
    """Attack MODEL and report its clean and robust accuracy.

    Without MODEL the bundled digits classifier is attacked. MODEL is a bundled name, torchvision/NAME, timm/NAME, a
    file (.onnx, .pt2, .safetensors or .pt, with --arch), package.module:factory or path/file.py:factory.

    \b
    robust attack
    robust attack torchvision/resnet50 --data imagefolder:photos --eps 4/255
    robust attack net.py:make --data cifar10 --suite standard --until-gate ci.yaml
    robust attack net.py:make --checkpoint net.pt --normalize cifar10 \\
        --data cifar10 --attack pgd:steps=50,restarts=5 --samples 1000
    torchrun --nproc-per-node 4 -m robustbench_local attack net.py:make \\
        --data cifar10 --suite standard --output cifar.json
    """
    size = batch_size(options["batch_size"])
    from robustbench_local.display.console import console, write_json
    from robustbench_local.display.evaluation import ProgressObserver, show_result
    from robustbench_local.engine.journal import journals
    from robustbench_local.engine.protocol import resolve_attack
    from robustbench_local.evaluation.run import evaluate
    from robustbench_local.runtime.distributed import broadcast, process_group

    if options["resume"] and options["output"] is None:
        raise UserError("--resume needs to know which run is to go on: give the --output that it was to write")
    options = _flags_win(options)
    attacks = [resolve_attack(text) for text in options["attacks"]] or None
    with process_group() as rank:
        # What a model's own code prints is for people; stdout belongs to the JSON.
        with contextlib.redirect_stdout(sys.stderr):
            classifier, dataset = load_model_and_data(options)
        threat_model = load_threat_model(options)
        until = _until(options["until_gate"], threat_model)
        output = options["output"] or broadcast(
            _new_file(classifier.name, dataset.name, threat_model.norm, threat_model.eps_text)
        )
        screen = console(quiet=rank > 0)
        if options["resume"] and not journals(output):
            told = "is complete: nothing is left to do" if output.exists() else "has nothing to resume: it begins"
            screen.print(f"{output} {told}", soft_wrap=True, markup=False)
        try:
            observed = ProgressObserver(screen, options["samples"] or len(dataset))
            with contextlib.redirect_stdout(sys.stderr), observed as observer:
                evaluation = evaluate(
                    classifier,
                    dataset,
                    threat_model,
                    suite=options["suite"],
                    attacks=attacks,
                    samples=options["samples"],
                    seed=options["seed"],
                    batch_size=size,
                    device=options["device"],
                    precision=options["precision"],
                    output=output,
                    resume=options["resume"],
                    observer=observer,
                    diagnostics=options["diagnostics"],
                    stopping_rule=until,
                    config=_asked(options),
                )
        except (KeyboardInterrupt, UserError):
            if journals(output) and not (options["resume"] and isinstance(sys.exception(), UserError)):
                screen.print(
                    f"what was found so far is kept: the same command with --output {output} --resume goes on from "
                    "there",
                    soft_wrap=True,
                    markup=False,
                )
            raise
    show_result(screen, evaluation.result)
    if options["as_json"] and rank == 0:
        write_json(evaluation.result.to_json())
    screen.print(f"result: {output}", soft_wrap=True)


def _flags_win(options: dict[str, Any]) -> dict[str, Any]:
    """A suite or attacks given as a flag put aside the others of a --config file."""
    source = click.get_current_context().get_parameter_source
    given = {name: source(name) is ParameterSource.COMMANDLINE for name in ("attacks", "suite")}
    if given["suite"] and not given["attacks"]:
        return {**options, "attacks": ()}
    return {**options, "suite": None} if given["attacks"] and not given["suite"] else options


def _until(name: str | None, threat_model: ThreatModel) -> GateStoppingRule | None:
    """The floors at which to stop, where a gate was named."""
    if name is None:
        return None
    from robustbench_local.evaluation.build_result import threat_model_info
    from robustbench_local.gates.config import read_gate
    from robustbench_local.gates.stopping import stopping_rule

    return stopping_rule(read_gate(name), name, threat_model_info(threat_model))


def _new_file(*parts: str) -> Path:
    """A name in runs/ that says what was evaluated and when."""
    moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in parts)
    return Path("runs") / f"{name}-{moment}.json"


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    """The options as given, for the result file."""
    kept = (
        "model",
        "checkpoint",
        "arch",
        "normalize",
        "data",
        "split",
        "resize",
        "defenses",
        "attacks",
        "suite",
        "until_gate",
    )
    return {"options": {name: str(options[name]) for name in kept if options[name]}}
