"""The table of an evaluation on terminals of several widths, and the progress bar after a resume."""

import io
import json
import re

import pytest
from rich.console import Console

from robustbench_local.attacks.attack import spec_text
from robustbench_local.display.evaluation import ProgressObserver, show_findings, show_result
from robustbench_local.display.result_table import cost_of_looking, spaced
from robustbench_local.engine.protocol import resolve_suite
from robustbench_local.results.checks import CHECKS
from robustbench_local.results.reading import read_result
from robustbench_local.results.schema import CostPart, Diagnostic

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
    counts = {"suite": len(steps), "probes": 1, "adaptive attacks": 1, "clean pass": 1, "checks": 3}
    everything = sum(counts.values())
    content["cost"].update(forward_passes=everything * PASSES, seconds=everything * SECONDS)
    content["cost"]["parts"] = [part(name, count) for name, count in counts.items()]
    content["cost"]["parts"][0]["backward_passes"] += 1
    path.write_text(json.dumps(content))
    return read_result(path)


def part(name, count):
    return {"name": name, "forward_passes": count * PASSES, "backward_passes": 0, "seconds": count * SECONDS}


def looked_result(make_result, path, after_suite, parts=True):
    """A result of 100 images, 90 of them correct; PGD fooled 20. after_suite: role, name, attacked, fooled."""
    runs = [("search", "pgd", 90, 20), *after_suite]
    robust = 90 - sum(fooled for *_, fooled in runs)
    config = {"config": {"seed": 0, "device": "cpu"}}
    make_result(path, robust, n=100, clean=90, attacks=[(name, fooled) for _, name, _, fooled in runs], changes=config)
    content = json.loads(path.read_text())
    for (role, _, attacked, _), attack in zip(runs, content["attacks"], strict=True):
        attack.update(role=role, attacked=attacked, forward_passes=1000, backward_passes=500, seconds=1.0)
    whole = {"forward_passes": 1000 * len(runs) + 400, "backward_passes": 500 * len(runs), "seconds": len(runs) + 1.5}
    content["cost"].update(whole)
    counts = {"probes": "diagnostic", "adaptive attacks": "adaptive"}
    counts = {"suite": 1, **{name: sum(each[0] == role for each in runs) for name, role in counts.items()}}
    content["cost"]["parts"] = [
        {"name": "clean pass", "forward_passes": 100, "backward_passes": 0, "seconds": 0.5},
        {"name": "checks", "forward_passes": 300, "backward_passes": 0, "seconds": 1.0},
        *(
            {"name": name, "forward_passes": 1000 * count, "backward_passes": 500 * count, "seconds": count}
            for name, count in counts.items()
        ),
    ]
    if not parts:
        del content["cost"]["parts"]
    path.write_text(json.dumps(content))
    return read_result(path)


def rows_of(lines):
    """The words of every line of the table, without the gaps between its sections."""
    end = next(number for number, line in enumerate(lines) if line.startswith("protocol "))
    return [" ".join(line.split()) for line in lines[3:end] if line.strip()]


PROBES = [("diagnostic", name, 30, 0) for name in ("bpda:steps=6", "descent:steps=3", "square:steps=16")]


def test_probes_that_found_nothing_share_a_row(make_result, tmp_path):
    more = [(role, name, 7, fooled) for role, name, _, fooled in PROBES]
    lines = shown(looked_result(make_result, tmp_path / "r.json", [*PROBES, *more]), 120)
    assert rows_of(lines) == [
        "clean 90.0% [82.6%, 94.5%] 100 0.5",
        "pgd 70.0% [60.4%, 78.1%] 20 of 90 1,500 1.0",
        "checks 300 1.0",
        "probes: 37 images asked 70.0% [60.4%, 78.1%] 0 of 37 9,000 6.0",
        "all attacks 70.0% [60.4%, 78.1%] 20 of 90 10,900 8.5",
    ]
    assert "looking: 9,300 passes, 6.20 of the suite's" in [line.rstrip() for line in lines]


def test_after_probes_that_found_something_each_attack_has_a_row(make_result, tmp_path):
    """Also those that fooled nothing; one that ran again on further images has one row."""
    probes = [("diagnostic", "bpda:steps=6", 30, 2), ("diagnostic", "descent:steps=3", 28, 0)]
    adaptive = [("adaptive", "eot", 68, 0), ("adaptive", "square", 68, 1)]
    again = [("diagnostic", "bpda:steps=6", 40, 3), ("diagnostic", "descent:steps=3", 37, 0), ("adaptive", "eot", 9, 4)]
    lines = shown(looked_result(make_result, tmp_path / "r.json", [*probes, *adaptive, *again]), 120)
    assert [row for row in rows_of(lines) if "clean" not in row] == [
        "pgd 70.0% [60.4%, 78.1%] 20 of 90 1,500 1.0",
        "checks 300 1.0",
        "probes: 70 images asked",
        "bpda: steps=6 65.0% [55.3%, 73.6%] 5 of 70 3,000 2.0",
        "descent: steps=3 65.0% [55.3%, 73.6%] 0 of 65 3,000 2.0",
        "adaptive attacks",
        "eot 61.0% [51.2%, 70.0%] 4 of 77 3,000 2.0",
        "square 60.0% [50.2%, 69.1%] 1 of 68 1,500 1.0",
        "all attacks 60.0% [50.2%, 69.1%] 30 of 90 12,400 9.5",
    ]


def test_results_that_do_not_say_where_the_passes_went_are_shown(make_result, tmp_path):
    lines = shown(looked_result(make_result, tmp_path / "r.json", PROBES, parts=False), 120)
    assert rows_of(lines)[0] == "clean 90.0% [82.6%, 94.5%] 100"
    assert "probes: 30 images asked 70.0% [60.4%, 78.1%] 0 of 30 4,500 3.0" in rows_of(lines)
    assert not any(line.startswith(("checks", "looking")) for line in lines)


def test_without_a_suite_looking_has_no_share(make_result, tmp_path):
    """As with eps 0, where no attack runs."""
    result = looked_result(make_result, tmp_path / "r.json", [])
    parts = [each.model_copy(update={"name": "checks"}) for each in result.cost.parts if each.name == "suite"]
    cost = result.cost.model_copy(update={"parts": [*parts, part_of("suite")]})
    assert cost_of_looking(cost) == "looking: 1,500 passes"


def part_of(name):
    return CostPart(name=name, forward_passes=0, backward_passes=0, seconds=0)


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
    assert text.count(f"{PASSES + 1:,}") == len(result.attacks)
    assert text.count(f"{SECONDS:.1f}") == len(result.attacks) + 1, "the clean pass took as long"
    cost, checks = result.cost, result.cost.part("checks")
    whole = cost.forward_passes + cost.backward_passes
    for passes, seconds in ((whole, cost.seconds), (checks.passes, checks.seconds)):
        assert f"{passes:,}" in text
        assert f"{seconds:.1f}" in text
    # The first column, read downwards without its breaks, holds the names.
    first = min(line.index("accuracy") for line in lines[:rule] if "accuracy" in line)
    first = min([first, *(match.start() for line in lines[:rule] if (match := re.search("95 % interval", line)))])
    letters = re.sub(r"[\s\[]", "", "".join(line[:first] for line in body))
    for name in [*(attack.name for attack in result.attacks), "checks", "probes:9,000imagesasked", "adaptiveattacks"]:
        assert name in letters


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
