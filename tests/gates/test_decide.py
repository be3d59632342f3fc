import json

import pytest
from scipy import stats

from robustbench_local.errors import UserError
from robustbench_local.gates.decide import decide
from robustbench_local.gates.gate import ClassFloors, Gate, Limits, ThreatSelector
from robustbench_local.gates.limits import Drop, Floor, Outcome, failing
from robustbench_local.results.pairing import threat_name
from robustbench_local.results.protocol_order import SUITE_HASHES, require_known, weaker
from robustbench_local.results.reading import read_result, read_samples
from robustbench_local.results.schema import Protocol, json_schema
from robustbench_local.statistics.intervals import drop_bounds, exact_bounds, holm, mcnemar
from robustbench_local.statistics.sequential import finite_bounds

FAST = {"protocol": {"name": "fast", "version": 1, "sha256": SUITE_HASHES["fast", 1]}}
LINF = ThreatSelector("linf", 0.1, "0.1")
L2 = ThreatSelector("l2", 0.5, "0.5")
AS_L2 = {"threat_model.norm": "l2", "threat_model.eps": 0.5, "threat_model.eps_text": "0.5"}
STOPPED = {"gate": "g.yaml", "order_seed": 0, "looks": [100, 1000]}


def judge(path, *more, baseline=None, alpha=0.05, **limits):
    baselines = () if baseline is None else (baseline,)
    return decide(Gate((Limits(baselines=baselines, **limits),), alpha), [path, *more])


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
    decision = judge(make_result(tmp_path / "r.json", robust), min_robust=0.5)
    assert decision.outcome is outcome
    assert f"{robust} of 1000" in decision.checks[0].sentence
    assert (decision.checks[0].low, decision.checks[0].high) == exact_bounds(robust, 1000)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (1, 1), (0, 1)])
def test_floors_at_the_ends_of_the_scale(correct, n):
    assert Floor("r", "a", correct, n, 0.0, n).passes(0.05)
    assert not Floor("r", "a", correct, n, 1.0, n).passes(0.05)
    assert Floor("r", "a", correct, n, 1.0, n).fails(0.05) == (exact_bounds(correct, n)[1] < 1)
    assert not Floor("r", "a", correct, n, 0.0, n).fails(0.05)


def test_undecided_says_how_many_samples_would_decide(make_result, tmp_path):
    sentence = judge(make_result(tmp_path / "r.json", 515), min_robust=0.5).checks[0].sentence
    assert "samples would decide" in sentence
    assert "all 1,000 are used" in sentence
    path = make_result(tmp_path / "s.json", 515, changes={"data.available": 10000})
    assert "the data set has 10,000" in judge(path, min_robust=0.5).checks[0].sentence
    exactly = make_result(tmp_path / "t.json", 500)
    assert "no number of samples" in judge(exactly, min_robust=0.5).checks[0].sentence


def test_as_many_samples_as_are_named_do_decide():
    for limit in (Floor("r", "a", 515, 1000, 0.5, 1000), Drop("r", "a", 20, 5, 1000, 0.01, 1000)):
        enough = limit.samples_to_decide(0.05, 1, 10**7)
        larger, smaller = limit.with_sample_size(enough), limit.with_sample_size(round(0.9 * enough))
        assert larger.passes(0.05) or larger.fails(0.05)
        assert not smaller.passes(0.05)
        assert not smaller.fails(0.05)


def test_a_fail_among_many_limits_takes_more_samples():
    floor = Floor("r", "a", 473, 1000, 0.5, 1000)
    assert floor.samples_to_decide(0.05, 1, 10**7) == 1000 < floor.samples_to_decide(0.05, 20, 10**7)
    assert floor.with_sample_size(floor.samples_to_decide(0.05, 20, 10**7)).fails(0.05 / 20)


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
    decision = judge(now, baseline=before, max_drop=limit)
    check = decision.checks[0]
    assert check.outcome is outcome, check.sentence
    assert check.value == pytest.approx((lost - gained) / 1000)
    assert (check.low, check.high) == drop_bounds(lost, gained, 1000, 0.05)
    assert (check.lost, check.gained, check.p) == (lost, gained, mcnemar(lost, gained, mid_p=True))
    assert len(decision.judged[0].flips) == lost + gained
    assert f"{lost} lost, {gained} gained of 1000, p = " in check.sentence


