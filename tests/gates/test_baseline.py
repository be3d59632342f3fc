"""Gates whose baseline is missing, and baselines that are created."""

import io
import json

import pytest
from gate_decisions import decide_one
from rich.console import Console

from robustbench_local.display.gate import show_decision
from robustbench_local.gates.baseline import update_baselines
from robustbench_local.gates.decide import decide
from robustbench_local.gates.gate import Gate, Limits
from robustbench_local.gates.github import summary, workflow_commands
from robustbench_local.gates.junit import junit
from robustbench_local.gates.limits import Outcome
from robustbench_local.gates.sarif import sarif
from robustbench_local.results.reading import read_result, read_samples

AS_L2 = {"threat_model.norm": "l2", "threat_model.eps": 0.5, "threat_model.eps_text": "0.5"}


def terminal(decision):
    screen = Console(record=True, width=400, file=io.StringIO())
    show_decision(screen, decision)
    return screen.export_text()


FORMATS = {
    "terminal": terminal,
    "json": lambda decision: json.dumps(decision.to_dict()),
    "junit": junit,
    "sarif": sarif,
    "github": workflow_commands,
    "summary": summary,
}


@pytest.mark.parametrize("name", ["gone.json", "no-such-directory/gone.json"])
@pytest.mark.parametrize(("robust", "outcome"), [(600, Outcome.PASS), (500, Outcome.UNDECIDED), (400, Outcome.FAIL)])
def test_floors_decide_where_the_baseline_is_missing(make_result, tmp_path, name, robust, outcome):
    path = make_result(tmp_path / "r.json", robust)
    decision = decide_one(path, baseline=tmp_path / name, min_robust=0.5, max_drop=0.02)
    assert decision.outcome is outcome
    assert [check.rule for check in decision.checks] == ["min_robust"]
    (warning,) = decision.results[0].warnings
    assert warning.slug == "baseline-missing"
    assert decision.to_dict()["results"][0]["missing_baselines"] == [str(tmp_path / name)]


@pytest.mark.parametrize("style", FORMATS)
@pytest.mark.parametrize(
    "limits", [{"min_robust": 0.5}, {}, {"require_baseline": True}, {"min_robust": 0.5, "require": "exhaustive"}]
)
def test_every_format_names_the_missing_baseline(make_result, tmp_path, monkeypatch, style, limits):
    monkeypatch.chdir(tmp_path)
    path = make_result(tmp_path / "r.json", 600)
    decision = decide_one(path, baseline=tmp_path / "gonebaseline.json", max_drop=0.02, **limits)
    assert "gonebaseline.json" in FORMATS[style](decision)


def test_a_required_baseline_that_is_missing_is_not_comparable(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 600)
    limits = {"baseline": tmp_path / "gone.json", "min_robust": 0.5, "max_drop": 0.02, "require_baseline": True}
    decision = decide_one(path, **limits)
    assert decision.outcome is Outcome.NOT_COMPARABLE
    assert [(check.slug, check.outcome) for check in decision.checks] == [
        ("baseline-missing", Outcome.NOT_COMPARABLE),
        ("min-robust", Outcome.PASS),
    ]
    assert decide_one(path, create_baselines=True, **limits).outcome is Outcome.PASS


def test_nothing_checked_is_undecided_and_not_a_pass(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 600)
    decision = decide_one(path, baseline=tmp_path / "gone.json", max_drop=0.02, max_clean_drop=0.01)
    assert decision.outcome is Outcome.UNDECIDED
    (check,) = decision.checks
    assert (check.rule, check.slug) == ("baseline", "baseline-missing")


def test_a_baseline_without_its_record_is_as_good_as_missing(make_result, tmp_path):
    path, before = make_result(tmp_path / "r.json", 600), make_result(tmp_path / "before.json", 600)
    record = before.with_suffix(".samples.jsonl")
    record.unlink()
    limits = {"baseline": before, "max_drop": 0.02}
    decision = decide_one(path, min_robust=0.5, **limits)
    assert decision.outcome is Outcome.PASS
    (warning,) = decision.results[0].warnings
    assert warning.slug == "baseline-incomplete"
    assert str(record) in warning.sentence
    assert decide_one(path, **limits).outcome is Outcome.UNDECIDED
    assert decide_one(path, min_robust=0.5, require_baseline=True, **limits).outcome is Outcome.NOT_COMPARABLE
    kept = decide_one(path, min_robust=0.5, create_baselines=True, **limits)
    assert kept.outcome is Outcome.NOT_COMPARABLE
    assert update_baselines(kept) == []


def test_of_several_results_only_one_lacks_a_baseline(make_result, tmp_path):
    linf, l2 = make_result(tmp_path / "linf.json", 600), make_result(tmp_path / "l2.json", 600, changes=AS_L2)
    before = make_result(tmp_path / "old" / "linf.json", 600)
    limits = Limits(min_robust=0.5, max_drop=0.02, baselines=(tmp_path / "old" / "l2.json", before))
    for paths in ([linf, l2], [l2, linf]):
        decision = decide(Gate((limits,)), paths)
        assert decision.outcome is Outcome.PASS
        slugs = {each.path: [warning.slug for warning in each.warnings] for each in decision.results}
        assert slugs == {linf: [], l2: ["baseline-missing"]}
        assert len(decision.checks) == 3


def test_both_baselines_of_a_list_are_missing(make_result, tmp_path):
    paths = [make_result(tmp_path / "linf.json", 600), make_result(tmp_path / "l2.json", 600, changes=AS_L2)]
    gone = (tmp_path / "a.json", tmp_path / "b.json")
    gate = Gate((Limits(min_robust=0.5, max_drop=0.02, baselines=gone),))
    decision = decide(gate, paths)
    assert decision.outcome is Outcome.PASS
    for each in decision.results:
        assert each.missing_baselines == list(gone)
        assert each.warnings[0].slug == "baseline-missing"
    # Which of them a result is to become cannot be told.
    created = decide(gate, paths, create_baselines=True)
    assert [check.slug for check in created.checks if check.outcome is Outcome.NOT_COMPARABLE] == [
        "baseline-ambiguous"
    ] * 2
    assert update_baselines(created) == []


def test_the_first_baseline_is_made_only_where_the_floors_hold(make_result, tmp_path):
    baseline = tmp_path / "new" / "main.json"
    limits = {"baseline": baseline, "max_drop": 0.02, "min_robust": 0.5, "create_baselines": True}
    failed = decide_one(make_result(tmp_path / "bad.json", 400), **limits)
    assert update_baselines(failed) == []
    assert not baseline.exists()
    passed = decide_one(make_result(tmp_path / "good.json", 600), **limits)
    assert update_baselines(passed) == [baseline]
    result = read_result(baseline)
    assert result.robust_accuracy.correct == 600
    assert len(read_samples(result, baseline)) == 1000
