"""`robust compare`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from robustbench_local.errors import UserError

NOT_COMPARABLE = 5


@click.command("compare")
@click.argument("results", metavar="A B...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "style",
    type=click.Choice(["terminal", "json"]),
    help="Format of the comparison on stdout; terminal: nothing on stdout.",
)
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
def compare_command(results: tuple[Path, ...], style: str | None, as_json: bool) -> None:
    """Compare results of the same samples, threat model and protocol: A is the earlier result, B the later.

    For two results: the change with its confidence interval, a paired exact test, the samples that changed, and the
    change by class and by attack. For more: a table with groups of models that do not differ significantly. Exits with
    5 if the results are not comparable.

    \b
    robust compare main.json mine.json
    robust compare runs/a.json runs/b.json runs/c.json --format json
    """
    if as_json and style == "terminal":
        raise UserError(
            "--json is short for --format json, but --format is terminal: give one of them", slug="conflicting-formats"
        )
    from robustbench_local.display.compare import show_comparison
    from robustbench_local.display.console import console, write_json
    from robustbench_local.results.compare import compare

    comparison = compare(results)
    code = NOT_COMPARABLE if comparison.refusals else 0
    click.get_current_context().find_root().obj = code
    show_comparison(console(), comparison)
    if as_json or style == "json":
        write_json(json.dumps(comparison.to_dict(), indent=2))
    click.get_current_context().exit(code)