@pytest.mark.parametrize("gained", [0, 1, 5, 20])
def test_without_any_drop_allowed_the_fail_is_mcnemars(gained):
    for lost in range(60):
        assert Drop("r", "a", lost, gained, 500, 0.0, 500).fails(0.05) == (mcnemar(lost, gained, mid_p=True) < 0.05)


@pytest.mark.parametrize("limit", [0.0, 0.01, 0.05, 0.3, 1.0])
@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (3, 0), (0, 3), (12, 5), (40, 10), (100, 0)])
def test_drops_are_decided_as_their_bounds_say(lost, gained, limit):
    low, high = drop_bounds(lost, gained, 100, 0.05)
    drop = Drop("r", "a", lost, gained, 100, limit, 100)
    assert (drop.passes(0.05), drop.fails(0.05)) == (high <= limit, low > limit)


def test_an_undecided_drop_names_a_limit_that_would_pass(make_result, tmp_path):
    before = make_result(tmp_path / "before.json", 500)
    now = make_result(tmp_path / "now.json", 500, flipped=range(20), changes={"data.available": 50000})
    sentence = judge(now, baseline=before, max_drop=0.019).checks[0].sentence
    larger = float(sentence.partition("a limit of ")[2].partition("%")[0]) / 100
    assert "would pass" in sentence
    assert "samples would decide" in sentence
    assert judge(now, baseline=before, max_drop=larger).outcome is Outcome.PASS
    assert judge(now, baseline=before, max_drop=larger - 0.002).outcome is Outcome.UNDECIDED


def test_clean_drops_are_of_the_clean_predictions(make_result, tmp_path):
    before = make_result(tmp_path / "before.json", 500, clean=900)
    now = make_result(tmp_path / "now.json", 500, clean=800)
    decision = judge(now, baseline=before, max_drop=0.02, max_clean_drop=0.02)
    assert [check.outcome for check in decision.checks] == [Outcome.PASS, Outcome.FAIL]
    assert decision.checks[1].lost == 100


def test_the_gravest_outcome_decides(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 500)
    assert judge(path, min_clean=0.5, min_robust=0.5).outcome is Outcome.UNDECIDED
    assert judge(path, min_clean=0.99, min_robust=0.5).outcome is Outcome.FAIL
    assert judge(path, min_clean=0.99, min_robust=0.5, require="standard").outcome is Outcome.NOT_COMPARABLE


def test_several_limits_share_the_chance_of_a_wrong_fail(make_result, tmp_path):
    # Alone 473 of 1000 fail 50 % at 0.05, but not at half of that.
    path = make_result(tmp_path / "r.json", 473, clean=900)
    assert judge(path, min_robust=0.5).outcome is Outcome.FAIL
    both = judge(path, min_robust=0.5, min_clean=0.8)
    assert both.outcome is Outcome.UNDECIDED
    assert "of 2 limits one may seem broken by chance" in both.checks[0].sentence
    # What is broken beyond doubt leaves the whole alpha to the other (Holm).
    assert [check.outcome for check in judge(path, min_robust=0.5, min_clean=0.95).checks] == [Outcome.FAIL] * 2


