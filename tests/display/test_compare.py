import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from robustbench_local.display.compare import show_comparison
from robustbench_local.results.compare import compare

NAMES = ["stop", "yield"]


def test_what_people_and_machines_see(make_result, tmp_path, capsys):
    before = make_result(tmp_path / "a.json", 500, classes=NAMES, attacks=[("fgsm:steps=1,x=2", 400)])
    now = make_result(
        tmp_path / "b.json",
        500,
        flipped=[*range(30), 600],
        classes=NAMES,
        attacks=[("pgd", 429)],
        changes={"model.name": "[red]::error::"},
    )
    comparison = compare([before, now])
    show_comparison(Console(stderr=True, width=160), comparison)
    shown = capsys.readouterr().err
    for words in (
        "[red]::error::",
        "class yield (1)",
        "robust after",
        "lost: ",
        "gained: 600 (class stop (0))",
        "and 20 more, all with --json",
        "p exact",
    ):
        assert words in shown
    content = json.loads(json.dumps(comparison.to_dict()))
    assert content["schema"] == "robustbench-local/compare/1"
    assert content["comparable"]
    assert len(content["pair"]["flips"]) == 31
    assert content["pair"]["robust"]["lost"] == 30
    assert content["models"][0]["result"] == str(before)
    assert content["p_values"][0]["models"] == [0, 1]


@pytest.mark.parametrize(("count", "width"), [(2, 60), (5, 60), (5, 44)])
def test_letters_and_names_are_whole_on_a_narrow_terminal(make_result, tmp_path, monkeypatch, capsys, count, width):
    monkeypatch.chdir(tmp_path)
    paths = [
        make_result(
            Path(f"a-long-folder-for-results/model-{number}.json"),
            300 + 40 * number,
            changes={"model.name": "networks/of/a/long/name.py:make"},
        )
        for number in range(count)
    ]
    comparison = compare(paths)
    show_comparison(Console(stderr=True, width=width), comparison)
    shown = capsys.readouterr().err
    lines = shown.partition("models that share")[0].splitlines()
    rows = [line.split() for line in lines if "%" in line and "[" not in line]
    assert [row[-1] for row in rows] == [each.groups for each in comparison.ranked] == list("abcde"[:count])
    if count == 5:
        assert [row[0] for row in rows] == ["5", "4", "3", "2", "1"], "numbered as they were given"
        assert "2: networks/of/a/long/name.py:make (a-long-folder-for-results/model-1.json)\n" in shown


def test_every_verdict_is_shown(make_result, tmp_path, capsys):
    verdicts = [("trusted", []), ("doubtful", ["noisy"]), ("not-assessed", [])]
    paths = [
        make_result(tmp_path / f"{status}.json", 500, changes={"verdict": {"status": status, "reasons": reasons}})
        for status, reasons in verdicts
    ]
    comparison = compare(paths)
    show_comparison(Console(stderr=True, width=60), comparison)
    shown = capsys.readouterr().err
    for words in (
        "trusted.json: trusted\n",
        "doubtful.json: doubtful: noisy\n",
        "not-assessed.json: not-assessed: the evaluation ran with --no-diagnostics",
    ):
        assert words in shown
    models = comparison.to_dict()["models"]
    assert [each["verdict"] for each in models] == ["trusted", "doubtful", "not-assessed"]
    assert [bool(each["doubts"]) for each in models] == [False, True, True]


@pytest.mark.parametrize("width", [200, 80, 60])
def test_every_number_of_a_pair_is_there(make_result, tmp_path, width):
    names = ["a-class-with-a-very-long-name-indeed", "b"]
    before = make_result(tmp_path / "a-long-name-of-a-result-before.json", 5000, n=10_000, clean=9000, classes=names)
    flipped = [*range(1234), *range(5000, 5321)]
    now = make_result(tmp_path / "now.json", 5000, n=10_000, clean=9000, classes=names, flipped=flipped)
    comparison = compare([before, now])
    screen = Console(file=io.StringIO(), width=width)
    show_comparison(screen, comparison)
    lines = screen.file.getvalue().partition("from ")[2].splitlines()
    table = lines[1 : next(number for number, line in enumerate(lines) if "robust after" in line or "gained:" in line)]
    text = "\n".join(table)
    assert max(map(len, table)) <= width
    assert "…" not in screen.file.getvalue()
    for heading in ("before", "now", "change [95 %]", "lost", "gained", "p exact", "p mid"):
        assert heading in text
    for change in (comparison.pair.clean, comparison.pair.robust, *(each.robust for each in comparison.pair.classes)):
        for number in (
            f"{change.before:.1%}",
            f"{100 * change.change:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]",
            str(change.lost),
            str(change.gained),
            f"{change.p:.3g}",
            f"{change.p_mid:.3g}",
        ):
            assert number in text
