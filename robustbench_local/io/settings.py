"""Settings in YAML: the one reader of recipes, gate files and option files, and the one way to report what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from robustbench_local.errors import UserError, nearest
from robustbench_local.io.safe_read import MOST_SETTINGS, parse_yaml, printable, quoted, read_text

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

M = TypeVar("M", bound="BaseModel")

MOST_PROBLEMS = 10
"""How many problems one message names; a file with more is a file of another kind."""


def read_settings(path: Path, where: str | None = None) -> dict[str, Any]:
    """The settings of a YAML file, with underscores in their names.

    where: how messages name the file; by default its path. Raises UserError for a file that cannot be read, is too
    large or not text, and for what `parse_settings` refuses.
    """
    return parse_settings(read_text(path, MOST_SETTINGS), where or printable(path))


def parse_settings(text: str, where: str) -> dict[str, Any]:
    """The settings of a YAML text; `batch-size` and `batch_size` are the same name.

    Raises UserError for invalid YAML, a name that is given twice, and a text that is not a mapping.
    """
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{where} is not valid YAML: {error}", slug="invalid-yaml") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{where} holds no settings: write one 'name: value' per line, such as 'seed: 0'", slug="no-settings"
        )
    return with_underscores(content, where)


def with_underscores(values: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The same values under names with underscores. Raises UserError where two names become one."""
    settings: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name in settings:
            raise UserError(
                f"{where} gives {quoted(name)} twice, with - and with _: keep one", slug="duplicate-setting"
            )
        settings[name] = value
    return settings


def reject_unknown(settings: Collection[str], allowed: Collection[str], where: str) -> None:
    """Raises UserError that names every unknown setting with the nearest known one."""
    problems = [unknown_setting(name, allowed) for name in settings if name not in allowed]
    if problems:
        raise UserError(f"{where}: {_joined(problems)}", slug="unknown-setting")


def unknown_setting(name: str, allowed: Collection[str]) -> str:
    """What a message says of an unknown setting."""
    return f"there is no setting {quoted(name)}.{nearest(name, allowed)}".rstrip(".")


def validate_settings(
    model: type[M], settings: Mapping[str, Any], where: str, *, describe: Callable[[ErrorDetails], str]
) -> M:
    """An instance of the pydantic model from settings.

    describe: what a message says of one of pydantic's problems. Raises UserError that names every problem at once, with
    the slug `unknown-setting` where all of them are unknown names, else `invalid-setting`.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(settings)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        problems = list(dict.fromkeys(describe(problem) for problem in errors))
        unknown = all(problem["type"] == "extra_forbidden" for problem in errors)
        slug = "unknown-setting" if unknown else "invalid-setting"
        raise UserError(f"{where}: {_joined(problems)}", slug=slug) from None


def plain_reason(problem: ErrorDetails) -> str:
    """Pydantic's message about a value, without pydantic's own terms."""
    return problem["msg"].removeprefix("Value error, ").removeprefix("Input ")


def _joined(problems: list[str]) -> str:
    more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
    return "; ".join(problems[:MOST_PROBLEMS]) + more
