from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_local.errors import UserError

if TYPE_CHECKING:
    from robustbench_local.gates.decision import Decision

FORMATS = ("terminal", "json", "junit", "sarif", "github")


def _fraction(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | None:  # noqa: ARG001
    """A limit: a decimal or a fraction between 0 and 1; percent are caught, being the usual slip."""
    if value is None:
        return None
    from robustbench_local.numbers import parse_number

    try:
        number = parse_number(value) if not value.strip().endswith("%") else None
    except ValueError as error:
        raise UserError(f"{parameter.opts[0]}: {error}") from None
    if number is None or not 0 <= number <= 1:
        raise UserError(f"{parameter.opts[0]} is {value}, but must be a fraction from 0 to 1: 0.40 for 40 %")
    return number


@click.command("gate")
@click.argument("results", metavar="RESULT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--min-robust", callback=_fraction, metavar="FRACTION", help="Least robust accuracy.")
@click.option("--min-clean", callback=_fraction, metavar="FRACTION", help="Least clean accuracy.")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Result file of the same samples to compare with; one for each threat model.",
)
@click.option("--max-drop", callback=_fraction, metavar="FRACTION", help="Largest drop of robust accuracy.")
@click.option("--max-clean-drop", callback=_fraction, metavar="FRACTION", help="Largest drop of clean accuracy.")
@click.option("--require", metavar="SUITE[/VERSION]", help="The weakest protocol that will do.")
@click.option("--gate", "gate_name", metavar="FILE|NAME", help="Limits from a YAML file or a shipped one; flags win.")
@click.option(
    "--alpha",
    callback=_fraction,
    metavar="FRACTION",
    help="How often a limit may wrongly pass, or any wrongly fail.  [default: 0.05]",
)
@click.option("--format", "style", type=click.Choice(FORMATS), help="What goes to stdout; terminal: nothing.")
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
@click.option("--output", type=click.Path(path_type=Path), help="File for what would go to stdout.")
@click.option("--update-baseline", is_flag=True, help="Make the result the baseline, unless the gate fails it.")
def gate_command(
    results: tuple[Path, ...],
    gate_name: str | None,
    style: str | None,
    as_json: bool,
    output: Path | None,
    update_baseline: bool,
    **limits: Any,
) -> None:
    """Hold RESULT files, one for each threat model, against limits: pass (0), fail (3), undecided (4) or not
    comparable (5).

    A floor is passed or failed when an exact one-sided bound clears it, not when the measured value does. A drop passes
    when a bound of the paired difference on the same samples is within the limit, and fails when a bound is beyond it.

    \b
    robust gate runs/x.json --min-robust 0.40 --min-clean 0.80
    robust gate new.json --baseline old.json --max-drop 0.02
    robust gate linf.json l2.json --gate gate.yaml --format junit --output gate.xml
    """
    if as_json and style not in (None, "json"):
        raise UserError(f"--json is short for --format json, but --format is {style}: give one of them")
    style = "json" if as_json else style or "terminal"
    if output is not None and style == "terminal":
        raise UserError("--output needs --format json, junit, sarif or github: the terminal's lines are for people")
    if limits["alpha"] is not None and not 1e-6 <= limits["alpha"] < 0.5:
        raise UserError(f"--alpha is {limits['alpha']:g}, but must lie between 0.000001 and 0.5")
    from robustbench_local.display.console import console, write_json
    from robustbench_local.display.gate import show_decision
    from robustbench_local.gates.baseline import update_baselines
    from robustbench_local.gates.config import read_gate
    from robustbench_local.gates.decide import decide, read_files
    from robustbench_local.results.protocol_order import require_known

    if limits["require"] is not None:
        require_known(limits["require"])
    gate = read_gate(gate_name, limits)
    _require_use_of_baselines(gate.limits, update_baseline)
    if output is not None:
        from robustbench_local.io.atomic_write import check_writable

        if output.resolve() in read_files(gate, results):
            raise UserError(f"--output {output} is a file that the gate reads, and would be lost: name another")
        check_writable(output)
    decision = decide(gate, results, first=update_baseline)
    if update_baseline:
        decision = dataclasses.replace(decision, updated=update_baselines(decision))
    code = int(decision.outcome)
    click.get_current_context().find_root().obj = code
    text = _formatted(style, decision)
    if text and output is not None:
        from robustbench_local.io.atomic_write import write_atomically

        write_atomically(output, text)
    show_decision(console(), decision, asked_to_update=update_baseline)
    if text and output is None:
        write_json(text)
    click.get_current_context().exit(code)


def _require_use_of_baselines(limits: tuple[Any, ...], update: bool) -> None:
    named = [each for each in limits if each.baselines]
    if update and not named:
        raise UserError("--update-baseline needs to know which: give --baseline FILE")
    if not update and any(not each.drops for each in named):
        raise UserError(
            "a baseline is there to limit what is lost since it: give --max-drop or --max-clean-drop with --baseline"
        )
    if any(each.empty for each in limits):
        raise UserError("a gate needs a limit: --min-robust, --min-clean, or --max-drop with --baseline")


def _formatted(style: str, decision: Decision) -> str:
    """What goes to stdout or the output file; the step summary of GitHub is written on the way."""
    if style == "json":
        return json.dumps(decision.to_dict(), indent=2) + "\n"
    if style == "junit":
        from robustbench_local.gates.junit import junit

        return junit(decision)
    if style == "sarif":
        from robustbench_local.gates.sarif import sarif

        return sarif(decision)
    if style == "github":
        from robustbench_local.gates.github import workflow_commands, write_step_summary

        write_step_summary(decision)
        return workflow_commands(decision)
    return ""
