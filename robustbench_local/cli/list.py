"""`robust list`: names that other commands take, from the registries, and the checks that results name."""

from __future__ import annotations

import shutil
import sys
import textwrap

import click

_NAME_WIDTH = 32


def _models() -> list[tuple[str, str]]:
    from robustbench_local.models import list_models

    return [(name, f"{group}: {note}" if note else group) for group, name, note in list_models()]


def _datasets() -> list[tuple[str, str]]:
    from robustbench_local.data import list_datasets

    return list_datasets()


def _attacks() -> list[tuple[str, str]]:
    """The attacks with what they do, their settings and defaults, then the suites with their attacks."""
    import dataclasses

    from robustbench_local.attacks.registry import summary
    from robustbench_local.attacks.suites import SUITES
    from robustbench_local.engine.art_attacks import art_attack, art_names
    from robustbench_local.engine.protocol import OWN_ATTACKS

    def settings(kind: type) -> str:
        return ", ".join(f"{field.name.replace('_', '-')}={field.default}" for field in dataclasses.fields(kind))

    rows = [(name, f"{summary(kind)} {settings(kind)}") for name, kind in OWN_ATTACKS.items()]
    rows += [(f"art/{name}", settings(art_attack(name))) for name in art_names()]
    rows += [("path/file.py:FUNCTION", "your own: (model, images, labels, threat_model, seed) -> images")]
    return rows + [
        (f"{name}/{version}", "suite: " + ", ".join(dict.fromkeys(stage.attack.partition(":")[0] for stage in stages)))
        for name, versions in SUITES.items()
        for version, stages in versions.items()
    ]


def _defenses() -> list[tuple[str, str]]:
    """The training methods, the add-ons of methods, then the input defenses."""
    from robustbench_local.attacks.registry import summary
    from robustbench_local.defenses import ADD_ONS, OBJECTIVES
    from robustbench_local.models.catalog import INPUT_DEFENSES
    from robustbench_local.models.preprocessing import input_defense_type

    kinds: dict[str, type] = {**OBJECTIVES, **{f"+{name}": kind for name, kind in ADD_ONS.items()}}
    kinds |= {name: input_defense_type(name) for name in INPUT_DEFENSES}
    return [(name, summary(kind)) for name, kind in kinds.items()]


def _configs() -> list[tuple[str, str]]:
    """The recipes, then the gate files, each with the command that runs it."""
    from robustbench_local.gates.config import list_gates
    from robustbench_local.training.recipe import list_recipes

    return [*list_recipes(), *((f"gate/{name}", command) for name, command in list_gates())]


def _checks() -> list[tuple[str, str]]:
    """The checks of an evaluation in the order in which they are made."""
    from robustbench_local.results.check_descriptions import DESCRIPTIONS, PHASES

    return [
        (slug, f"{PHASES[each.phase]}: {each.asks} Passes: {each.condition}. Otherwise: {each.effect}. [{each.source}]")
        for slug, each in DESCRIPTIONS.items()
    ]


KINDS = {
    "models": _models,
    "datasets": _datasets,
    "attacks": _attacks,
    "defenses": _defenses,
    "configs": _configs,
    "checks": _checks,
}


@click.command("list")
@click.argument("kind", type=click.Choice(list(KINDS)))
def list_command(kind: str) -> None:
    """List the names of KIND with a note, on stdout: one line each, wrapped on a terminal.

    \b
    robust list attacks
    robust list models | grep resnet
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for name, note in KINDS[kind]():
        click.echo(_row(name, note, width))


def _row(name: str, note: str, width: int | None) -> str:
    """A name and its note in two columns. width: of the terminal; None: everything on one line."""
    line = f"{name:<{_NAME_WIDTH}} {note}".rstrip()
    if width is None or len(line) <= width:
        return line
    indent = " " * (_NAME_WIDTH + 1)
    notes = textwrap.fill(note, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return f"{name}\n{notes}" if len(name) > _NAME_WIDTH else f"{name:<{_NAME_WIDTH}} {notes.lstrip()}"
