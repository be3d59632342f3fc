from __future__ import annotations

import json
from pathlib import Path

import click

from robustbench_local.errors import UserError

NOT_COMPARABLE = 5


@click.command("compare")
@click.argument("results", metavar="A B...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format", "style", type=click.Choice(["terminal", "json"]), help="What goes to stdout; terminal: nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
def compare_command(results: tuple[Path, ...], style: str | None, as_json: bool) -> None:
    """Compare results of the same samples, threat model and protocol: A is the earlier one, B the later.

    Of two, says which samples flipped, whether chance explains it (paired exact test), the interval of the difference,
    and what changed by class and by attack. Several are a table with the groups that cannot be told apart. Exits with 5
    where the results cannot be compared.

    \b
    robust compare main.json mine.json
    robust compare runs/a.json runs/b.json runs/c.json --format json
    """
    if as_json and style == "terminal":
        raise UserError("--json is short for --format json, but --format is terminal: give one of them")
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
