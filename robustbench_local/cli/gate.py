from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from robustbench_local.errors import UserError


def _fraction(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | None:  # noqa: ARG001
    """A limit: a decimal or a fraction between 0 and 1; percent are caught, being the usual slip."""
    if value is None:
        return None
    from robustbench_local.numbers import parse_number

    try:
        number = parse_number(value)
    except ValueError as error:
        raise UserError(f"{parameter.opts[0]}: {error}") from None
    if not 0 <= number <= 1:
        raise UserError(f"{parameter.opts[0]} is {value}, but must be a fraction from 0 to 1: 0.40 for 40 %")
    return number


@click.command("gate")
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--min-robust", callback=_fraction, metavar="FRACTION", help="Least robust accuracy.")
@click.option("--min-clean", callback=_fraction, metavar="FRACTION", help="Least clean accuracy.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Result file of the same samples to compare with.")
@click.option("--max-drop", callback=_fraction, metavar="FRACTION", help="Largest drop of robust accuracy.")
@click.option("--max-clean-drop", callback=_fraction, metavar="FRACTION", help="Largest drop of clean accuracy.")
@click.option("--alpha", default="0.05", show_default=True, callback=_fraction,
              help="How often a floor's decision, or a failed drop, may err.")
@click.option("--json", "as_json", is_flag=True, help="Put the decision on stdout, alone.")
def gate_command(result: Path, baseline: Path | None, as_json: bool, **limits: Any) -> None:
    """Hold a RESULT file against limits: pass (0), fail (3), undecided (4) or not comparable (5).

    A floor is passed or failed when an exact one-sided bound clears it, not when the measured value does. A drop within
    its limit passes; a larger one fails when a paired test on the same samples says that chance does not explain it.

    \b
    robust gate runs/x.json --min-robust 0.40 --min-clean 0.80
    robust gate new.json --baseline old.json --max-drop 0.02
    """
    if all(limits[name] is None for name in ("min_robust", "min_clean", "max_drop", "max_clean_drop")):
        raise UserError("a gate needs a limit: --min-robust, --min-clean, or --max-drop with --baseline")
    drops = limits["max_drop"] is not None or limits["max_clean_drop"] is not None
    if drops != (baseline is not None):
        raise UserError("--baseline and --max-drop (or --max-clean-drop) go together: one says against what, the "
                        "other how much")
    if not 1e-6 <= limits["alpha"] < 0.5:
        raise UserError(f"--alpha is {limits['alpha']:g}, but must lie between 0.000001 and 0.5")
    from robustbench_local.display import console, show_decision, write_json
    from robustbench_local.gate import Gate, decide

    decision = decide(Gate(**limits), result, baseline)
    code = int(decision.outcome)
    click.get_current_context().find_root().obj = code
    show_decision(console(), decision)
    if as_json:
        write_json(json.dumps(decision.to_dict(), indent=2))
    click.get_current_context().exit(code)
