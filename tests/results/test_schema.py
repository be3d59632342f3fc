import json

from robustbench_local.results.reading import read_result
from robustbench_local.results.schema import json_schema


def test_the_committed_schema_is_the_types_schema(request):
    committed = request.config.rootpath / "docs" / "result.schema.json"
    assert committed.read_text() == json_schema(), "write it anew: python -m robustbench_local.results.schema"


def test_results_match_the_committed_schema(make_result, tmp_path, request):
    import jsonschema

    schema = json.loads((request.config.rootpath / "docs" / "result.schema.json").read_text())
    jsonschema.validate(json.loads(make_result(tmp_path / "r.json", 5).read_text()), schema)


def test_results_that_agree_with_themselves_are_read(make_result, tmp_path):
    warned = {"diagnostics": [{"check": "c", "status": "warn"}], "verdict": {"status": "doubtful", "reasons": ["c"]}}
    assert read_result(make_result(tmp_path / "r.json", 500, changes=warned)).verdict.status == "doubtful"
    fraction = {"threat_model.eps": 8 / 255, "threat_model.eps_text": "8/255"}
    assert read_result(make_result(tmp_path / "s.json", 500, changes=fraction)).threat_model.eps_text == "8/255"