def test_holm_is_that_of_the_p_values():
    counts = [440, 465, 470, 473, 480, 500]
    floors = [Floor("r", "a", correct, 1000, 0.5, 1000) for correct in counts]
    adjusted = holm([float(stats.binom.cdf(correct, 1000, 0.5)) for correct in counts])
    assert failing(floors, 0.05) == [p < 0.05 for p in adjusted] != [floor.fails(0.05) for floor in floors]
    assert failing([], 0.05) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"threat_model.eps": 0.2, "threat_model.eps_text": "0.2"}, "threat models differ: L∞ 0.2 in before.json"),
        ({"threat_model.norm": "l2"}, "threat models differ"),
        ({"protocol.sha256": "b"}, "protocols differ"),
        ({"protocol.version": 2}, "protocols differ"),
        ({"threat_model.reject": 10}, "threat models differ"),
        ({"threat_model.goal": {"source": 1, "target": 2}}, "threat models differ"),
        ({"data.name": "e"}, "data differ"),
        ({"data.split": "train"}, "data differ"),
        ({"data.sha256": "1" * 64}, "different samples"),
        ({"sequential": STOPPED}, "was stopped when its gate g.yaml was decided"),
        ({"verdict": {"status": "not-trusted", "reasons": ["masked"]}}, "before.json is not to be trusted: masked"),
    ],
)
def test_other_settings_are_not_comparable(make_result, tmp_path, changes, word):
    before = make_result(tmp_path / "before.json", 500, changes=changes)
    decision = judge(make_result(tmp_path / "now.json", 500), baseline=before, max_drop=0.02, min_robust=0.4)
    refusal, floor = decision.checks
    assert decision.outcome is Outcome.NOT_COMPARABLE
    assert word in refusal.sentence
    assert floor.outcome is Outcome.PASS, "what can be judged still is"


def test_the_model_and_the_folder_of_the_data_may_be_others(make_result, tmp_path):
    changes = {"model.name": "other", "model.sha256": "1" * 64, "data.name": "npz:there/test.npz"}
    before = make_result(tmp_path / "before.json", 500, changes=changes)
    now = make_result(tmp_path / "now.json", 500, changes={"data.name": "npz:/here/test.npz"})
    assert judge(now, baseline=before, max_drop=0.02).outcome is Outcome.PASS


@pytest.mark.parametrize(("old", "new"), [('"label":0', '"label":1'), (f'"{500:064x}"', f'"{7:064x}"')])
def test_other_samples_are_not_comparable(make_result, tmp_path, old, new):
    now = make_result(tmp_path / "now.json", 500)
    before = make_result(tmp_path / "fewer.json", 500, n=999)
    assert "different samples" in judge(now, baseline=before, max_drop=0.02).checks[0].sentence
    before = make_result(tmp_path / "before.json", 500)
    record = before.with_suffix(".samples.jsonl")
    record.write_text(record.read_text().replace(old, new, 1))
    decision = judge(now, baseline=before, max_drop=0.02)
    assert decision.outcome is Outcome.NOT_COMPARABLE
    assert "different samples" in decision.checks[0].sentence


def test_a_result_that_is_not_trusted_is_refused(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 900, changes={"verdict": {"status": "not-trusted", "reasons": ["masked"]}})
    decision = judge(path, min_robust=0.1)
    assert decision.outcome is Outcome.NOT_COMPARABLE
    assert "masked" in decision.checks[0].sentence


def test_doubts_of_the_evaluation_are_passed_on(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 900, changes={"verdict": {"status": "doubtful", "reasons": ["noisy"]}})
    decision = judge(path, min_robust=0.1)
    assert decision.outcome is Outcome.PASS
    assert decision.to_dict()["doubts"] == ["noisy"]


def suite(name, version=1, sha256=None):
    return Protocol(name=name, version=version, sha256=sha256 or SUITE_HASHES.get((name, version), "f" * 64))


