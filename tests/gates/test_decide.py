import json

import pytest
from gate_decisions import decide_one

from robustbench_local.errors import UserError
from robustbench_local.gates.decide import decide
from robustbench_local.gates.gate import Gate, Limits, ThreatSelector
from robustbench_local.gates.limits import Outcome
from robustbench_local.results.pairing import threat_id, threat_name
from robustbench_local.results.protocol_order import SUITE_HASHES
from robustbench_local.results.reading import read_result
from robustbench_local.statistics.intervals import drop_bounds, exact_bounds, mcnemar
from robustbench_local.statistics.sequential import finite_bounds

FAST = {"protocol": {"name": "fast", "version": 1, "sha256": SUITE_HASHES["fast", 1]}}
LINF = ThreatSelector("linf", 0.1, "0.1")
L2 = ThreatSelector("l2", 0.5, "0.5")
AS_L2 = {"threat_model.norm": "l2", "threat_model.eps": 0.5, "threat_model.eps_text": "0.5"}
STOPPED = {"gate": "g.yaml", "order_seed": 0, "looks": [100, 1000]}


@pytest.mark.parametrize(
    ("robust", "outcome"),
    [
        (527, Outcome.PASS),
        (525, Outcome.UNDECIDED),
        (500, Outcome.UNDECIDED),
        (475, Outcome.UNDECIDED),
        (473, Outcome.FAIL),
    ],
)
def test_a_floor_is_cleared_by_the_bound_not_by_the_value(make_result, tmp_path, robust, outcome):
    decision = decide_one(make_result(tmp_path / "r.json", robust), min_robust=0.5)
    assert decision.outcome is outcome
    assert f"{robust} of 1000" in decision.checks[0].sentence
    assert (decision.checks[0].low, decision.checks[0].high) == exact_bounds(robust, 1000)


def test_undecided_says_how_many_samples_would_decide(make_result, tmp_path):
    sentence = decide_one(make_result(tmp_path / "r.json", 515), min_robust=0.5).checks[0].sentence
    assert "samples would decide" in sentence
    assert "all 1,000 are used" in sentence
    path = make_result(tmp_path / "s.json", 515, changes={"data.available": 10000})
    assert "the dataset has 10,000" in decide_one(path, min_robust=0.5).checks[0].sentence
    exactly = make_result(tmp_path / "t.json", 500)
    assert "samples would decide" not in decide_one(exactly, min_robust=0.5).checks[0].sentence


@pytest.mark.parametrize(
    ("lost", "gained", "limit", "outcome"),
    [
        (0, 0, 0.02, Outcome.PASS),
        (5, 5, 0.02, Outcome.PASS),
        (0, 30, 0.0, Outcome.PASS),
        # The drop that was measured is within the limit, but a larger one could well be the truth.
        (20, 0, 0.02, Outcome.UNDECIDED),
        (15, 0, 0.02, Outcome.UNDECIDED),
        (0, 0, 0.0, Outcome.UNDECIDED),
        # More than the limit was measured and chance does not explain a drop of 0, but it does explain one of 2 points.
        (30, 5, 0.02, Outcome.UNDECIDED),
        (50, 29, 0.02, Outcome.UNDECIDED),
        (60, 39, 0.02, Outcome.UNDECIDED),
        (60, 5, 0.02, Outcome.FAIL),
        (45, 0, 0.02, Outcome.FAIL),
        (300, 278, 0.02, Outcome.UNDECIDED),
        (15, 5, 0.0, Outcome.FAIL),
        (12, 6, 0.0, Outcome.UNDECIDED),
    ],
)
def test_a_drop_is_judged_in_pairs_and_by_bounds(make_result, tmp_path, lost, gained, limit, outcome):
    before = make_result(tmp_path / "before.json", 500)
    flipped = {*range(lost), *range(500, 500 + gained)}
    now = make_result(tmp_path / "now.json", 500, flipped=flipped)
    decision = decide_one(now, baseline=before, max_drop=limit)
    check = decision.checks[0]
    assert check.outcome is outcome, check.sentence
    assert check.value == pytest.approx((lost - gained) / 1000)
    assert (check.low, check.high) == drop_bounds(lost, gained, 1000, 0.05)
    assert (check.lost, check.gained, check.p) == (lost, gained, mcnemar(lost, gained, mid_p=True))
    assert len(decision.results[0].flips) == lost + gained
    assert f"{lost} lost, {gained} gained of 1000, p = " in check.sentence


