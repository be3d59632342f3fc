"""Names and settings of attacks, training methods and input defenses, read from source code instead of imported.

Importing them loads torch, which takes seconds; a mistyped name should be answered at once. A class is listed where it
has `name: ClassVar[str] = "..."` and the package's `__init__` imports it; its settings are its dataclass fields. A test
compares the tables with the registries.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import robustbench_local

_PACKAGE = Path(robustbench_local.__file__).parent


@functools.cache
def attack_settings() -> dict[str, type]:
    """Every attack of this package by name, as a dataclass with the same fields and no checks of values."""
    region_search = _PACKAGE / "certification" / "region_attack.py"
    return _settings_classes([*_sources("attacks"), region_search], _exported("attacks") | {"RegionSearch"})


@functools.cache
def method_settings() -> dict[str, type]:
    """Every training method by name, as a dataclass with the same fields."""
    return {name: kind for name, kind in _defense_settings().items() if name not in add_on_settings()}


@functools.cache
def add_on_settings() -> dict[str, type]:
    """Every add-on of a training method by name, as a dataclass with the same fields."""
    classes = (node for path in _sources("defenses") for node in _classes(path))
    add_ons = {node.name for node in classes if "ADD_ONS.register" in map(ast.unparse, node.decorator_list)}
    return {name: kind for name, kind in _defense_settings().items() if kind.__name__ in add_ons}


@functools.cache
def _defense_settings() -> dict[str, type]:
    """The training methods and the add-ons."""
    return _settings_classes(_sources("defenses"), _exported("defenses"))


@functools.cache
def input_defense_settings() -> dict[str, type]:
    """Every input defense by name, as a dataclass with the same fields."""
    return _settings_classes(sorted((_PACKAGE / "models" / "input_defenses").glob("*.py")))


@functools.cache
def toolbox_attack_names() -> frozenset[str]:
    """The attack classes that adversarial-robustness-toolbox exports; empty where it is not installed."""
    toolbox = importlib.util.find_spec("art")
    folders = toolbox.submodule_search_locations if toolbox else None
    if not folders:
        return frozenset()
    exports = Path(folders[0]) / "attacks" / "evasion" / "__init__.py"
    return frozenset(_imported_names(exports))


def _sources(package: str) -> list[Path]:
    """The source files of a subpackage, found without running it."""
    spec = importlib.util.find_spec(f"robustbench_local.{package}")
    folders = spec.submodule_search_locations if spec else None
    return sorted(path for folder in folders or () for path in Path(folder).rglob("*.py"))


def _exported(package: str) -> set[str]:
    """The names that a subpackage's `__init__` imports."""
    return {name for path in _sources(package) if path.name == "__init__.py" for name in _imported_names(path)}


def _imported_names(path: Path) -> set[str]:
    imports = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name for node in imports for alias in node.names}


def _settings_classes(paths: Iterable[Path], exported: Container[str] | None = None) -> dict[str, type]:
    """Registered name -> settings. exported: class names; classes of other names are only bases."""
    classes = {node.name: node for path in paths for node in _classes(path)}
    kinds = (node for name, node in classes.items() if exported is None or name in exported)
    named = ((_registered_name(node), node) for node in kinds)
    return {name: _dataclass(node, classes) for name, node in named if name is not None}


def _classes(path: Path) -> Iterator[ast.ClassDef]:
    return (node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef))


def _registered_name(node: ast.ClassDef) -> str | None:
    """The text of `name = "..."`, with or without an annotation."""
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign):
            targets: list[ast.expr] = [statement.target]
        elif isinstance(statement, ast.Assign):
            targets = statement.targets
        else:
            continue
        value = statement.value
        if any(ast.unparse(target) == "name" for target in targets) and isinstance(value, ast.Constant):
            return value.value if isinstance(value.value, str) else None
    return None


def _dataclass(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> type:
    fields = [
        (name, annotation, dataclasses.field(default=None)) for name, annotation in _fields(node, classes).items()
    ]
    return dataclasses.make_dataclass(node.name, fields, kw_only=True)


def _fields(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> dict[str, str]:
    """Name -> annotation of the dataclass fields, those of its bases first."""
    fields: dict[str, str] = {}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name) and base.id in classes:
            fields |= _fields(classes[base.id], classes)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotation = ast.unparse(statement.annotation)
            if annotation.startswith("ClassVar"):
                fields.pop(statement.target.id, None)
            else:
                fields[statement.target.id] = annotation
    return fields
