"""The schema of results, and results that were written before checks had slugs."""

import json

import jsonschema
import pytest

from robustbench_local.errors import UserError
from robustbench_local.gates.decide import decide
from robustbench_local.gates.gate import Gate, Limits
from robustbench_local.gates.limits import Outcome
from robustbench_local.gates.sarif import sarif
from robustbench_local.results.checks import CHECKS
from robustbench_local.results.compare import compare
from robustbench_local.results.reading import read_result
from robustbench_local.results.schema import Diagnostic, json_schema


def earlier(slug, status="pass", **fields):
    """A diagnostic as results had it before slugs: named by its sentence alone."""
    return {
        "check": CHECKS[slug].earlier,
        "status": status,
        "value": 0.5,
        "threshold": 0.1,
        "n": 50,
        "advice": "",
        **fields,
    }


def test_the_committed_schema_is_that_of_the_types(request):
    committed = request.config.rootpath / "docs" / "result.schema.json"
    assert committed.read_text() == json_schema(), "write it anew: python -m robustbench_local.results.schema"


def test_results_match_the_committed_schema(make_result, tmp_path, request):
    schema = json.loads((request.config.rootpath / "docs" / "result.schema.json").read_text())
    jsonschema.validate(json.loads(make_result(tmp_path / "r.json", 5).read_text()), schema)


def test_results_that_are_consistent_are_read(make_result, tmp_path):
    warned = {"diagnostics": [{"check": "c", "status": "warn"}], "verdict": {"status": "doubtful", "reasons": ["c"]}}
    assert read_result(make_result(tmp_path / "r.json", 500, changes=warned)).verdict.status == "doubtful"
    fraction = {"threat_model.eps": 8 / 255, "threat_model.eps_text": "8/255"}
    assert read_result(make_result(tmp_path / "s.json", 500, changes=fraction)).threat_model.eps_text == "8/255"


def test_results_without_slugs_get_the_slug_of_every_check(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 500, changes={"diagnostics": [earlier(slug) for slug in CHECKS]})
    diagnostics = read_result(path).diagnostics
    assert [each.slug for each in diagnostics] == list(CHECKS)
    assert [each.sentence for each in diagnostics] == [check.passes for check in CHECKS.values()]
    assert {(each.value, each.threshold, each.n) for each in diagnostics} == {(0.5, 0.1, 50)}


def test_a_check_of_a_result_without_slugs_that_failed_says_so():
    diagnostic = Diagnostic.model_validate(earlier("gradients-reach-input", "fail"))
    assert diagnostic.sentence == "gradients do not reach the input"


def test_the_reason_of_an_adaptive_attack_becomes_a_slug(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 500, attacks=[("pgd", 300), ("bpda", 60), ("square", 40)])
    content = json.loads(path.read_text())
    reasons = ("gradients reach the input", "more-steps-find-no-more", "an older check: 3 of 4")
    for attack, because in zip(content["attacks"], reasons, strict=True):
        attack.update(role="adaptive", because=because)
    path.write_text(json.dumps(content))
    slugs = [attack.because for attack in read_result(path).attacks]
    assert slugs == ["gradients-reach-input", "more-steps-find-no-more", "an-older-check-3-of-4"]


@pytest.mark.parametrize(
    ("sentence", "slug"), [("moonlight is harmless", "moonlight-is-harmless"), ("ε ≤ 0.1 (here)", "0-1-here")]
)
def test_an_unknown_check_keeps_its_sentence_and_derives_its_slug(sentence, slug):
    for status in ("pass", "fail"):
        diagnostic = Diagnostic.model_validate({"check": sentence, "status": status})
        assert (diagnostic.slug, diagnostic.sentence) == (slug, sentence)


def test_reading_and_writing_again_changes_nothing(make_result, tmp_path):
    old = [earlier(slug) for slug in CHECKS] + [{"check": "moonlight is harmless", "status": "pass"}]
    result = read_result(make_result(tmp_path / "r.json", 500, changes={"diagnostics": old}))
    (tmp_path / "again.json").write_text(result.to_json())
    assert read_result(tmp_path / "again.json") == result


def test_results_with_and_without_slugs_are_gated_and_compared_alike(make_result, tmp_path):
    verdict = {"status": "doubtful", "reasons": ["noisy"]}
    with_slugs = {"verdict": verdict, "diagnostics": [{"slug": "search-converged", "status": "warn"}]}
    without = {"verdict": verdict, "diagnostics": [earlier("search-converged", "warn")]}
    old = make_result(tmp_path / "old.json", 500, changes=without)
    new = make_result(tmp_path / "new.json", 500, changes=with_slugs)
    assert read_result(old).diagnostics[0].slug == read_result(new).diagnostics[0].slug == "search-converged"
    outputs = []
    for before, now in ((old, new), (new, old)):
        decision = decide(Gate((Limits(min_robust=0.4, max_drop=0.02, baselines=(before,)),)), [now])
        assert decision.outcome is Outcome.PASS
        assert [warning.slug for warning in decision.results[0].warnings] == ["verdict-doubtful"]
        outputs.append([rule["id"] for rule in json.loads(sarif(decision))["runs"][0]["tool"]["driver"]["rules"]])
    assert outputs[0] == outputs[1] == ["min_robust/linf-0.1", "max_drop/linf-0.1", "doubts/linf-0.1"]
    comparison = compare([old, new])
    assert not comparison.refusals
    assert {warning["slug"] for model in comparison.to_dict()["models"] for warning in model["warnings"]} == {
        "verdict-doubtful"
    }


PARTS = [
    {"name": "clean pass", "forward_passes": 1, "backward_passes": 0, "seconds": 0.25},
    {"name": "suite", "forward_passes": 0, "backward_passes": 1, "seconds": 0.75},
]


def test_results_say_where_their_passes_went_or_nothing(make_result, tmp_path):
    cost = read_result(make_result(tmp_path / "r.json", 500, changes={"cost.parts": PARTS})).cost
    assert cost.part("suite").passes == 1
    assert cost.part("probes") is None
    earlier = read_result(make_result(tmp_path / "s.json", 500)).cost
    assert earlier.parts is None
    assert earlier.part("suite") is None


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([{**PARTS[0], "forward_passes": 2}, PARTS[1]], "the forward_passes of the parts"),
        (PARTS[:1], "the backward_passes of the parts"),
        ([PARTS[0], {**PARTS[1], "seconds": 0.7}], "the seconds of the parts"),
        ([], "the forward_passes of the parts"),
        ([*PARTS, {**PARTS[0], "forward_passes": 0, "seconds": 0}], "the same name"),
        ([{**PARTS[0], "name": "lunch"}, PARTS[1]], "cost"),
        ([PARTS[0], {**PARTS[1], "seconds": -0.75}], "cost"),
    ],
)
def test_parts_that_are_not_the_whole_are_refused(make_result, tmp_path, parts, reason):
    path = make_result(tmp_path / "r.json", 500, changes={"cost.parts": parts})
    with pytest.raises(UserError, match=reason):
        read_result(path)
