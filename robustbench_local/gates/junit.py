"""A gate's decision as JUnit XML."""

from __future__ import annotations

import datetime
from xml.etree import ElementTree as Xml

from robustbench_local.gates.decision import Decision, ResultDecision, status_line
from robustbench_local.gates.limits import Outcome
from robustbench_local.io.escape import plain
from robustbench_local.results.protocol_order import protocol_name


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
                found.text = plain(status_line(check))
        Xml.SubElement(suite, "system-out").text = "\n".join(plain(status_line(check)) for check in judged.checks)
        Xml.SubElement(suite, "system-err").text = "\n".join(f"doubtful: {plain(doubt)}" for doubt in judged.doubts)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


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
