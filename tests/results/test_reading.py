import json

import pytest

from robustbench_local.errors import UserError
from robustbench_local.results.reading import read_result, read_samples


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("", "result-not-json"),
        ("{", "result-not-json"),
        ("[1]", "not-a-result-file"),
        ('{"schema": "other/1"}', "not-a-result-file"),
        ('{"schema": "robustbench-local/result/1"}', "invalid-result"),
    ],
)
def test_other_files_are_refused_with_a_sentence(tmp_path, text, slug):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"r\.json") as refused:
        read_result(path)
    assert refused.value.slug == slug


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
    path = make_result(tmp_path / "r.json", 500, changes=changes)
    with pytest.raises(UserError) as refused:
        read_result(path)
    assert refused.value.slug == "invalid-result"


def test_a_record_outside_the_results_folder_is_refused(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 5, changes={"samples_file": "../../etc/passwd"})
    with pytest.raises(UserError, match="etc/passwd") as refused:
        read_samples(read_result(path), path)
    assert refused.value.slug == "samples-outside-directory"


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
    with pytest.raises(UserError) as refused:
        read_samples(read_result(path), path)
    assert refused.value.slug == "samples-do-not-match"
    record.write_text("\n".join([*lines[:-1], lines[0]]))
    with pytest.raises(UserError) as refused:
        read_samples(read_result(path), path)
    assert refused.value.slug == "samples-do-not-match"
    record.write_text("\n".join([lines[0].replace('"robust":true', '"robust":false'), *lines[1:]]))
    with pytest.raises(UserError) as refused:
        read_samples(read_result(path), path)
    assert refused.value.slug == "samples-do-not-match"


def test_attacks_and_classes_add_up_to_the_whole(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 500, attacks=[("fgsm", 300), ("pgd", 100)])
    path.write_text(path.read_text().replace('"fooled": 100', '"fooled": 99'))
    with pytest.raises(UserError, match="its attacks fooled 399 of them, but 500 are robust"):
        read_result(path)
    path = make_result(tmp_path / "s.json", 500, classes=["stop", None])
    content = json.loads(path.read_text())
    content["per_class"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the clean accuracies of its classes do not add up"):
        read_result(path)
