"""The command line's training options, generated from the fields of a recipe."""

from __future__ import annotations

import typing
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click
from pydantic.fields import FieldInfo

from robustbench_local.training.recipe import Recipe

F = TypeVar("F", bound=Callable[..., Any])

ARGUMENT = "model"
"""The field that is a positional argument."""


def recipe_options(*, without: Collection[str] = ()) -> Callable[[F], F]:
    """A decorator that gives a command one option for each field of a recipe.

    An option that is not given is None. Values are texts, which the recipe checks as it checks those of files. without:
    fields that the command sets itself.
    """

    def decorate(command: F) -> F:
        for name, field in reversed(Recipe.model_fields.items()):
            if name not in without:
                command = _parameter(name, field)(command)
        return command

    return decorate


def _parameter(name: str, field: FieldInfo) -> Callable[[F], F]:
    if name == ARGUMENT:
        return click.argument(name, required=False)
    flag, choices = f"--{name.replace('_', '-')}", _choices(field.annotation)
    if field.annotation is bool:
        return click.option(flag, name, is_flag=True, default=None, help=field.description)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    metavar = extra.get("metavar")
    return click.option(
        flag,
        name,
        type=click.Choice(choices, case_sensitive=False) if choices else None,
        metavar=str(metavar) if metavar else None,
        help=_help(field, extra.get("shown")),
    )


def _choices(annotation: Any) -> list[str]:
    return (
        [str(choice) for choice in typing.get_args(annotation)]
        if typing.get_origin(annotation) is typing.Literal
        else []
    )


def _help(field: FieldInfo, shown: object) -> str:
    default = field.default
    if shown is None and default is not None:
        shown = f"{default:g}" if isinstance(default, float) else default
    return f"{field.description}  [default: {shown}]" if shown is not None else str(field.description)
