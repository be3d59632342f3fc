"""The table of who may import whom, held over the syntax trees: arrows between rooms run one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EVERYONE = {"", "errors", "numbers"}
"""What any room may import: the package's own names (`__version__`), UserError, and how numbers are written."""
RUNTIME = {"attacks", "runtime"}
MODELS = RUNTIME | {"data", "io", "models", "specs"}
ENGINE = MODELS | {"certification", "defenses", "engine", "results", "statistics"}
EVALUATION = ENGINE | {"diagnostics", "evaluation"}
MAY_IMPORT = {
    "": {"attacks", "data", "evaluation", "models"},  # public names, imported when they are first asked for
    "errors": set(),
    "numbers": set(),
    "attacks": {"attacks"},
    "defenses": {"attacks", "defenses"},
    "io": {"io"},
    "specs": {"io"},
    "statistics": {"statistics"},
    "runtime": RUNTIME,
    "data": RUNTIME | {"data", "io", "specs"},
    "models": MODELS,
    "results": {"io", "results", "specs", "statistics"},
    "certification": MODELS | {"certification", "defenses", "results", "statistics"},
    "engine": ENGINE - {"defenses", "statistics"},
    "diagnostics": ENGINE | {"diagnostics"},
    "evaluation": EVALUATION,
    "training": EVALUATION | {"training"},
    "gates": {"gates", "io", "results", "specs", "statistics"},
    "display": {"display", "engine.observer", "gates", "io", "results", "training"},
    "cli": EVALUATION | {"cli", "display", "gates", "training"},
    "__main__": {"cli"},
}
TORCH_FREE = ("io", "results", "gates", "statistics", "report", "specs", "errors", "numbers")


def modules():
    for folder in ("attacks", "defenses", "robustbench_local"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[1:] if folder == "robustbench_local" else parts
            yield path, "" if parts == ("__init__",) else parts[0]


def imported(path):
    """Everything that a file imports, at the top or inside a function, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            known = node.module != "robustbench_local"
            yield from ((node.lineno, node.module if known else f"{node.module}.{each.name}") for each in node.names)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_the_table_allows(room):
    refused = set()
    for path, home in modules():
        for line, name in imported(path) if home == room else ():
            package, _, inside = name.partition(".")
            if package == "torch" and room in TORCH_FREE:
                refused.add(f"{path.relative_to(ROOT)}:{line} imports {name}")
            parts = inside.split(".") if package == "robustbench_local" else [""]
            rooms = {parts[0], ".".join(parts[:2])}
            if not rooms & (MAY_IMPORT[room] | EVERYONE) and inside != "__version__":
                refused.add(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not refused


def test_the_table_knows_every_room():
    assert {home for _, home in modules()} == set(MAY_IMPORT)