@pytest.mark.parametrize(
    ("required", "protocol", "word"),
    [
        ("fast/1", suite("fast"), ""),
        ("fast", suite("standard"), ""),
        ("fast/1", suite("autoattack"), ""),
        ("standard/1", suite("standard"), ""),
        ("standard/1", suite("exhaustive"), ""),
        ("autoattack/1", suite("autoattack"), ""),
        ("autoattack", suite("exhaustive"), ""),
        ("exhaustive/1", suite("exhaustive"), ""),
        ("standard/1", suite("fast"), "requires standard/1, but the result is of fast/1"),
        ("exhaustive", suite("standard"), "requires exhaustive/1"),
        ("exhaustive", suite("autoattack"), "requires exhaustive/1"),
        ("standard", suite("autoattack"), "requires standard/1"),
        ("autoattack/1", suite("standard"), "requires autoattack/1"),
        ("fast/1", Protocol(name="custom", version=None, sha256="a"), "protocol custom"),
        ("fast/1", suite("fast", sha256="a" * 64), "its settings are others"),
        ("fast/1", suite("standard", sha256="a" * 64), "its settings are others"),
        ("fast/1", suite("fast", version=9), "does not know"),
    ],
)
def test_what_a_required_protocol_is_satisfied_by(required, protocol, word):
    reason = weaker(protocol, required)
    assert word in reason
    assert bool(reason) == bool(word)


def test_newer_versions_are_no_weaker(monkeypatch):
    monkeypatch.setitem(SUITE_HASHES, ("fast", 2), "2" * 64)
    assert weaker(suite("fast", 2), "fast/1") == "" == weaker(suite("fast", 2), "fast")
    assert "requires fast/2" in weaker(suite("fast", 1), "fast") == weaker(suite("fast", 1), "fast/2")


@pytest.mark.parametrize("text", ["", "quick", "fast/9", "fast/", "fast/x", "fast/1/2", "fast/" + "9" * 5000])
def test_unknown_suites_cannot_be_required(text):
    with pytest.raises(UserError, match="a gate can require fast/1"):
        require_known(text)


def test_the_known_hashes_are_those_of_the_suites():
    from robustbench_local.attacks.suites import SUITES
    from robustbench_local.engine.protocol import resolve_suite

    assert {
        (name, version): resolve_suite(f"{name}/{version}")[0].sha256
        for name, versions in SUITES.items()
        for version in versions
    } == SUITE_HASHES


def test_a_weaker_protocol_is_refused_by_the_gate(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 900, changes=FAST)
    assert judge(path, min_robust=0.5, require="fast").outcome is Outcome.PASS
    decision = judge(path, min_robust=0.5, require="standard")
    assert [check.rule for check in decision.checks] == ["require"]
    assert decision.outcome is Outcome.NOT_COMPARABLE


CLASSES = ["stop", "yield", "14", None]


@pytest.mark.parametrize(
    ("floors", "outcomes"),
    [
        (ClassFloors(0.3), {0: Outcome.PASS, 1: Outcome.PASS, 2: Outcome.PASS, 3: Outcome.PASS}),
        (ClassFloors(None, {"stop": 0.7}), {0: Outcome.FAIL}),
        (ClassFloors(None, {0: 0.7}), {0: Outcome.FAIL}),
        (ClassFloors(None, {"0": 0.7}), {0: Outcome.FAIL}),
        (ClassFloors(None, {"14": 0.3}), {2: Outcome.PASS}),
        (ClassFloors(None, {3: 0.3}), {3: Outcome.PASS}),
        (ClassFloors(0.3, {"yield": 0.5}), {0: Outcome.PASS, 1: Outcome.UNDECIDED, 2: Outcome.PASS, 3: Outcome.PASS}),
    ],
)
def test_floors_of_classes(make_result, tmp_path, floors, outcomes):
    path = make_result(tmp_path / "r.json", 500, classes=CLASSES)
    for rule in ("min_class_robust", "min_class_clean"):
        clean = rule == "min_class_clean"
        decision = judge(path, **{rule: floors})
        assert [check.rule for check in decision.checks] == [f"{rule}:{label}" for label in outcomes]
        if not clean:
            assert [check.outcome for check in decision.checks] == list(outcomes.values())
    first = judge(path, min_class_robust=ClassFloors(0.3)).checks[0]
    assert first.limit == "robust accuracy of class stop (0) ≥ 30.0%"
    assert first.n == 250


