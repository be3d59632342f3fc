"""The table of an evaluation on terminals of several widths, and the progress bar after a resume."""

import io
import json
import re

import pytest
from rich.console import Console

from robustbench_local.attacks.attack import spec_text
from robustbench_local.display.evaluation import ProgressObserver, show_findings, show_result
from robustbench_local.display.result_table import spaced
from robustbench_local.engine.protocol import resolve_suite
from robustbench_local.results.checks import CHECKS
from robustbench_local.results.reading import read_result
from robustbench_local.results.schema import Diagnostic

LONGEST = (
    "bpda:steps=50,loss=margin,layers=features.0.activation+features.7.quantize,saturating=true,stretch=0.1,targets=9"
)
HEADINGS = ("after", "accuracy", "95 % interval", "fooled", "passes", "seconds")
N, CLEAN = 10_000, 9_000
PASSES, SECONDS = 1_234_567_890, 123_456.7


def suite_result(make_result, path, suite):
    """A result of ten thousand images with every attack of a suite, probes and adaptive attacks that succeeded."""
    steps = resolve_suite(suite)[1]
    roles = [(spec_text(step.attack), step.stage.role) for step in steps]
    roles += [("noise:steps=100", "diagnostic"), (LONGEST, "adaptive")]
    changes = {
        "diagnostics": [{"slug": slug, "status": "pass"} for slug in CHECKS],
        "config": {"seed": 0, "device": "cpu"},
    }
    attacks = [(name, 100 + number) for number, (name, _) in enumerate(roles)]
    robust = CLEAN - sum(fooled for _, fooled in attacks)
    make_result(path, robust, n=N, clean=CLEAN, attacks=attacks, changes=changes)
    content = json.loads(path.read_text())
    left = CLEAN
    for (_, role), attack in zip(roles, content["attacks"], strict=True):
        left -= attack["fooled"]
        attack.update(role=role, robust_accuracy_after=left / N, forward_passes=PASSES, seconds=SECONDS)
    content["cost"].update(forward_passes=10 * PASSES, seconds=10 * SECONDS)
    path.write_text(json.dumps(content))
    return read_result(path)


def shown(result, width):
    screen = Console(file=io.StringIO(), width=width)
    show_result(screen, result)
    return screen.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [200, 80, 60, 40])
@pytest.mark.parametrize("suite", ["fast", "standard", "autoattack", "exhaustive"])
def test_every_heading_name_and_number_is_there(make_result, tmp_path, suite, width):
    result = suite_result(make_result, tmp_path / "r.json", suite)
    lines = shown(result, width)
    rule = next(number for number, line in enumerate(lines) if "───" in line)
    end = next(number for number, line in enumerate(lines) if line.startswith("protocol "))
    table = lines[:end]
    assert max(map(len, table[1:])) <= width
    head, body = "\n".join(lines[:rule]), table[rule + 1 :]
    for heading in HEADINGS:
        assert heading in head
    assert not any("…" in line for line in table)
    text = "\n".join(body)
    for attack in result.attacks:
        assert f"{attack.fooled} of {attack.attacked}" in text
        assert f"{attack.robust_accuracy_after:.1%}" in text
    robust = result.robust_accuracy
    assert f"[{robust.confidence.low:.1%}, {robust.confidence.high:.1%}]" in text
    assert text.count(f"{PASSES + 1:,}") == text.count(f"{SECONDS:.1f}") == len(result.attacks)
    assert f"{10 * PASSES + 1:,}" in text
    assert f"{10 * SECONDS:.1f}" in text
    # The first column, read downwards without its breaks, holds the names.
    first = min(line.index("accuracy") for line in lines[:rule] if "accuracy" in line)
    first = min([first, *(match.start() for line in lines[:rule] if (match := re.search("95 % interval", line)))])
    letters = re.sub(r"[\s\[]", "", "".join(line[:first] for line in body))
    for attack in result.attacks:
        assert attack.name in letters


