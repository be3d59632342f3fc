"""A gate's decision for machines: JUnit XML and SARIF 2.1.0.

JUnit knows passed, failed and error. What is undecided is a failure of type "undecided", because a skipped test is one
that nobody looks at; what cannot be compared is an error.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from urllib.parse import quote

from robustbench_local import __version__
from robustbench_local.gates.decision import Decision, ResultDecision, location, status_line
from robustbench_local.gates.limits import Check, Outcome
from robustbench_local.io.escape import plain
from robustbench_local.results.pairing import NORMS

LEVELS = {Outcome.FAIL: "error", Outcome.UNDECIDED: "warning", Outcome.NOT_COMPARABLE: "error"}

DOUBTS = "doubts"


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
                        "message": {
                            "text": plain(f"{judged.heading}: {check.sentence if doubt else status_line(check)}")
                        },
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


def fingerprint(judged: ResultDecision, check: Check) -> str:
    """The same for the same limit of the same model under the same threat model, whatever was measured."""
    model = "" if judged.result is None else judged.result.model.name
    return hashlib.sha256("\0".join((judged.threat, model, check.rule)).encode()).hexdigest()


def _uri(path: Path) -> str:
    """Relative to the folder that the gate runs in, where it lies in it: then it is the repository's."""
    here = Path.cwd()
    full = (here / path).resolve()
    return quote(full.relative_to(here).as_posix()) if full.is_relative_to(here) else full.as_uri()