def test_an_undecided_drop_names_a_limit_that_would_pass(make_result, tmp_path):
    before = make_result(tmp_path / "before.json", 500)
    now = make_result(tmp_path / "now.json", 500, flipped=range(20), changes={"data.available": 50000})
    sentence = decide_one(now, baseline=before, max_drop=0.019).checks[0].sentence
    larger = float(sentence.partition("a limit of ")[2].partition("%")[0]) / 100
    assert "would pass" in sentence
    assert "samples would decide" in sentence
    assert decide_one(now, baseline=before, max_drop=larger).outcome is Outcome.PASS
    assert decide_one(now, baseline=before, max_drop=larger - 0.002).outcome is Outcome.UNDECIDED


def test_clean_drops_are_of_the_clean_predictions(make_result, tmp_path):
    before = make_result(tmp_path / "before.json", 500, clean=900)
    now = make_result(tmp_path / "now.json", 500, clean=800)
    decision = decide_one(now, baseline=before, max_drop=0.02, max_clean_drop=0.02)
    assert [check.outcome for check in decision.checks] == [Outcome.PASS, Outcome.FAIL]
    assert decision.checks[1].lost == 100


def test_the_gravest_outcome_decides(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 500)
    assert decide_one(path, min_clean=0.5, min_robust=0.5).outcome is Outcome.UNDECIDED
    assert decide_one(path, min_clean=0.99, min_robust=0.5).outcome is Outcome.FAIL
    assert decide_one(path, min_clean=0.99, min_robust=0.5, require="standard").outcome is Outcome.NOT_COMPARABLE


def test_several_limits_share_the_chance_of_a_wrong_fail(make_result, tmp_path):
    # Alone 473 of 1000 fail 50 % at 0.05, but not at half of that.
    path = make_result(tmp_path / "r.json", 473, clean=900)
    assert decide_one(path, min_robust=0.5).outcome is Outcome.FAIL
    both = decide_one(path, min_robust=0.5, min_clean=0.8)
    assert both.outcome is Outcome.UNDECIDED
    assert "one of 2 limits" in both.checks[0].sentence
    # What is broken beyond doubt leaves the whole alpha to the other (Holm).
    assert [check.outcome for check in decide_one(path, min_robust=0.5, min_clean=0.95).checks] == [Outcome.FAIL] * 2


@pytest.mark.parametrize(
    ("changes", "slug", "value"),
    [
        ({"threat_model.eps": 0.2, "threat_model.eps_text": "0.2"}, "threat-models-differ", "L∞ 0.2 in before.json"),
        ({"threat_model.norm": "l2"}, "threat-models-differ", "L2 0.1"),
        ({"protocol.sha256": "b"}, "protocols-differ", "fast/1"),
        ({"protocol.version": 2}, "protocols-differ", "fast/2 in before.json"),
        ({"threat_model.reject": 10}, "threat-models-differ", "rejection class 10"),
        ({"threat_model.goal": {"source": 1, "target": 2}}, "threat-models-differ", "1 → 2"),
        ({"data.name": "e"}, "data-differ", "e (test) in before.json"),
        ({"data.split": "train"}, "data-differ", "d (train) in before.json"),
        ({"data.sha256": "1" * 64}, "samples-differ", "--seed"),
        ({"sequential": STOPPED}, "stopped-by-gate", "g.yaml"),
        ({"verdict": {"status": "not-trusted", "reasons": ["masked"]}}, "verdict-not-trusted", "masked"),
    ],
)
def test_other_settings_are_not_comparable(make_result, tmp_path, changes, slug, value):
    before = make_result(tmp_path / "before.json", 500, changes=changes)
    decision = decide_one(make_result(tmp_path / "now.json", 500), baseline=before, max_drop=0.02, min_robust=0.4)
    refusal, floor = decision.checks
    assert decision.outcome is Outcome.NOT_COMPARABLE
    assert refusal.slug == slug
    assert value in refusal.sentence
    assert floor.outcome is Outcome.PASS, "limits that can be decided still are"


def test_the_model_and_the_folder_of_the_data_may_be_others(make_result, tmp_path):
    changes = {"model.name": "other", "model.sha256": "1" * 64, "data.name": "npz:there/test.npz"}
    before = make_result(tmp_path / "before.json", 500, changes=changes)
    now = make_result(tmp_path / "now.json", 500, changes={"data.name": "npz:/here/test.npz"})
    assert decide_one(now, baseline=before, max_drop=0.02).outcome is Outcome.PASS


