import hashlib
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import xmlschema
from rich.console import Console

from robustbench_local.display.gate import show_decision
from robustbench_local.errors import UserError
from robustbench_local.gates import baseline
from robustbench_local.gates import decide as decide_module
from robustbench_local.gates.decide import decide
from robustbench_local.gates.gate import ClassFloors, Gate, Limits, ThreatSelector
from robustbench_local.gates.github import markdown, summary, workflow_commands, write_step_summary
from robustbench_local.gates.junit import junit
from robustbench_local.gates.sarif import sarif
from robustbench_local.io.escape import plain
from robustbench_local.results import pairing
from robustbench_local.results.reading import read_result
from robustbench_local.results.schema import Result

HERE = Path(__file__).parent
HOSTILE = [
    "<script>alert(1)</script>",
    "]]>",
    "%0A::error::",
    "a|b",
    "\n::error title=x::y\n",
    "##[error]z",
    "**b** _i_ `c` [l](http://x) ![i](y) www.z.com",
    '"><img src=x onerror=1>',
    "&amp;&#60;",
    "\x1b[31mred\x07",
    "\u202ereversed",
    "\x00\x85\u2028",
    "@someone :smile: #1",
    "[red]rich[/red]",
    "\r\n| x | y |\n---",
    "a,b=c:d",
    "日本 é ✓",
]


@pytest.fixture
def decision(make_result, tmp_path, monkeypatch):
    """A pass, a fail, an undecided limit, a drop with flips, and a result that is missing."""
    monkeypatch.chdir(tmp_path)
    classes = ["stop", "yield"]
    before = make_result(Path("before.json"), 500, classes=classes)
    now = make_result(
        Path("runs/now.json"),
        500,
        flipped=[*range(80), 700],
        classes=classes,
        changes={"verdict": {"status": "doubtful", "reasons": ["noisy"]}},
    )
    limits = Limits(
        ThreatSelector("linf", 0.1, "0.1"),
        min_clean=0.8,
        min_robust=0.42,
        max_drop=0.02,
        baselines=(before,),
        min_class_robust=ClassFloors(None, {"stop": 0.5}),
    )
    return decide(
        Gate((limits, Limits(ThreatSelector("l2", 0.5, "0.5"), min_robust=0.5)), source=Path("ci/gate.yaml")), [now]
    )


@pytest.fixture(params=HOSTILE, ids=lambda name: hashlib.sha256(name.encode()).hexdigest()[:6])
def hostile(make_result, tmp_path, request, monkeypatch):
    """The same name as a model's, a class's, the data's and a reason of the verdict."""
    name = request.param
    for module in (baseline, decide_module, pairing):  # read_result itself refuses some of these names
        monkeypatch.setattr(module, "read_result", lambda path: Result.model_validate_json(path.read_text()))
    changes = {"model.name": name, "data.name": name}
    before = make_result(tmp_path / "before.json", 50, n=100, clean=90, classes=[name], changes=changes)
    now = make_result(
        tmp_path / "now.json",
        50,
        n=100,
        clean=90,
        flipped=range(20),
        classes=[name],
        changes={**changes, "verdict": {"status": "doubtful", "reasons": [name]}},
    )
    limits = Limits(
        min_robust=0.6, max_drop=0.02, baselines=(before,), min_class_robust=ClassFloors(0.4, {f"{name}?": 0.5})
    )
    return name, decide(Gate((limits,)), [now])


def validated_junit(text):
    xmlschema.XMLSchema(HERE / "junit.xsd").validate(text)
    return ElementTree.fromstring(text)