@pytest.mark.parametrize(
    ("single", "word"),
    [
        ({"halt": 0.5}, "'halt'"),
        ({14: 0.5}, "no samples of such a class"),
        ({"stop": 0.5, 0: 0.5}, "another line"),
        ({"twin": 0.5}, "2 classes of that name"),
    ],
)
def test_a_class_that_is_not_there_is_refused(make_result, tmp_path, single, word):
    path = make_result(tmp_path / "r.json", 500, classes=[*CLASSES, "twin", "twin"])
    decision = judge(path, min_class_robust=ClassFloors(None, single))
    assert decision.outcome is Outcome.NOT_COMPARABLE
    assert any(word in check.sentence for check in decision.checks)


def test_results_go_to_the_limits_of_their_threat_model(make_result, tmp_path):
    linf = make_result(tmp_path / "linf.json", 600)
    l2 = make_result(tmp_path / "l2.json", 300, changes=AS_L2)
    gate = Gate((Limits(LINF, min_robust=0.5), Limits(L2, min_robust=0.4)))
    decision = decide(gate, [l2, linf])
    assert [(each.threat, each.checks[0].outcome) for each in decision.judged] == [
        ("L2 0.5", Outcome.FAIL),
        ("L∞ 0.1", Outcome.PASS),
    ]
    missing = decide(gate, [linf])
    assert missing.outcome is Outcome.NOT_COMPARABLE
    assert "no result for L2 0.5" in missing.checks[-1].sentence
    spare = decide(Gate((Limits(LINF, min_robust=0.5),)), [linf, l2])
    assert spare.outcome is Outcome.NOT_COMPARABLE
    assert "does not speak of L2 0.5" in spare.checks[-1].sentence
    with pytest.raises(UserError, match=r"both of L∞ 0\.1"):
        decide(gate, [linf, make_result(tmp_path / "again.json", 600)])


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
    assert threat.name == threat_name(result.threat_model) == "L∞ 0.1, 14 → 5, class 43 rejects"


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
    assert "no result to compare with the baseline" in one.checks[-1].sentence
    changes = {"threat_model.eps": 0.3, "threat_model.eps_text": "0.3"}
    other = make_result(tmp_path / "old" / "c.json", 600, changes=changes)
    none = decide(Gate((Limits(max_drop=0.02, baselines=(before[0], other)),)), results[:1])
    assert "none of the baselines is of L∞ 0.1" in none.checks[0].sentence
    with pytest.raises(UserError, match=r"both of L∞ 0\.1"):
        twin = make_result(tmp_path / "old" / "d.json", 600)
        decide(Gate((Limits(max_drop=0.02, baselines=(before[1], twin)),)), results[:1])


def test_what_was_stopped_by_a_gate_speaks_of_the_finite_set(make_result, tmp_path):
    changes = {"data.available": 1100, "sequential": STOPPED}
    path = make_result(tmp_path / "r.json", 520, changes=changes)
    check = judge(path, min_robust=0.45).checks[0]
    assert (check.low, check.high) == finite_bounds(520, 1000, 1100, 0.05)
    assert check.outcome is Outcome.PASS
    assert "of the 1,100 images of the split" in check.sentence
    assert judge(make_result(tmp_path / "r.json", 520), min_robust=0.5).outcome is Outcome.UNDECIDED
    whole = make_result(tmp_path / "s.json", 500, changes={"sequential": STOPPED})
    assert judge(whole, min_robust=0.5).outcome is Outcome.PASS, "half of all is half of all"
    assert judge(whole, min_robust=0.501).outcome is Outcome.FAIL


