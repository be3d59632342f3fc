"""A gate's decision as JUnit XML.

JUnit has passed tests, failures, errors and skipped tests. An undecided limit is a failure of type "undecided",
because skipped tests are easily overlooked; a result that is not comparable is an error.
"""

from __future__ import annotations

import datetime
from xml.etree import ElementTree as Xml

from robustbench_local.gates.decision import Decision, ResultDecision, status_line
from robustbench_local.gates.limits import Check, Outcome
from robustbench_local.io.escape import plain
from robustbench_local.results.protocol_order import protocol_name


def junit(decision: Decision) -> str:
    """One test suite for each threat model, one test case for each limit."""
    root = Xml.Element("testsuites")
    timestamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    for number, each in enumerate(decision.results):
        outcomes = [check.outcome for check in each.checks]
        suite = Xml.SubElement(
            root,
            "testsuite",
            {
                "name": plain(each.threat),
                "package": "robust.gate",
                "id": str(number),
                "timestamp": timestamp,
                "hostname": "localhost",
                "tests": str(len(outcomes)),
                "time": "0",
                "failures": str(outcomes.count(Outcome.FAIL) + outcomes.count(Outcome.UNDECIDED)),
                "errors": str(outcomes.count(Outcome.NOT_COMPARABLE)),
            },
        )
        properties = Xml.SubElement(suite, "properties")
        for name, value in _properties(each).items():
            Xml.SubElement(properties, "property", {"name": name, "value": plain(value)})
        for check in each.checks:
            _add_case(suite, each, check)
        Xml.SubElement(suite, "system-out").text = "\n".join(plain(status_line(check)) for check in each.checks)
        Xml.SubElement(suite, "system-err").text = "\n".join(
            f"WARN {plain(warning.sentence)}" for warning in each.warnings
        )
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _add_case(suite: Xml.Element, each: ResultDecision, check: Check) -> None:
    names = {"classname": plain(f"robust.gate.{each.threat}"), "name": plain(check.limit), "time": "0"}
    case = Xml.SubElement(suite, "testcase", names)
    if check.outcome is Outcome.PASS:
        return
    kind = "error" if check.outcome is Outcome.NOT_COMPARABLE else "failure"
    attributes = {"type": check.outcome.word.replace(" ", "-"), "message": plain(check.sentence)}
    Xml.SubElement(case, kind, attributes).text = plain(status_line(check))


def _properties(each: ResultDecision) -> dict[str, str]:
    result = each.result
    if result is None:
        return {}
    return {
        "result": str(each.path),
        "model": result.model.name,
        "data": f"{result.data.name} ({result.data.split})",
        "protocol": protocol_name(result.protocol),
        "samples": str(result.data.n),
    }