def test_numbers_share_columns_only_where_they_must(make_result, tmp_path):
    result = suite_result(make_result, tmp_path / "r.json", "fast")
    for width, columns in ((120, HEADINGS), (80, ("95 % interval", "fooled", "seconds"))):
        rows = shown(result, width)
        assert any(all(heading in row for heading in columns) for row in rows)


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ("untargeted", "L∞ 0.1"),
        ({"source": None, "target": 5}, "L∞ 0.1, target 5 (every other class)"),
        ({"source": 14, "target": 5}, "L∞ 0.1, 14 → 5"),
    ],
)
def test_the_goal_is_named(make_result, tmp_path, goal, words):
    changes = {"threat_model.goal": goal, "config": {"seed": 0, "device": "cpu"}}
    title = shown(read_result(make_result(tmp_path / "r.json", 500, changes=changes)), 80)[0]
    assert title == f"m on d (1000 of 1000 images), {words}"
    assert "None" not in title


def test_checks_begin_with_their_status_and_foreign_text_stays_text():
    screen = Console(file=io.StringIO(), width=60)
    findings = [
        Diagnostic(slug="gradients-reach-input", status="pass", value=1.0),
        Diagnostic(slug="enough-classes", status="pass", value=2.0, advice="one output z"),
        Diagnostic(slug="gradients-reach-input", status="warn", advice="[red]layer[/]\n::error::x"),
        Diagnostic(slug="gradients-reach-input", status="fail", advice="use BPDA"),
        Diagnostic(slug="activation-regions-searched", status="skipped", advice="not a ReLU network"),
        Diagnostic(slug="search-converged", status="pass"),
    ]
    show_findings(screen, findings)
    assert screen.file.getvalue().splitlines() == [
        "PASS    gradients reach the input (1)",
        "PASS    the model has enough classes for every loss (2): one output z",
        "WARN    gradients do not reach the input: [red]layer[/]\\n::error::x",
        "FAIL    gradients do not reach the input: use BPDA",
        "SKIPPED activation regions were searched: not a ReLU network",
        "PASS    the search converges",
    ]


def test_a_check_that_passed_with_a_remark_is_shown(make_result, tmp_path):
    """That a model with one output is taken as two classes is such a remark; other passed checks need no line."""
    findings = [
        {"slug": "enough-classes", "status": "pass", "value": 2.0, "advice": "one output z"},
        {"slug": "gradients-reach-input", "status": "pass"},
    ]
    changes = {"diagnostics": findings, "config": {"seed": 0, "device": "cpu"}}
    lines = shown(read_result(make_result(tmp_path / "r.json", 500, changes=changes)), 200)
    assert [line.rstrip() for line in lines if line.startswith("PASS")] == [
        "PASS    the model has enough classes for every loss (2): one output z"
    ]


@pytest.mark.parametrize(
    ("attack", "shown_as"),
    [
        ("pgd", "pgd"),
        ("pgd:steps=20,step-size=0.1", "pgd: steps=20, step-size=0.1"),
        ("own.py:push", "own.py:push"),
        ("own.py:push:scale=0.5,n=2", "own.py:push: scale=0.5, n=2"),
        ("package.module:push:scale=1", "package.module:push: scale=1"),
    ],
)
def test_names_of_attacks_wrap_at_their_settings(attack, shown_as):
    assert spaced(attack) == shown_as


def test_what_an_earlier_session_finished_is_in_no_speed(monkeypatch):
    clock = iter(range(100_000))
    screen = Console(file=io.StringIO(), width=160, force_terminal=True)
    observer = ProgressObserver(screen, samples=100_000)
    monkeypatch.setattr(observer._progress, "get_time", lambda: float(next(clock)))
    observer.begin("pgd", total=100_000, done=90_000)
    for _ in range(5):
        observer.advance(10, 50_000)
    (task,) = observer._progress.tasks
    assert task.completed == 90_050
    assert task.speed < 100
    assert task.fields["robust"] == "50.0%"