def test_what_was_stopped_by_a_gate_has_no_drops_and_no_classes(make_result, tmp_path):
    changes = {"data.available": 1100, "sequential": STOPPED}
    path = make_result(tmp_path / "r.json", 520, changes=changes, classes=CLASSES)
    before = make_result(tmp_path / "before.json", 520, changes={"data.available": 1100}, classes=CLASSES)
    drop = judge(path, baseline=before, max_drop=0.02)
    assert drop.outcome is Outcome.NOT_COMPARABLE
    assert "without --until-gate" in drop.checks[0].sentence
    classes = judge(path, min_class_robust=ClassFloors(0.3))
    assert classes.outcome is Outcome.NOT_COMPARABLE
    assert "without --until-gate" in classes.checks[0].sentence
    whole = make_result(tmp_path / "s.json", 520, changes={"sequential": STOPPED}, classes=CLASSES)
    assert judge(whole, min_class_robust=ClassFloors(0.3)).outcome is Outcome.PASS


def test_the_decision_as_json(make_result, tmp_path):
    before = make_result(tmp_path / "before.json", 500)
    now = make_result(tmp_path / "now.json", 500, flipped=[3, 700])
    told = json.loads(json.dumps(judge(now, baseline=before, max_drop=0.02).to_dict()))
    assert told["schema"] == "robustbench-local/gate/1"
    assert told["outcome"] == "pass"
    assert told["exit_code"] == 0
    assert told["checks"][0]["rule"] == "max_drop"
    assert told["checks"][0]["threat_model"] == "L∞ 0.1"
    assert [(flip["index"], flip["lost"]) for flip in told["results"][0]["flipped"]] == [(700, False), (3, True)]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "not a result file"),
        ('{"schema": "other/1"}', "other/1"),
        ('{"schema": "robustbench-local/result/1"}', "Field required"),
    ],
)
def test_other_files_are_refused_with_a_sentence(tmp_path, text, word):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UserError, match=word):
        read_result(path)


def test_unknown_fields_and_impossible_rates_are_refused(make_result, tmp_path):
    with pytest.raises(UserError, match="surprise"):
        read_result(make_result(tmp_path / "r.json", 5, changes={"surprise": 1}))
    with pytest.raises(UserError, match=r"clean_accuracy\.value"):
        read_result(make_result(tmp_path / "s.json", 5, changes={"clean_accuracy.value": 40}))


@pytest.mark.parametrize(
    "changes",
    [
        {"robust_accuracy.n": 100},
        {"robust_accuracy.correct": 600},
        {"robust_accuracy.value": 0.99},
        {"robust_accuracy.n": 10**30},
        {"data.available": -4},
        {"data.n": 999},
        {"threat_model.eps_text": "0.2"},
        {"threat_model.eps_text": "little"},
        {"attacks": []},
        {"per_class": []},
        {"diagnostics": [{"check": "c", "status": "fail"}]},
        {"diagnostics": [{"check": "c", "status": "fail"}], "verdict": {"status": "doubtful", "reasons": []}},
        {"diagnostics": [{"check": "c", "status": "warn"}]},
    ],
)
def test_results_that_contradict_themselves_are_refused(make_result, tmp_path, changes):
    with pytest.raises(UserError, match="not a valid result file"):
        judge(make_result(tmp_path / "r.json", 500, changes=changes), min_robust=0.5)


def test_the_record_is_held_against_the_result_for_floors_too(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 500)
    record = path.with_suffix(".samples.jsonl")
    record.write_text(record.read_text().replace('"robust":true', '"robust":false', 1))
    with pytest.raises(UserError, match="two runs"):
        judge(path, min_robust=0.4)


def test_a_record_outside_the_results_folder_is_refused(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 5, changes={"samples_file": "../../etc/passwd"})
    with pytest.raises(UserError, match="own folder"):
        read_samples(read_result(path), path)