def validated_sarif(text):
    log = json.loads(text)
    schema = json.loads((HERE / "sarif-2.1.0.schema.json").read_text())
    jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker()).validate(log)
    (run,) = log["runs"]
    ids = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(set(ids)) == len(ids)
    assert all(ids[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    return run


def test_junit(decision):
    root = validated_junit(junit(decision))
    linf, l2 = root
    assert linf.get("name") == "L∞ 0.1"
    assert l2.get("name") == "L2 0.5"
    assert (linf.get("tests"), linf.get("failures"), linf.get("errors")) == ("4", "3", "0")
    assert (l2.get("tests"), l2.get("failures"), l2.get("errors")) == ("1", "0", "1")
    cases = {case.get("name"): case for case in linf.iter("testcase")}
    assert list(cases) == [
        "robust accuracy ≥ 42.0%",
        "clean accuracy ≥ 80.0%",
        "robust accuracy of class stop (0) ≥ 50.0%",
        "drop in robust accuracy ≤ 2.0%",
    ]
    assert cases["robust accuracy ≥ 42.0%"].find("failure").get("type") == "undecided"
    failure = cases["drop in robust accuracy ≤ 2.0%"].find("failure")
    assert failure.get("type") == "fail"
    assert failure.text.startswith("FAIL drop in robust accuracy ≤ 2.0%: ")
    assert len(cases["clean accuracy ≥ 80.0%"]) == 0
    assert l2.find("testcase/error").get("type") == "not-comparable"
    assert linf.find("properties/property[@name='model']").get("value") == "m"
    assert "WARN noisy" in linf.find("system-err").text
    assert "PASS clean" in linf.find("system-out").text


def test_sarif(decision):
    run = validated_sarif(sarif(decision))
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [
        "min_robust/linf-0.1",
        "min_clean/linf-0.1",
        "min_class_robust:0/linf-0.1",
        "max_drop/linf-0.1",
        "doubts/linf-0.1",
        "threat_model/l2-0.5",
    ]
    assert [(result["ruleId"].split("/")[0], result["level"]) for result in run["results"]] == [
        ("min_robust", "warning"),
        ("min_class_robust:0", "error"),
        ("max_drop", "error"),
        ("doubts", "note"),
        ("threat_model", "error"),
    ]
    assert run["results"][3]["message"]["text"] == "m on d, L∞ 0.1 (runs/now.json): WARN noisy"
    location = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert location == {"uri": "ci/gate.yaml"}
    assert run["invocations"] == [{"executionSuccessful": True, "exitCode": 5}]


def test_fingerprints_are_of_limit_threat_model_and_model(make_result, tmp_path):
    def prints(robust, **changes):
        path = make_result(tmp_path / f"{robust}.json", robust, changes=changes)
        run = validated_sarif(sarif(decide(Gate((Limits(min_robust=0.9, min_clean=0.95),)), [path])))
        return [result["partialFingerprints"]["robustGate/v1"] for result in run["results"]]

    one, other = prints(100), prints(200)
    assert one == other, "what was measured is not in it"
    assert len(set(one)) == 2
    assert not set(one) & set(prints(100, **{"model.name": "another"}))
    assert not set(one) & set(prints(100, **{"threat_model.norm": "l2"}))


def test_locations_outside_the_folder_and_odd_names(make_result, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for path, uri in ((tmp_path / "out side.json", "file:///"), (Path("a b%#?.json"), "a%20b%25%23%3F.json")):
        run = validated_sarif(sarif(decide(Gate((Limits(min_robust=0.9),)), [make_result(path, 100)])))
        uri_of_result = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert uri_of_result.startswith(uri)
        assert " " not in uri_of_result


def test_github_workflow_commands(decision):
    lines = workflow_commands(decision).splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        "::error",
        "::error",
        "::error",
        "::warning",
        "::warning",
        "::error",
    ]
    assert lines[-2] == "::warning file=ci/gate.yaml,title=robust gate%3A warning::L∞ 0.1: noisy"
    assert lines[0].startswith("::error file=ci/gate.yaml,title=robust gate%3A not comparable::L2 0.5: NOT COMPARABLE")
    assert "%25" in lines[1]
    assert "%" not in lines[1].replace("%25", "").replace("%3A", "")
    assert lines[-1] == "::error title=robust gate::not comparable: 1 of 5 limits passed"


def test_a_pass_is_a_notice(make_result, tmp_path):
    passed = decide(Gate((Limits(min_robust=0.4),)), [make_result(tmp_path / "r.json", 500)])
    assert workflow_commands(passed) == "::notice title=robust gate::pass: 1 of 1 limits passed\n"


def test_the_step_summary(decision, monkeypatch, tmp_path):
    target = tmp_path / "summary.md"
    target.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(target))
    write_step_summary(decision)
    text = target.read_text()
    assert text.startswith("before\n## ⛔ robust gate: not comparable\n")
    assert "| ❔ | robust accuracy ≥ 42.0% | 42.1 % |" in text
    assert "one-sided bounds (95% each)" in text
    assert "80 samples were lost and 1 gained" in text
    assert text.count("| lost |") == 9
    assert "| 700 | stop (0) | gained | -1 | 1.7 |" in text
    assert "Warning: noisy" in text
    assert "Result file: runs/now.json" in text
    assert {line.count("|") for line in text.splitlines() if "≥" in line or "≤" in line} == {6}


def test_no_summary_without_its_variable_and_a_sentence_where_it_cannot_be_written(decision, monkeypatch, tmp_path):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    write_step_summary(decision)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with pytest.raises(UserError, match="GITHUB_STEP_SUMMARY"):
        write_step_summary(decision)


def test_hostile_names_stay_text_in_junit(hostile):
    name, decision = hostile
    root = validated_junit(junit(decision))
    assert [suite.tag for suite in root] == ["testsuite"]
    assert root.find("testsuite/properties/property[@name='model']").get("value") == plain(name)
    assert {element.tag for element in root.iter()} <= {
        "testsuites",
        "testsuite",
        "properties",
        "property",
        "testcase",
        "failure",
        "error",
        "system-out",
        "system-err",
    }


def test_hostile_names_stay_text_in_sarif_and_json(hostile):
    name, decision = hostile
    run = validated_sarif(sarif(decision))
    assert plain(name) in run["results"][0]["message"]["text"]
    assert json.loads(json.dumps(decision.to_dict()))["results"][0]["model"] == name


def test_hostile_names_start_no_workflow_command(hostile):
    _, decision = hostile
    text = workflow_commands(decision)
    lines = text.split("\n")
    assert lines.pop() == ""
    assert len(lines) == len([c for c in decision.checks if c.outcome]) + 2
    for line in lines:
        assert re.fullmatch(r"::(error|warning|notice) [^:]*::.*", line), line
        properties = re.match(r"::\w+ (.*?)::", line)[1]
        assert set(re.findall(r"(\w+)=", properties)) <= {"file", "title"}
        assert "##[" not in line
        assert "\x1b" not in line
        assert "\r" not in line
    assert len(text.splitlines()) == len(lines), "nothing in it is taken for the end of a line"


def test_hostile_names_stay_text_in_markdown(hostile):
    _, decision = hostile
    text = summary(decision)
    for line in text.splitlines():
        assert not re.search(r"<|>|`|\*|\[|!\[|\\|@|(?<!&)#(?!#* )", re.sub(r"&#\d+;", "", line)), line
        if line.startswith("| ") and ("≥" in line or "≤" in line):
            assert line.count("|") == 6, line
    assert "http:" not in text
    assert "www." not in text
    assert "\x1b" not in text
    assert len(text.splitlines()) == len(text.split("\n")) - 1


def test_markdown_is_read_back_as_the_text():
    import html

    for name in HOSTILE:
        assert html.unescape(markdown(name)) == plain(name)


def test_hostile_names_stay_text_on_the_terminal(hostile, capsys):
    _, decision = hostile
    screen = Console(stderr=True, highlight=False, width=100, force_terminal=False)
    show_decision(screen, decision)
    output = capsys.readouterr().err
    lines = output.splitlines()
    assert len(lines) == output.count("\n") == len(decision.checks) + len(decision.results[0].warnings) + 2
    assert all(re.match(r"(PASS|FAIL|UNDECIDED|NOT COMPARABLE|WARN|gate:) ", line) for line in lines[1:])
    assert "##[" not in output
    assert "\x1b" not in output


def test_eps_is_a_number_and_nothing_else(make_result, tmp_path):
    for text in ("0.1\n::error::", "0.1 [red]"):
        with pytest.raises(UserError, match="not a valid result file: threat_model"):
            read_result(make_result(tmp_path / "r.json", 500, changes={"threat_model.eps_text": text}))


def test_ids_of_alerts_do_not_depend_on_sentences(make_result, tmp_path):
    changes = {"threat_model.goal": {"source": None, "target": 5}, "threat_model.reject": 10}
    path = make_result(tmp_path / "r.json", 100, changes=changes)
    (result,) = validated_sarif(sarif(decide(Gate((Limits(min_robust=0.9),)), [path])))["results"]
    # As the first version wrote them: an alert that is open stays the same alert.
    assert result["ruleId"] == "min_robust/linf-0.1, any → 5, class 10 rejects"
    identity = "L∞ 0.1, any → 5, class 10 rejects\0m\0min_robust"
    assert result["partialFingerprints"]["robustGate/v1"] == hashlib.sha256(identity.encode()).hexdigest()
    assert result["properties"]["slug"] == "min-robust"
