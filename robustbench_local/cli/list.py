from __future__ import annotations

import click


def _models() -> list[tuple[str, str]]:
    from robustbench_local.models import list_models

    return [(name, f"{group}: {note}" if note else group) for group, name, note in list_models()]


def _datasets() -> list[tuple[str, str]]:
    from robustbench_local.data import list_datasets

    return list_datasets()


def _attacks() -> list[tuple[str, str]]:
    import dataclasses

    from robustbench_local.attacks.suites import SUITES
    from robustbench_local.engine.art_attacks import art_attack, art_names
    from robustbench_local.engine.protocol import OWN_ATTACKS

    def settings(kind: type) -> str:
        return ", ".join(f"{field.name}={field.default}" for field in dataclasses.fields(kind))

    rows = [(name, settings(kind)) for name, kind in OWN_ATTACKS.items()]
    rows += [(f"art/{name}", settings(art_attack(name))) for name in art_names()]
    return rows + [
        (f"{name}/{version}", "suite: " + ", ".join(dict.fromkeys(stage.attack.partition(":")[0] for stage in stages)))
        for name, versions in SUITES.items()
        for version, stages in versions.items()
    ]


def _defenses() -> list[tuple[str, str]]:
    from robustbench_local.defenses import AWP, OBJECTIVES
    from robustbench_local.models.catalog import INPUT_DEFENSES
    from robustbench_local.models.preprocessing import input_defense_type

    kinds = {**OBJECTIVES, f"+{AWP.name}": AWP, **{name: input_defense_type(name) for name in INPUT_DEFENSES}}
    return [(name, (kind.__doc__ or "").strip().splitlines()[0]) for name, kind in kinds.items()]


def _configs() -> list[tuple[str, str]]:
    from robustbench_local.gates.config import list_gates
    from robustbench_local.training.recipe import list_recipes

    return [*list_recipes(), *((f"gate/{name}", command) for name, command in list_gates())]


KINDS = {"models": _models, "datasets": _datasets, "attacks": _attacks, "defenses": _defenses, "configs": _configs}


@click.command("list")
@click.argument("kind", type=click.Choice(list(KINDS)))
def list_command(kind: str) -> None:
    """List what there is of KIND, one name a line, on stdout.

    \b
    robust list attacks
    robust list models | grep resnet
    """
    for name, note in KINDS[kind]():
        click.echo(f"{name:<32} {note}".rstrip())