def test_damaged_records_name_the_line(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 5)
    record = path.with_suffix(".samples.jsonl")
    lines = record.read_text().splitlines()
    record.write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]))
    with pytest.raises(UserError, match="line 2"):
        read_samples(read_result(path), path)


def test_a_record_of_another_run_is_refused(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 5)
    record = path.with_suffix(".samples.jsonl")
    lines = record.read_text().splitlines()
    record.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match="999 lines"):
        read_samples(read_result(path), path)
    record.write_text("\n".join([*lines[:-1], lines[0]]))
    with pytest.raises(UserError, match="different samples"):
        read_samples(read_result(path), path)
    record.write_text("\n".join([lines[0].replace('"robust":true', '"robust":false'), *lines[1:]]))
    with pytest.raises(UserError, match="two runs"):
        read_samples(read_result(path), path)


def test_the_committed_schema_is_the_types_schema(request):
    committed = request.config.rootpath / "docs" / "result.schema.json"
    assert committed.read_text() == json_schema(), "write it anew: python -m robustbench_local.results.schema"


def test_results_match_the_committed_schema(make_result, tmp_path, request):
    import jsonschema

    schema = json.loads((request.config.rootpath / "docs" / "result.schema.json").read_text())
    jsonschema.validate(json.loads(make_result(tmp_path / "r.json", 5).read_text()), schema)


def test_results_that_agree_with_themselves_are_read(make_result, tmp_path):
    warned = {"diagnostics": [{"check": "c", "status": "warn"}], "verdict": {"status": "doubtful", "reasons": ["c"]}}
    assert judge(make_result(tmp_path / "r.json", 500, changes=warned), min_robust=0.4).outcome is Outcome.PASS
    fraction = {"threat_model.eps": 8 / 255, "threat_model.eps_text": "8/255"}
    assert judge(make_result(tmp_path / "s.json", 500, changes=fraction), min_robust=0.4).outcome is Outcome.PASS


def test_attacks_and_classes_add_up_to_the_whole(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 500, attacks=[("fgsm", 300), ("pgd", 100)])
    path.write_text(path.read_text().replace('"fooled": 100', '"fooled": 99'))
    with pytest.raises(UserError, match="its attacks fooled 399 of them, but 500 are robust"):
        read_result(path)
    path = make_result(tmp_path / "s.json", 500, classes=CLASSES)
    content = json.loads(path.read_text())
    content["per_class"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the clean accuracies of its classes do not add up"):
        read_result(path)


def test_a_result_that_nobody_assessed_is_a_doubt(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 900, changes={"verdict": {"status": "not-assessed", "reasons": []}})
    decision = judge(path, min_robust=0.1)
    assert decision.outcome is Outcome.PASS
    assert "not assessed" in decision.to_dict()["doubts"][0]


def test_a_file_has_one_part_to_play(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 500)
    same = tmp_path / ".." / tmp_path.name / "r.json"
    for again in (path, same):
        with pytest.raises(UserError, match="given twice"):
            judge(path, again, min_robust=0.4)
        with pytest.raises(UserError, match="the baseline itself"):
            judge(path, baseline=again, max_drop=0.1)
    with pytest.raises(UserError, match=r"there is no baseline .*--update-baseline"):
        judge(path, baseline=tmp_path / "gone.json", max_drop=0.1)


def test_how_many_samples_of_a_class_would_decide(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 500, classes=CLASSES, changes={"data.available": 40000})
    sentence = judge(path, min_class_robust=ClassFloors(None, {3: 0.49})).checks[0].sentence
    assert " samples of class 3 would decide" in sentence


def test_hashes_that_begin_alike_are_shown_whole():
    known = SUITE_HASHES["fast", 1]
    assert known in weaker(suite("fast", sha256=known[:40] + "0" * 24), "fast")
    assert known not in weaker(suite("fast", sha256="0" * 64), "fast")
