"""A gate's decision for machines: JUnit XML and SARIF 2.1.0.

JUnit knows passed, failed and error. What is undecided is a failure of type "undecided", because a skipped test is one
that nobody looks at; what cannot be compared is an error.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree as Xml

from robustbench_local import __version__
from robustbench_local.gates.decide import Decision, ResultDecision
from robustbench_local.gates.limits import Check, Outcome
from robustbench_local.io.escape import plain
from robustbench_local.results.pairing import NORMS
from robustbench_local.results.protocol_order import protocol_name

LEVELS = {Outcome.FAIL: "error", Outcome.UNDECIDED: "warning", Outcome.NOT_COMPARABLE: "error"}

DOUBTS = "doubts"


def junit(decision: Decision) -> str:
    """One test suite for each threat model, one test case for each limit."""
    root = Xml.Element("testsuites")
    moment = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    for number, judged in enumerate(decision.judged):
        outcomes = [check.outcome for check in judged.checks]
        suite = Xml.SubElement(
            root,
            "testsuite",
            {
                "name": plain(judged.threat),
                "package": "robust.gate",
                "id": str(number),
                "timestamp": moment,
                "hostname": "localhost",
                "tests": str(len(outcomes)),
                "time": "0",
                "failures": str(outcomes.count(Outcome.FAIL) + outcomes.count(Outcome.UNDECIDED)),
                "errors": str(outcomes.count(Outcome.NOT_COMPARABLE)),
            },
        )
        properties = Xml.SubElement(suite, "properties")
        for name, value in _properties(judged).items():
            Xml.SubElement(properties, "property", {"name": name, "value": plain(value)})
        for check in judged.checks:
            case = Xml.SubElement(
                suite,
                "testcase",
                {"classname": plain(f"robust.gate.{judged.threat}"), "name": plain(check.limit), "time": "0"},
            )
            if check.outcome is not Outcome.PASS:
                found = Xml.SubElement(
                    case,
                    "error" if check.outcome is Outcome.NOT_COMPARABLE else "failure",
                    {"type": check.outcome.word.replace(" ", "-"), "message": plain(check.sentence)},
                )
                found.text = plain(_line(check))
        Xml.SubElement(suite, "system-out").text = "\n".join(plain(_line(check)) for check in judged.checks)
        Xml.SubElement(suite, "system-err").text = "\n".join(f"doubtful: {plain(doubt)}" for doubt in judged.doubts)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _line(check: Check) -> str:
    return f"{check.outcome.word}: {check.limit}: {check.sentence}"


def _properties(judged: ResultDecision) -> dict[str, str]:
    result = judged.result
    if result is None:
        return {}
    return {
        "result": str(judged.path),
        "model": result.model.name,
        "data": f"{result.data.name} ({result.data.split})",
        "protocol": protocol_name(result.protocol),
        "samples": str(result.data.n),
    }


def sarif(decision: Decision) -> str:
    """One rule for each limit; a result for each that is not passed, so that an alert closes when its limit passes; a
    note for the doubts of a result, which are no fault.
    """
    rules, results = [], []
    for judged in decision.judged:
        for check in [*judged.checks, *_doubts(judged)]:
            doubt = check.rule == DOUBTS
            rules.append(
                {
                    "id": rule_id(judged, check),
                    "shortDescription": {"text": plain(check.limit)},
                    "fullDescription": {"text": plain(f"{check.limit}, for {judged.heading}")},
                    "defaultConfiguration": {"level": "note" if doubt else "error"},
                }
            )
            if check.outcome is not Outcome.PASS:
                results.append(
                    {
                        "ruleId": rule_id(judged, check),
                        "ruleIndex": len(rules) - 1,
                        "level": "note" if doubt else LEVELS[check.outcome],
                        "message": {"text": plain(f"{judged.heading}: {check.sentence if doubt else _line(check)}")},
                        "locations": [
                            {
                                "physicalLocation": {
                                    "artifactLocation": {"uri": _uri(location(decision, judged))},
                                    "region": {"startLine": 1},
                                }
                            }
                        ],
                        "partialFingerprints": {"robustGate/v1": fingerprint(judged, check)},
                        "properties": {"outcome": "doubtful" if doubt else check.outcome.word},
                    }
                )
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "robust gate", "version": __version__, "rules": rules}},
                "invocations": [{"executionSuccessful": True, "exitCode": int(decision.outcome)}],
                "columnKind": "utf16CodeUnits",
                "results": results,
            }
        ],
    }
    return json.dumps(log, indent=2) + "\n"


def _doubts(judged: ResultDecision) -> list[Check]:
    """The doubts of a result in the form of a limit that is not passed, for want of another form that CI shows."""
    sentence = f"doubtful: {'; '.join(judged.doubts)}"
    return [Check(DOUBTS, "no doubts", Outcome.UNDECIDED, sentence)] if judged.doubts else []


def rule_id(judged: ResultDecision, check: Check) -> str:
    """`min_robust/linf-8/255`: the limit's name in a gate file and the threat model."""
    threat = judged.threat
    for norm, name in NORMS.items():
        threat = threat.replace(f"{name} ", f"{norm}-", 1)
    return plain(f"{check.rule}/{threat}")


def location(decision: Decision, judged: ResultDecision) -> Path:
    """The file to look into: the gate file where there is one, else the result, else the baseline without one."""
    return decision.source or judged.path or judged.baseline or Path("gate")


def fingerprint(judged: ResultDecision, check: Check) -> str:
    """The same for the same limit of the same model under the same threat model, whatever was measured."""
    model = "" if judged.result is None else judged.result.model.name
    return hashlib.sha256("\0".join((judged.threat, model, check.rule)).encode()).hexdigest()


def _uri(path: Path) -> str:
    """Relative to the folder that the gate runs in, where it lies in it: then it is the repository's."""
    here = Path.cwd()
    full = (here / path).resolve()
    return quote(full.relative_to(here).as_posix()) if full.is_relative_to(here) else full.as_uri()
