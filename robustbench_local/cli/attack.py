"""`robust attack`: evaluate a classifier under attack."""

from __future__ import annotations

import contextlib
import datetime
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from robustbench_local.cli.early_checks import check_options
from robustbench_local.cli.options import (
    batch_size,
    config_option,
    data_options,
    load_model_and_data,
    load_threat_model,
    model_options,
    require_eps,
    require_model_and_data,
    run_options,
    threat_options,
)
from robustbench_local.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from robustbench_local.attacks import ThreatModel
    from robustbench_local.gates.stopping import GateStoppingRule
    from robustbench_local.results.schema import Result

_RECORDED = (
    "model",
    "checkpoint",
    "checkpoint_key",
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
"""Options that the result file repeats as they were given."""


@click.command("attack")
@model_options
@data_options
@threat_options
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME[:KEY=VALUE,…]",
    help="Attack, such as pgd:steps=50, or a function of yours as path/file.py:FUNCTION; repeatable.",
)
@click.option("--suite", metavar="NAME[/VERSION]", help="Suite of attacks; see 'robust list attacks'.  [default: fast]")
@run_options
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "tf32", "bf16"]),
    default="auto",
    show_default=True,
    help="Arithmetic of the search. Every success is verified in float32.",
)
@click.option(
    "--diagnostics/--no-diagnostics",
    default=True,
    help="Run gradient-masking checks and, where one fails, adaptive attacks.  [default: diagnostics]",
)
@click.option("--until-gate", metavar="NAME|FILE", help="Stop as soon as the floors of this gate file are decided.")
@click.option("--output", type=click.Path(path_type=Path), help="Result file.  [default: a new file in runs/]")
@click.option("--resume", is_flag=True, help="Continue the interrupted run of this --output.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else, on stdout.")
@config_option
def attack_command(**options: Any) -> None:
    """Attack MODEL and report its clean and robust accuracy.

    Without MODEL, attack the bundled digits classifier. MODEL is a bundled name, torchvision/NAME, timm/NAME, a file
    (.onnx, .pt2, .safetensors or .pt, with --arch), package.module:factory or path/file.py:factory.

    \b
    robust attack
    robust attack torchvision/resnet50 --data imagefolder:photos --eps 4/255
    robust attack net.py:make --data cifar10 --suite standard --until-gate ci.yaml
    robust attack net.py:make --checkpoint net.pt --normalize cifar10 \\
        --data cifar10 --attack pgd:steps=50,restarts=5 --samples 1000
    torchrun --nproc-per-node 4 -m robustbench_local attack net.py:make \\
        --data cifar10 --suite standard --output cifar.json
    """
    options = _flags_win(options)
    check_options(options)
    require_model_and_data(options)
    require_eps(options)
    from robustbench_local.display.console import console, write_json
    from robustbench_local.display.evaluation import show_result
    from robustbench_local.runtime.distributed import process_group

    with process_group() as rank:
        screen = console(quiet=rank > 0)
        result, output = _evaluate(options, screen)
    show_result(screen, result)
    if options["as_json"] and rank == 0:
        write_json(result.to_json())
    screen.print(f"result: {output}", soft_wrap=True, markup=False)


def _evaluate(options: dict[str, Any], screen: Console) -> tuple[Result, Path]:
    """Load model and data and evaluate; the result and its file."""
    from robustbench_local.display.evaluation import ProgressObserver
    from robustbench_local.engine.protocol import resolve_attack
    from robustbench_local.evaluation.run import evaluate
    from robustbench_local.runtime.distributed import broadcast

    attacks = [resolve_attack(text) for text in options["attacks"]] or None
    # Whatever a model's own code prints goes to stderr: stdout is for the JSON.
    with contextlib.redirect_stdout(sys.stderr):
        classifier, dataset = load_model_and_data(options)
    threat_model = load_threat_model(options)
    stopping_rule = _stopping_rule(options["until_gate"], threat_model)
    output = options["output"] or broadcast(
        _new_file(classifier.name, dataset.name, threat_model.norm, threat_model.eps_text)
    )
    with _resuming(output, options["resume"], screen):
        progress = ProgressObserver(screen, options["samples"] or len(dataset))
        with contextlib.redirect_stdout(sys.stderr), progress as observer:
            evaluation = evaluate(
                classifier,
                dataset,
                threat_model,
                suite=options["suite"],
                attacks=attacks,
                samples=options["samples"],
                seed=options["seed"],
                batch_size=batch_size(options["batch_size"]),
                device=options["device"],
                precision=options["precision"],
                output=output,
                resume=options["resume"],
                observer=observer,
                diagnostics=options["diagnostics"],
                stopping_rule=stopping_rule,
                config=_recorded(options),
            )
    return evaluation.result, output


@contextlib.contextmanager
def _resuming(output: Path, resume: bool, screen: Console) -> Iterator[None]:
    """Say before the run whether there is anything to resume, and after an interrupted one how to resume it."""
    from robustbench_local.engine.journal import journals

    def say(text: str) -> None:
        screen.print(text, soft_wrap=True, markup=False)

    completed = resume and not journals(output) and output.exists()
    if resume and not journals(output) and not completed:
        say(f"there is no interrupted run of {output} to resume: this run starts from the beginning")
    try:
        yield
        if completed:
            say(f"{output} is complete: there is nothing left to do")
    except (KeyboardInterrupt, UserError) as error:
        if journals(output) and not (resume and isinstance(error, UserError)):
            say(f"the results so far are kept: run the same command with --output {output} --resume to continue")
        raise


def _flags_win(options: dict[str, Any]) -> dict[str, Any]:
    """A suite or attacks on the command line replace the attacks or the suite of a --config file."""
    source = click.get_current_context().get_parameter_source
    on_command_line = {name for name in ("attacks", "suite") if source(name) is ParameterSource.COMMANDLINE}
    if on_command_line == {"suite"}:
        return {**options, "attacks": ()}
    return {**options, "suite": None} if on_command_line == {"attacks"} else options


def _stopping_rule(name: str | None, threat_model: ThreatModel) -> GateStoppingRule | None:
    """The floors of the gate file that end the run once they are decided; None without a gate file."""
    if name is None:
        return None
    from robustbench_local.evaluation.build_result import threat_model_info
    from robustbench_local.gates.config import read_gate
    from robustbench_local.gates.stopping import stopping_rule

    return stopping_rule(read_gate(name, option="--until-gate"), name, threat_model_info(threat_model))


def _new_file(*parts: str) -> Path:
    """A new file in runs/, named after model, data, threat model and time."""
    moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in parts)
    return Path("runs") / f"{name}-{moment}.json"


def _recorded(options: dict[str, Any]) -> dict[str, Any]:
    """The options of the command line, for the result file."""
    return {"options": {name: str(options[name]) for name in _RECORDED if options[name]}}
