"""The walks of CONTRIBUTING.md, executed exactly as they are written there, in a copy of the source."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST_WALK = 30
WALKS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S))
SHORT = ["--epochs", "1", "--samples", "100", "--batch-size", "32", "--suite", "fast", "--eval-samples", "20"]
COMMANDS = {
    "An attack": ["attack", "--attack", "corner", "--samples", "20", "--no-diagnostics"],
    "A plain function as an attack": [
        "attack",
        "--attack",
        "my_attack.py:attack",
        "--samples",
        "20",
        "--no-diagnostics",
    ],
    "A training method": ["defend", "--method", "sign-at", *SHORT, "--output", "method"],
    "An add-on": ["defend", "--method", "pgd-at:steps=1+weight-scale", *SHORT],
    "An architecture": ["train", "--arch", "linear-net", *SHORT, "--output", "arch"],
    "A dataset": ["attack", "--data", "stripes", "--eps", "0.1", "--samples", "20", "--no-diagnostics", "digits-cnn"],
    "An input defense": ["attack", "--defense", "quantize", "--samples", "20", "--no-diagnostics"],
    "A check": ["attack", "--samples", "20"],
}
LISTINGS = {"attacks": "corner", "defenses": "sign-at", "models": "linear-net", "datasets": "stripes"}
RUN = """
import contextlib, io, sys, traceback
from robustbench_local.cli import main
for number, command in enumerate(eval(sys.stdin.read())):
    sys.argv = ["robust", *command]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        except Exception:
            code = 1
            traceback.print_exc(file=out)
    print(f"@@{code}\\n{out.getvalue()}")
"""


def blocks(walk, language):
    """Path and content of the walk's code blocks, whose first line names the file."""
    return re.findall(rf"^```{language}\n# (\S+)\n(.*?)^```$", WALKS[walk], re.M | re.S)


def apply(folder, walk):
    for name, code in blocks(walk, "python"):
        (folder / name).write_text(code)
    for name, change in blocks(walk, "diff"):
        text = (folder / name).read_text()
        for before, after in edits(change):
            assert f"\n{text}".count(f"\n{before}") == 1, f"{name} has not exactly one {before!r}"
            text = f"\n{text}".replace(f"\n{before}", f"\n{after}", 1)[1:]
        (folder / name).write_text(text)


def edits(change):
    """Text before and after, for every group of lines that begins with a kept or a removed one."""
    for group in re.findall(r"^(?:[ -].*\n)(?:\+.*\n)+", change, re.M):
        first, *added = group.splitlines()
        kept = [first[1:]] if first[0] == " " else []
        yield first[1:], "\n".join([*kept, *(line[1:] for line in added)])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Exit code and output of every walk's command, then of every listing."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("attacks", "defenses", "configs", "robustbench_local"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for walk in WALKS:
        apply(folder, walk)
    commands = [*(COMMANDS[walk] for walk in WALKS), *(["list", kind] for kind in LISTINGS)]
    ran = subprocess.run(
        [sys.executable, "-c", RUN],
        input=repr(commands),
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    parts = ran.stdout.split("@@")[1:]
    assert len(parts) == len(commands), ran.stderr
    outputs = [part.partition("\n") for part in parts]
    return dict(zip([*WALKS, *LISTINGS], [(int(code), text) for code, _, text in outputs], strict=True))


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_does_what_it_says(outcomes, walk):
    code, text = outcomes[walk]
    assert code == 0, text


@pytest.mark.parametrize("kind", LISTINGS)
def test_listings_show_what_was_added(outcomes, kind):
    code, text = outcomes[kind]
    assert code == 0, text
    assert LISTINGS[kind] in text


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_is_short_and_registers_once(walk):
    assert sum(bool(line.strip()) for line in WALKS[walk].splitlines()) <= LONGEST_WALK
    for _, change in blocks(walk, "diff"):
        assert len(list(edits(change))) == 1


def test_there_is_a_walk_for_everything_that_can_be_added():
    assert set(WALKS) == set(COMMANDS)
