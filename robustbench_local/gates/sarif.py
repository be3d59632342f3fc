"""A gate's decision as SARIF 2.1.0."""

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
WARNINGS = "doubts"
"""The rule of a result's warnings. Its name is older than the word and stays, so that alerts keep their rule."""


def sarif(decision: Decision) -> str:
    """One rule for each limit, and a result for each limit that did not pass.

    An alert closes when its limit passes. The warnings of a result are a note of their own.
    """
    rules, results = [], []
    for each in decision.results:
        for check in [*each.checks, *_warnings(each)]:
            note = check.rule == WARNINGS
            rules.append(
                {
                    "id": plain(each.rule_id(check.rule)),
                    "shortDescription": {"text": plain(check.limit)},
                    "fullDescription": {"text": plain(f"{check.limit}, for {each.heading}")},
                    "defaultConfiguration": {"level": "note" if note else "error"},
                }
            )
            if check.outcome is not Outcome.PASS:
                message = f"WARN {check.sentence}" if note else status_line(check)
                results.append(
                    {
                        "ruleId": plain(each.rule_id(check.rule)),
                        "ruleIndex": len(rules) - 1,
                        "level": "note" if note else LEVELS[check.outcome],
                        "message": {"text": plain(f"{each.heading}: {message}")},
                        "locations": [_location(location(decision, each))],
                        "partialFingerprints": {"robustGate/v1": fingerprint(each, check)},
                        "properties": {"outcome": "doubtful" if note else check.outcome.word, "slug": check.slug},
                    }
                )
    run = {
        "tool": {"driver": {"name": "robust gate", "version": __version__, "rules": rules}},
        "invocations": [{"executionSuccessful": True, "exitCode": int(decision.outcome)}],
        "columnKind": "utf16CodeUnits",
        "results": results,
    }
    log = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2) + "\n"


def _warnings(each: ResultDecision) -> list[Check]:
    """The warnings of a result as a limit that did not pass: SARIF has no other form that CI shows."""
    if not each.warnings:
        return []
    sentence = "; ".join(warning.sentence for warning in each.warnings)
    return [Check(WARNINGS, "no warnings", Outcome.UNDECIDED, sentence, each.warnings[0].slug)]


def fingerprint(each: ResultDecision, check: Check) -> str:
    """A hash of the limit, the threat model and the model's name; measured values do not change it."""
    norm, _, rest = each.threat_id.partition("-")
    model = "" if each.result is None else each.result.model.name
    return hashlib.sha256("\0".join((f"{NORMS.get(norm, norm)} {rest}", model, check.rule)).encode()).hexdigest()


def _location(path: Path) -> dict[str, object]:
    return {"physicalLocation": {"artifactLocation": {"uri": _uri(path)}, "region": {"startLine": 1}}}


def _uri(path: Path) -> str:
    """The path relative to the working directory, which is the repository's, where it is inside; else absolute."""
    here = Path.cwd()
    full = (here / path).resolve()
    return quote(full.relative_to(here).as_posix()) if full.is_relative_to(here) else full.as_uri()