@pytest.mark.parametrize(("old", "new"), [('"label":0', '"label":1'), (f'"{500:064x}"', f'"{7:064x}"')])
def test_other_samples_are_not_comparable(make_result, tmp_path, old, new):
    now = make_result(tmp_path / "now.json", 500)
    before = make_result(tmp_path / "fewer.json", 500, n=999)
    assert decide_one(now, baseline=before, max_drop=0.02).checks[0].slug == "samples-differ"
    before = make_result(tmp_path / "before.json", 500)
    record = before.with_suffix(".samples.jsonl")
    record.write_text(record.read_text().replace(old, new, 1))
    decision = decide_one(now, baseline=before, max_drop=0.02)
    assert decision.outcome is Outcome.NOT_COMPARABLE
    assert decision.checks[0].slug == "samples-differ"


def test_a_result_that_is_not_trusted_is_refused(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 900, changes={"verdict": {"status": "not-trusted", "reasons": ["masked"]}})
    decision = decide_one(path, min_robust=0.1)
    assert decision.outcome is Outcome.NOT_COMPARABLE
    assert decision.checks[0].slug == "verdict-not-trusted"
    assert "masked" in decision.checks[0].sentence


def test_doubts_of_the_evaluation_are_passed_on(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 900, changes={"verdict": {"status": "doubtful", "reasons": ["noisy"]}})
    decision = decide_one(path, min_robust=0.1)
    assert decision.outcome is Outcome.PASS
    assert decision.to_dict()["doubts"] == ["noisy"]
    (warning,) = decision.to_dict()["warnings"]
    assert (warning["slug"], warning["sentence"]) == ("verdict-doubtful", "noisy")


def test_a_weaker_protocol_is_refused_by_the_gate(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 900, changes=FAST)
    assert decide_one(path, min_robust=0.5, require="fast/1").outcome is Outcome.PASS
    for stronger in ("fast", "fast/2", "standard/1", "standard"):
        decision = decide_one(path, min_robust=0.5, require=stronger)
        assert [check.rule for check in decision.checks] == ["require"]
        assert decision.outcome is Outcome.NOT_COMPARABLE


def test_results_go_to_the_limits_of_their_threat_model(make_result, tmp_path):
    linf = make_result(tmp_path / "linf.json", 600)
    l2 = make_result(tmp_path / "l2.json", 300, changes=AS_L2)
    gate = Gate((Limits(LINF, min_robust=0.5), Limits(L2, min_robust=0.4)))
    decision = decide(gate, [l2, linf])
    assert [(each.threat, each.checks[0].outcome) for each in decision.results] == [
        ("L2 0.5", Outcome.FAIL),
        ("L∞ 0.1", Outcome.PASS),
    ]
    missing = decide(gate, [linf])
    assert missing.outcome is Outcome.NOT_COMPARABLE
    assert missing.checks[-1].slug == "result-missing"
    assert "L2 0.5" in missing.checks[-1].sentence
    spare = decide(Gate((Limits(LINF, min_robust=0.5),)), [linf, l2])
    assert spare.outcome is Outcome.NOT_COMPARABLE
    assert spare.checks[-1].slug == "threat-model-without-limits"
    assert "L2 0.5" in spare.checks[-1].sentence
    again = make_result(tmp_path / "again.json", 600)
    with pytest.raises(UserError, match=r"L∞ 0\.1") as refused:
        decide(gate, [linf, again])
    assert refused.value.slug == "duplicate-threat-model"


def test_eps_is_the_number_however_it_is_written(make_result, tmp_path):
    changes = {"threat_model.eps": 8 / 255, "threat_model.eps_text": "8/255"}
    result = read_result(make_result(tmp_path / "r.json", 600, changes=changes))
    assert ThreatSelector("linf", 0.03137254901960784, "0.0313…").matches(result.threat_model)
    assert not ThreatSelector("linf", 0.0314, "0.0314").matches(result.threat_model)
    assert not ThreatSelector("linf", 8 / 255, "8/255", target=1).matches(result.threat_model)
    assert not ThreatSelector("linf", 8 / 255, "8/255", reject=1).matches(result.threat_model)


def test_a_threat_model_has_one_name_in_gates_and_results(make_result, tmp_path):
    changes = {"threat_model.goal": {"source": 14, "target": 5}, "threat_model.reject": 43}
    result = read_result(make_result(tmp_path / "r.json", 600, changes=changes))
    threat = ThreatSelector("linf", 0.1, "0.1", target=5, source=14, reject=43)
    assert threat.matches(result.threat_model)
    assert threat.name == threat_name(result.threat_model) == "L∞ 0.1, 14 → 5, rejection class 43"
    assert threat.id == threat_id(result.threat_model) == "linf-0.1, 14 → 5, class 43 rejects"


