import json

import pytest

from robustbench_local.errors import UserError
from robustbench_local.gate import Gate, Outcome, decide
from robustbench_local.result import (
    Accuracy,
    Cost,
    DataInfo,
    ModelInfo,
    Protocol,
    Result,
    SampleRecord,
    ThreatModelInfo,
    Verdict,
    json_schema,
    read_result,
    read_samples,
)


def make_result(path, robust, *, n=1000, clean=900, changes=None, flipped=()):
    """A result file with `robust` of n samples standing; `flipped` ones change sides."""
    path.parent.mkdir(exist_ok=True)
    lines = []
    for index in range(n):
        stands = (index < robust) != (index in flipped)
        lines.append(SampleRecord(
            index=index, input_sha256=f"{index:064x}", label=0, clean_prediction=int(not (index < clean or stands)),
            adversarial_prediction=None, robust=stands, broken_by=None, restart=None, step=None, distance=None,
            clean_margin=1.0, margin=1.0,
        ).model_dump_json())
    samples = path.with_suffix(".samples.jsonl")
    samples.write_text("\n".join(lines) + "\n")
    standing = sum(json.loads(line)["robust"] for line in lines)
    result = Result(
        created="2026-01-01T00:00:00+00:00",
        model=ModelInfo(name="m", sha256="0" * 64, classes=10, parameters=1, normalization=None),
        data=DataInfo(name="d", split="test", n=n, available=n, sha256="0" * 64, subset_seed=None, lossy=False),
        threat_model=ThreatModelInfo(norm="linf", eps=0.1, eps_text="0.1", box=(0, 1), goal="untargeted"),
        protocol=Protocol(name="fast", version=1, sha256="a"), clean_accuracy=Accuracy.of(clean, n),
        robust_accuracy=Accuracy.of(standing, n), per_class=[], attacks=[], diagnostics=[],
        verdict=Verdict(status="not-assessed", reasons=[]), samples_file=samples.name,
        cost=Cost(forward_passes=1, backward_passes=1, forward_passes_per_image=1, backward_passes_per_image=1,
                  seconds=1, image_steps_per_second=1, peak_memory_bytes=1),
        environment={}, config={},
    )
    content = json.loads(result.to_json())
    for key, value in (changes or {}).items():
        section, _, field = key.partition(".")
        content[section] = {**content[section], field: value} if field else value
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("robust", "outcome"),
    [(527, Outcome.PASS), (525, Outcome.UNDECIDED), (500, Outcome.UNDECIDED), (475, Outcome.UNDECIDED),
     (473, Outcome.FAIL)],
)
def test_a_floor_is_cleared_by_the_bound_not_by_the_value(tmp_path, robust, outcome):
    decision = decide(Gate(min_robust=0.5), make_result(tmp_path / "r.json", robust))
    assert decision.outcome is outcome
    assert f"{robust} of 1000" in decision.checks[0].sentence


def test_undecided_says_how_many_samples_would_decide(tmp_path):
    sentence = decide(Gate(min_robust=0.5), make_result(tmp_path / "r.json", 515)).checks[0].sentence
    assert "samples would decide" in sentence and "all 1,000 are used" in sentence
    path = make_result(tmp_path / "s.json", 515, changes={"data.available": 10000})
    assert "the data set has 10,000" in decide(Gate(min_robust=0.5), path).checks[0].sentence
    exactly = make_result(tmp_path / "t.json", 500)
    assert "no number of samples" in decide(Gate(min_robust=0.5), exactly).checks[0].sentence


@pytest.mark.parametrize(
    ("lost", "gained", "outcome"),
    [(0, 0, Outcome.PASS), (20, 0, Outcome.PASS), (40, 5, Outcome.FAIL), (30, 5, Outcome.FAIL),
     (50, 29, Outcome.FAIL), (60, 39, Outcome.FAIL), (300, 278, Outcome.UNDECIDED)],
)
def test_a_drop_is_judged_in_pairs(tmp_path, lost, gained, outcome):
    before = make_result(tmp_path / "before.json", 500)
    flipped = {*range(lost), *range(500, 500 + gained)}
    now = make_result(tmp_path / "now.json", 500, flipped=flipped, clean=1000)
    check = decide(Gate(max_drop=0.02), now, before).checks[0]
    assert check.outcome is outcome, check.sentence
    assert check.value == pytest.approx((lost - gained) / 1000)


