"""The form `name:key=value,key=value` in which options name anything that has settings."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Container, Mapping
from typing import Any, NamedTuple, TypeVar

from robustbench_local.errors import UserError, nearest
from robustbench_local.io.safe_read import quoted
from robustbench_local.numbers import parse_number

T = TypeVar("T")
_MAX_INTEGER = 2**31


def parse_spec(text: str) -> tuple[str, dict[str, str]]:
    """`pgd:steps=50,step-size=2/255` -> ("pgd", {"steps": "50", "step_size": "2/255"}).

    Raises UserError where a setting is not `key=value` or is given twice.
    """
    name, colon, rest = text.partition(":")
    settings: dict[str, str] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key or not value.strip():
            raise UserError(
                f"{quoted(text)}: write settings as key=value, separated by commas, not {quoted(part)}",
                slug="setting-without-value",
            )
        if key in settings:
            raise UserError(f"{quoted(text)}: {quoted(key)} is given twice", slug="duplicate-setting")
        settings[key] = value.strip()
    return name.strip(), settings


class FunctionSpec(NamedTuple):
    """A function of the user's: `where` is `path/file.py` or `package.module`, `settings` its keyword arguments."""

    where: str
    function: str
    settings: dict[str, str]


def parse_function_spec(text: str, attacks: Container[str]) -> FunctionSpec | None:
    """`path/file.py:function:key=value` or `package.module:function`; None where the text names an attack.

    attacks: the names of attacks, which come first. The function is empty where the text names none.
    Raises UserError where a setting is not `key=value` or is given twice.
    """
    name, _, rest = text.partition(":")
    if name in attacks or name.startswith("art/"):
        return None
    file, ending, more = text.partition(".py:")
    if ending or text.endswith(".py"):
        where, rest = (f"{file}.py", more) if ending else (text, "")
    elif rest.partition(":")[0].strip().isidentifier():
        where = name
    else:
        return None
    function, _, settings = rest.partition(":")
    return FunctionSpec(where, function.strip(), parse_spec(f"{function}:{settings}")[1] if settings else {})


def build(kind: type[T], settings: Mapping[str, str], where: str) -> T:
    """An instance of a dataclass from the texts of its fields.

    where: what the settings belong to, for messages. Raises UserError that names the setting for an unknown key, a text
    of the wrong type, or a value that the dataclass itself refuses with a ValueError.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    for key in settings:
        if key not in fields:
            allowed = f"choose one of {', '.join(fields)}" if fields else "it has no settings"
            raise UserError(
                f"{where}: there is no setting {quoted(key)}: {allowed}.{nearest(key, fields)}", slug="unknown-setting"
            )
    values = {key: _convert(text, fields[key], f"{where}: {key}") for key, text in settings.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}", slug="invalid-setting") from None


def _convert(text: str, kind: Any, where: str) -> object:
    """The text as a value of the annotated type."""
    if isinstance(kind, types.UnionType):
        if text.lower() == "none" and type(None) in kind.__args__:
            return None
        kind = next(choice for choice in kind.__args__ if choice is not type(None))
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{where} is {quoted(text)}, but must be true or false", slug="not-a-boolean")
        return text.lower() == "true"
    try:
        number = parse_number(text)
    except ValueError as error:
        raise UserError(f"{where}: {error}", slug="not-a-number") from None
    if kind is not int:
        return number
    if not number.is_integer():
        raise UserError(f"{where} is {quoted(text)}, but must be a whole number", slug="not-an-integer")
    if abs(number) > _MAX_INTEGER:
        raise UserError(f"{where} is {quoted(text)}, but may be at most {_MAX_INTEGER:,}", slug="integer-out-of-range")
    return int(number)
