"""Limits of the house: how long a file or a function may be, how many parameters it may take, and slugs for errors."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 8
FOLDERS = ("attacks", "defenses", "robustbench_local")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in [*SOURCES, *TESTS]}


def named(path, line=None):
    return f"{path.relative_to(ROOT)}" + (f":{line}" if line else "")


def nodes(kinds, paths=SOURCES):
    return ((path, node) for path in paths for node in ast.walk(TREES[path]) if isinstance(node, kinds))


def calls(names):
    """Every call of something that bears one of the names, with the place."""
    for path, node in nodes(ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in names:
            yield path, node


def errors():
    """UserError and whatever derives from it."""
    known = {"UserError"}
    for _ in range(3):
        for _, node in nodes(ast.ClassDef):
            known |= {node.name} if known & {getattr(base, "id", "") for base in node.bases} else set()
    return known


def test_no_file_is_too_long():
    assert not {named(path): n for path in SOURCES if (n := len(path.read_text().splitlines())) > LINES}


def test_no_function_is_too_long():
    functions = nodes((ast.FunctionDef, ast.AsyncFunctionDef))
    lengths = {named(path, node.lineno): node.end_lineno - node.lineno + 1 for path, node in functions}
    assert not {place: length for place, length in lengths.items() if length > FUNCTION_LINES}


def test_no_function_takes_too_many_parameters():
    counts = {}
    for path, node in nodes((ast.FunctionDef, ast.AsyncFunctionDef)):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bound = bool(arguments) and arguments[0].arg in ("self", "cls")
        counts[named(path, node.lineno)] = len(arguments) - bound
    assert not {place: count for place, count in counts.items() if count > PARAMETERS}


def test_every_error_has_a_slug():
    known, missing = errors(), set()
    for path, node in calls(known):
        slug = next((keyword.value for keyword in node.keywords if keyword.arg == "slug"), None)
        if slug is None and not any(keyword.arg is None for keyword in node.keywords):
            missing.add(named(path, node.lineno))
        if isinstance(slug, ast.Constant):
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug.value), named(path, node.lineno)
    assert not missing


def test_no_test_imports_what_is_private():
    private = Counter()
    for path, node in nodes(ast.ImportFrom, TESTS):
        if (node.module or "").startswith("robustbench_local"):
            private.update(f"{named(path)} imports {each.name}" for each in node.names if each.name.startswith("_"))
    assert not private


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_compares_the_wording_of_a_message(folder):
    """Decisions hang on slugs, codes and types: `"memory" in str(error)` broke when a library changed its words."""
    found = set()
    for path, node in nodes(ast.Compare):
        if path.relative_to(ROOT).parts[0] != folder or not isinstance(node.ops[0], ast.In | ast.NotIn):
            continue
        right = node.comparators[0]
        worded = isinstance(right, ast.Call) and getattr(right.func, "id", "") == "str"
        if worded and getattr(right.args[0], "id", "") in ("error", "exception", "failure", "warning"):
            found.add(named(path, node.lineno))
    assert found <= WORDED


WORDED = set()
"""None: libraries whose errors have no type of their own are listed by their signs in `runtime/device.py`."""