def test_the_gravest_outcome_decides(tmp_path):
    path = make_result(tmp_path / "r.json", 500)
    assert decide(Gate(min_clean=0.5, min_robust=0.5), path).outcome is Outcome.UNDECIDED
    assert decide(Gate(min_clean=0.99, min_robust=0.5), path).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"threat_model.eps": 0.2}, "threat models differ"), ({"protocol.sha256": "b"}, "protocols differ"),
     ({"threat_model.goal": {"source": 1, "target": 2}}, "threat models differ")],
)
def test_other_settings_are_not_comparable(tmp_path, changes, word):
    before = make_result(tmp_path / "before.json", 500, changes=changes)
    decision = decide(Gate(max_drop=0.02), make_result(tmp_path / "now.json", 500), before)
    assert decision.outcome is Outcome.NOT_COMPARABLE and word in decision.checks[0].sentence


def test_other_samples_are_not_comparable(tmp_path):
    before = make_result(tmp_path / "before.json", 500, n=999)
    decision = decide(Gate(max_drop=0.02), make_result(tmp_path / "now.json", 500), before)
    assert decision.outcome is Outcome.NOT_COMPARABLE and "different samples" in decision.checks[0].sentence


def test_a_result_that_is_not_trusted_is_refused(tmp_path):
    path = make_result(tmp_path / "r.json", 900, changes={"verdict": {"status": "not-trusted", "reasons": ["masked"]}})
    decision = decide(Gate(min_robust=0.1), path)
    assert decision.outcome is Outcome.NOT_COMPARABLE and "masked" in decision.checks[0].sentence


@pytest.mark.parametrize(
    ("text", "word"),
    [("", "not JSON"), ("{", "not JSON"), ("[1]", "not a result file"), ('{"schema": "other/1"}', "other/1"),
     ('{"schema": "robustbench-local/result/1"}', "Field required")],
)
def test_other_files_are_refused_with_a_sentence(tmp_path, text, word):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UserError, match=word):
        read_result(path)


def test_unknown_fields_and_impossible_rates_are_refused(tmp_path):
    with pytest.raises(UserError, match="surprise"):
        read_result(make_result(tmp_path / "r.json", 5, changes={"surprise": 1}))
    with pytest.raises(UserError, match=r"clean_accuracy\.value"):
        read_result(make_result(tmp_path / "s.json", 5, changes={"clean_accuracy.value": 40}))


@pytest.mark.parametrize(
    "changes",
    [{"robust_accuracy.n": 100}, {"robust_accuracy.correct": 600}, {"robust_accuracy.value": 0.99},
     {"robust_accuracy.n": 10**30}, {"data.available": -4}, {"data.n": 999}],
)
def test_results_that_contradict_themselves_are_refused(tmp_path, changes):
    with pytest.raises(UserError, match="not a valid result file"):
        decide(Gate(min_robust=0.5), make_result(tmp_path / "r.json", 500, changes=changes))


def test_the_record_is_held_against_the_result_for_floors_too(tmp_path):
    path = make_result(tmp_path / "r.json", 500)
    record = path.with_suffix(".samples.jsonl")
    record.write_text(record.read_text().replace('"robust":true', '"robust":false', 1))
    with pytest.raises(UserError, match="two runs"):
        decide(Gate(min_robust=0.4), path)


def test_doubts_of_the_evaluation_are_passed_on(tmp_path):
    path = make_result(tmp_path / "r.json", 900, changes={"verdict": {"status": "doubtful", "reasons": ["noisy"]}})
    decision = decide(Gate(min_robust=0.1), path)
    assert decision.outcome is Outcome.PASS and decision.to_dict()["doubts"] == ["noisy"]


def test_a_record_outside_the_results_folder_is_refused(tmp_path):
    path = make_result(tmp_path / "r.json", 5, changes={"samples_file": "../../etc/passwd"})
    with pytest.raises(UserError, match="own folder"):
        read_samples(read_result(path), path)


def test_damaged_records_name_the_line(tmp_path):
    path = make_result(tmp_path / "r.json", 5)
    record = path.with_suffix(".samples.jsonl")
    lines = record.read_text().splitlines()
    record.write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]))
    with pytest.raises(UserError, match="line 2"):
        read_samples(read_result(path), path)


def test_a_record_of_another_run_is_refused(tmp_path):
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
    assert committed.read_text() == json_schema(), "write it anew: python -m robustbench_local.result"


def test_results_match_the_committed_schema(tmp_path, request):
    import jsonschema

    schema = json.loads((request.config.rootpath / "docs" / "result.schema.json").read_text())
    jsonschema.validate(json.loads(make_result(tmp_path / "r.json", 5).read_text()), schema)
