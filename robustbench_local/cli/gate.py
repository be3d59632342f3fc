"""`robust gate`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_local.errors import UserError

if TYPE_CHECKING:
    from robustbench_local.gates.decision import Decision
    from robustbench_local.gates.gate import Gate, Limits

FORMATS = ("terminal", "json", "junit", "sarif", "github")


def _fraction(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | None:  # noqa: ARG001
    """A limit: a decimal or a fraction from 0 to 1. A percentage is refused, because it is the usual mistake."""
    if value is None:
        return None
    from robustbench_local.numbers import parse_number

    try:
        number = parse_number(value) if not value.strip().endswith("%") else None
    except ValueError as error:
        raise UserError(f"{parameter.opts[0]}: {error}", slug="limit-not-a-number") from None
    if number is None or not 0 <= number <= 1:
        raise UserError(
            f"{parameter.opts[0]} is {value}, but must be a fraction from 0 to 1: 0.40 for 40 %",
            slug="limit-not-a-fraction",
        )
    return number


@click.command("gate")
@click.argument("results", metavar="RESULT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--min-robust", callback=_fraction, metavar="FRACTION", help="Minimum robust accuracy.")
@click.option("--min-clean", callback=_fraction, metavar="FRACTION", help="Minimum clean accuracy.")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Earlier result of the same samples to compare with; one for each threat model.",
)
@click.option("--max-drop", callback=_fraction, metavar="FRACTION", help="Maximum drop of robust accuracy.")
@click.option("--max-clean-drop", callback=_fraction, metavar="FRACTION", help="Maximum drop of clean accuracy.")
@click.option(
    "--require-baseline", is_flag=True, default=None, help="Exit with 5 if the baseline is missing, instead of warning."
)
@click.option("--require", metavar="SUITE[/VERSION]", help="Weakest protocol that is accepted.")
@click.option(
    "--gate", "gate_name", metavar="FILE|NAME", help="Gate file, or a bundled gate; options override its settings."
)
@click.option(
    "--alpha",
    callback=_fraction,
    metavar="FRACTION",
    help="Largest probability that a limit passes wrongly, and that any limit fails wrongly.  [default: 0.05]",
)
@click.option(
    "--format",
    "style",
    type=click.Choice(FORMATS),
    help="Format of the decision on stdout; terminal: nothing on stdout.",
)
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
@click.option("--output", type=click.Path(path_type=Path), help="Write that format to this file instead of stdout.")
@click.option("--update-baseline", is_flag=True, help="Replace the baseline by the result, unless the gate fails.")
def gate_command(
    results: tuple[Path, ...],
    gate_name: str | None,
    style: str | None,
    as_json: bool,
    output: Path | None,
    update_baseline: bool,
    **limits: Any,
) -> None:
    """Decide whether RESULT files, one for each threat model, meet their limits.

    Exit codes: 0 pass, 3 fail, 4 undecided, 5 not comparable or not trusted.

    A minimum accuracy is decided by exact one-sided bounds, not by the measured value. A maximum drop is decided by
    bounds of the paired difference on the same samples.

    \b
    robust gate runs/x.json --min-robust 0.40 --min-clean 0.80
    robust gate new.json --baseline old.json --max-drop 0.02
    robust gate linf.json l2.json --gate gate.yaml --format junit --output gate.xml
    """
    style = _chosen_format(style, as_json, output)
    if limits["alpha"] is not None and not 1e-6 <= limits["alpha"] < 0.5:
        raise UserError(
            f"--alpha is {limits['alpha']:g}, but must be at least 0.000001 and below 0.5", slug="alpha-out-of-range"
        )
    from robustbench_local.display.console import console, write_json
    from robustbench_local.display.gate import show_decision
    from robustbench_local.gates.baseline import update_baselines
    from robustbench_local.gates.config import read_gate
    from robustbench_local.gates.decide import decide
    from robustbench_local.results.protocol_order import require_known

    if limits["require"] is not None:
        require_known(limits["require"])
    gate = read_gate(gate_name, limits)
    _check_baselines(gate.limits, update_baseline)
    if output is not None:
        _check_output(output, gate, results)
    decision = decide(gate, results, create_baselines=update_baseline)
    if update_baseline:
        decision = dataclasses.replace(decision, updated=update_baselines(decision))
    code = int(decision.outcome)
    click.get_current_context().find_root().obj = code
    text = _formatted(style, decision)
    if text and output is not None:
        from robustbench_local.io.atomic_write import write_atomically

        write_atomically(output, text)
    show_decision(console(), decision, update_requested=update_baseline)
    if text and output is None:
        write_json(text)
    click.get_current_context().exit(code)


def _chosen_format(style: str | None, as_json: bool, output: Path | None) -> str:
    if as_json and style not in (None, "json"):
        raise UserError(
            f"--json is short for --format json, but --format is {style}: give one of them", slug="conflicting-formats"
        )
    style = "json" if as_json else style or "terminal"
    if output is not None and style == "terminal":
        raise UserError("--output needs --format json, junit, sarif or github", slug="output-without-format")
    return style


def _check_output(output: Path, gate: Gate, results: tuple[Path, ...]) -> None:
    """Raise UserError where the output cannot be written, or would overwrite a file that the gate reads."""
    from robustbench_local.gates.decide import read_files
    from robustbench_local.io.atomic_write import check_writable

    if output.resolve() in read_files(gate, results):
        raise UserError(
            f"--output {output} would overwrite a file that the gate reads: name another", slug="output-is-input"
        )
    check_writable(output)


def _check_baselines(limits: tuple[Limits, ...], update: bool) -> None:
    """Raise UserError for a baseline without a use, an update without a baseline, and a gate without limits."""
    named = [each for each in limits if each.baselines]
    if update and not named:
        raise UserError("--update-baseline needs a baseline: give --baseline FILE", slug="baseline-not-named")
    if not update and any(not each.has_drops for each in named):
        raise UserError(
            "a baseline needs a limit on drops: give --max-drop or --max-clean-drop with --baseline",
            slug="baseline-without-drop",
        )
    if any(each.empty for each in limits):
        raise UserError(
            "a gate needs a limit: --min-robust, --min-clean, or --max-drop with --baseline", slug="no-limit"
        )


def _formatted(style: str, decision: Decision) -> str:
    """The text for stdout or the output file. `github` writes the step summary too."""
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
