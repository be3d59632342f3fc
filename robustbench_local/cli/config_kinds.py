"""Option files, gate files and recipes are YAML files that look alike. Decide which kind a file is."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from robustbench_local.errors import UserError

GATE, RECIPE, ATTACK = "a gate file", "a recipe for 'robust defend'", "a file of options for 'robust attack'"
_USE = {
    GATE: "use 'robust gate --gate FILE' or 'robust attack --until-gate FILE'",
    RECIPE: "use 'robust defend --config FILE'",
    ATTACK: "use 'robust attack --config FILE'",
}


def require_kind(settings: Collection[str], allowed: Collection[str], where: str) -> None:
    """Raise UserError where the settings that are not known are those of another kind of file.

    settings, allowed: names with underscores. where: how the message names the file.
    """
    unknown = set(settings) - set(allowed)
    for kind in (GATE, RECIPE, ATTACK) if unknown else ():
        if unknown <= _settings_of(kind):
            raise UserError(f"{where}: this is {kind}: {_USE[kind]}", slug="wrong-kind-of-config")


def require_kind_of_file(name: str, kind: str, option: str) -> None:
    """Raise UserError where the file of that name is of another kind; a name of no file is a bundled one."""
    from robustbench_local.io.settings import read_settings

    if Path(name).is_file():
        require_kind(read_settings(Path(name)), _settings_of(kind), f"{option} {name}")


def _settings_of(kind: str) -> set[str]:
    """The names that a file of this kind can hold at its top level."""
    if kind == GATE:
        from robustbench_local.gates.config import GateFile

        return set(GateFile.model_fields)
    if kind == RECIPE:
        from robustbench_local.training.recipe import Recipe

        return set(Recipe.model_fields)
    from robustbench_local.cli.attack import attack_command

    return {parameter.opts[0].lstrip("-").replace("-", "_") for parameter in attack_command.params}
