import pytest
from gate_decisions import decide_one

from robustbench_local.gates.gate import ClassFloors, ThreatSelector
from robustbench_local.gates.limits import Outcome
from robustbench_local.results.protocol_order import SUITE_HASHES

FAST = {"protocol": {"name": "fast", "version": 1, "sha256": SUITE_HASHES["fast", 1]}}
LINF = ThreatSelector("linf", 0.1, "0.1")
L2 = ThreatSelector("l2", 0.5, "0.5")
AS_L2 = {"threat_model.norm": "l2", "threat_model.eps": 0.5, "threat_model.eps_text": "0.5"}
STOPPED = {"gate": "g.yaml", "order_seed": 0, "looks": [100, 1000]}


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
        decision = decide_one(path, **{rule: floors})
        assert [check.rule for check in decision.checks] == [f"{rule}:{label}" for label in outcomes]
        if not clean:
            assert [check.outcome for check in decision.checks] == list(outcomes.values())
    first = decide_one(path, min_class_robust=ClassFloors(0.3)).checks[0]
    assert first.limit == "robust accuracy of class stop (0) ≥ 30.0%"
    assert first.n == 250


@pytest.mark.parametrize(
    ("single", "slug"),
    [
        ({"halt": 0.5}, "unknown-class"),
        ({14: 0.5}, "unknown-class"),
        ({"stop": 0.5, 0: 0.5}, "duplicate-class"),
        ({"twin": 0.5}, "ambiguous-class"),
    ],
)
def test_a_class_that_is_not_there_is_refused(make_result, tmp_path, single, slug):
    path = make_result(tmp_path / "r.json", 500, classes=[*CLASSES, "twin", "twin"])
    decision = decide_one(path, min_class_robust=ClassFloors(None, single))
    assert decision.outcome is Outcome.NOT_COMPARABLE
    assert slug in [check.slug for check in decision.checks]


def test_how_many_samples_of_a_class_would_decide(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 500, classes=CLASSES, changes={"data.available": 40000})
    sentence = decide_one(path, min_class_robust=ClassFloors(None, {3: 0.49})).checks[0].sentence
    assert " samples of class 3 would decide" in sentence


def test_what_was_stopped_by_a_gate_has_no_drops_and_no_classes(make_result, tmp_path):
    changes = {"data.available": 1100, "sequential": STOPPED}
    path = make_result(tmp_path / "r.json", 520, changes=changes, classes=CLASSES)
    before = make_result(tmp_path / "before.json", 520, changes={"data.available": 1100}, classes=CLASSES)
    drop = decide_one(path, baseline=before, max_drop=0.02)
    assert drop.outcome is Outcome.NOT_COMPARABLE
    assert drop.checks[0].slug == "stopped-by-gate"
    classes = decide_one(path, min_class_robust=ClassFloors(0.3))
    assert classes.outcome is Outcome.NOT_COMPARABLE
    assert classes.checks[0].slug == "classes-of-stopped-run"
    whole = make_result(tmp_path / "s.json", 520, changes={"sequential": STOPPED}, classes=CLASSES)
    assert decide_one(whole, min_class_robust=ClassFloors(0.3)).outcome is Outcome.PASS