def test_baselines_go_to_their_threat_model(make_result, tmp_path):
    results = [
        make_result(tmp_path / "now" / "a.json", 600),
        make_result(tmp_path / "now" / "b.json", 300, changes=AS_L2),
    ]
    before = (
        make_result(tmp_path / "old" / "b.json", 300, changes=AS_L2),
        make_result(tmp_path / "old" / "a.json", 600),
    )
    assert decide(Gate((Limits(max_drop=0.02, baselines=before),)), results).outcome is Outcome.PASS
    one = decide(Gate((Limits(max_drop=0.02, baselines=before),)), results[:1])
    assert one.outcome is Outcome.NOT_COMPARABLE
    assert one.checks[-1].slug == "result-for-baseline-missing"
    assert str(before[0]) in one.checks[-1].sentence
    changes = {"threat_model.eps": 0.3, "threat_model.eps_text": "0.3"}
    other = make_result(tmp_path / "old" / "c.json", 600, changes=changes)
    none = decide(Gate((Limits(max_drop=0.02, baselines=(before[0], other)),)), results[:1])
    assert none.checks[0].slug == "baseline-not-named"
    assert "L∞ 0.1" in none.checks[0].sentence
    twin = make_result(tmp_path / "old" / "d.json", 600)
    gate = Gate((Limits(max_drop=0.02, baselines=(before[1], twin)),))
    with pytest.raises(UserError) as refused:
        decide(gate, results[:1])
    assert refused.value.slug == "duplicate-baseline"


def test_what_was_stopped_by_a_gate_speaks_of_the_finite_set(make_result, tmp_path):
    changes = {"data.available": 1100, "sequential": STOPPED}
    path = make_result(tmp_path / "r.json", 520, changes=changes)
    check = decide_one(path, min_robust=0.45).checks[0]
    assert (check.low, check.high) == finite_bounds(520, 1000, 1100, 0.05)
    assert check.outcome is Outcome.PASS
    assert "of the 1,100 images of the split" in check.sentence
    assert decide_one(make_result(tmp_path / "r.json", 520), min_robust=0.5).outcome is Outcome.UNDECIDED
    whole = make_result(tmp_path / "s.json", 500, changes={"sequential": STOPPED})
    assert decide_one(whole, min_robust=0.5).outcome is Outcome.PASS, "half of all is half of all"
    assert decide_one(whole, min_robust=0.501).outcome is Outcome.FAIL


def test_the_decision_as_json(make_result, tmp_path):
    before = make_result(tmp_path / "before.json", 500)
    now = make_result(tmp_path / "now.json", 500, flipped=[3, 700])
    content = json.loads(json.dumps(decide_one(now, baseline=before, max_drop=0.02).to_dict()))
    assert content["schema"] == "robustbench-local/gate/1"
    assert content["outcome"] == "pass"
    assert content["exit_code"] == 0
    assert content["checks"][0]["rule"] == "max_drop"
    assert content["checks"][0]["slug"] == "max-drop"
    assert content["checks"][0]["id"] == "max_drop/linf-0.1"
    assert content["checks"][0]["threat_model"] == "L∞ 0.1"
    assert [(flip["index"], flip["lost"]) for flip in content["results"][0]["flipped"]] == [(700, False), (3, True)]


def test_the_record_is_held_against_the_result_for_floors_too(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 500)
    record = path.with_suffix(".samples.jsonl")
    record.write_text(record.read_text().replace('"robust":true', '"robust":false', 1))
    with pytest.raises(UserError) as refused:
        decide_one(path, min_robust=0.4)
    assert refused.value.slug == "samples-do-not-match"


def test_a_result_that_nobody_assessed_is_a_doubt(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 900, changes={"verdict": {"status": "not-assessed", "reasons": []}})
    decision = decide_one(path, min_robust=0.1)
    assert decision.outcome is Outcome.PASS
    assert decision.to_dict()["warnings"][0]["slug"] == "verdict-not-assessed"


def test_a_file_is_given_once_and_is_not_its_own_baseline(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 500)
    same = tmp_path / ".." / tmp_path.name / "r.json"
    for again in (path, same):
        with pytest.raises(UserError) as refused:
            decide_one(path, again, min_robust=0.4)
        assert refused.value.slug == "duplicate-result"
        with pytest.raises(UserError) as refused:
            decide_one(path, baseline=again, max_drop=0.1)
        assert refused.value.slug == "result-is-baseline"
