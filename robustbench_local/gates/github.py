"""A gate's decision for GitHub: annotations of the run, and its step summary in Markdown."""

from __future__ import annotations

import os
import re
from pathlib import Path

from robustbench_local.errors import UserError
from robustbench_local.gates.decision import Decision, ResultDecision, location
from robustbench_local.gates.limits import Check, Outcome, confidence
from robustbench_local.io.escape import plain
from robustbench_local.results.pairing import Flip

COMMANDS = {
    Outcome.PASS: "notice",
    Outcome.FAIL: "error",
    Outcome.UNDECIDED: "warning",
    Outcome.NOT_COMPARABLE: "error",
}
SIGNS = {Outcome.PASS: "✅", Outcome.FAIL: "❌", Outcome.UNDECIDED: "❔", Outcome.NOT_COMPARABLE: "⛔"}
SHOWN = 10
"""Samples that changed sides, in a summary; `robust compare` lists all."""
LARGEST = 1_000_000
"""Bytes of a step summary; GitHub drops one that is larger than 1 MiB."""


def workflow_commands(decision: Decision) -> str:
    """Workflow commands: one for each limit that is not passed, the gravest first, one for each doubt, and one that
    sums up.
    """
    lines = []
    for outcome in (Outcome.NOT_COMPARABLE, Outcome.FAIL, Outcome.UNDECIDED):
        for judged in decision.judged:
            lines += [
                _command(
                    outcome,
                    f"robust gate: {outcome.word}",
                    f"{judged.threat}: {check.sentence}",
                    str(location(decision, judged)),
                )
                for check in judged.checks
                if check.outcome is outcome
            ]
    for judged in decision.judged:
        lines += [
            _command(
                Outcome.UNDECIDED, "robust gate: doubtful", f"{judged.threat}: {doubt}", str(location(decision, judged))
            )
            for doubt in judged.doubts
        ]
    passed = sum(check.outcome is Outcome.PASS for check in decision.checks)
    lines.append(
        _command(
            decision.outcome,
            "robust gate",
            f"{decision.outcome.word}: {passed} of {len(decision.checks)} limits passed",
        )
    )
    return "\n".join(lines) + "\n"


def _command(outcome: Outcome, title: str, message: str, file: str | None = None) -> str:
    properties = {"title": title} if file is None else {"file": file, "title": title}
    told = ",".join(f"{name}={_escaped(value, more=':,')}" for name, value in properties.items())
    return f"::{COMMANDS[outcome]} {told}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    """What a workflow command would read otherwise, as the runner writes it: `%25` for `%`."""
    return "".join(f"%{ord(letter):02X}" if letter in "%\r\n" + more else letter for letter in plain(text))


def write_step_summary(decision: Decision) -> None:
    """Append the summary to the file that GitHub names in GITHUB_STEP_SUMMARY; nowhere else is anything written.

    Raises UserError where it cannot be written.
    """
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return
    text = summary(decision).encode()
    if len(text) > LARGEST:
        text = text[:LARGEST].rpartition(b"\n")[0] + b"\n\n(cut: too long for a step summary)\n"
    try:
        with Path(name).open("ab") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {name}, which GITHUB_STEP_SUMMARY names: {error.strerror}") from None


def summary(decision: Decision) -> str:
    """The verdict, a table of limits with their intervals for each result, and the samples that changed sides."""
    sure = confidence(decision.alpha)
    lines = [f"## {SIGNS[decision.outcome]} robust gate: {decision.outcome.word}", ""]
    for judged in decision.judged:
        lines += [f"### {markdown(judged.heading)}", ""]
        lines += [f"| | limit | measured | one-sided bounds ({sure} each) | decision |", "|---|---|---|---|---|"]
        lines += [_row(check) for check in judged.checks]
        lines += ["", *(f"Doubtful: {markdown(doubt)}\n" for doubt in judged.doubts)]
        if judged.flips:
            lines += _flip_table(judged)
        if judged.result is not None:
            lines += [f"Result file: {markdown(str(judged.path))}", ""]
    lines += [f"Baseline updated: {markdown(str(path))}\n" for path in decision.updated]
    return "\n".join(lines) + "\n"


def _row(check: Check) -> str:
    bounds = "" if check.low is None or check.high is None else f"{100 * check.low:.1f} % to {100 * check.high:.1f} %"
    value = "" if check.value is None else f"{100 * check.value:.1f} %"
    cells = (
        SIGNS[check.outcome],
        markdown(check.limit),
        value,
        bounds,
        f"{check.outcome.word}: {markdown(check.sentence)}",
    )
    return f"| {' | '.join(cells)} |"


def _flip_table(judged: ResultDecision) -> list[str]:
    lost = sum(flip.lost for flip in judged.flips)
    lines = [
        f"{lost} samples were lost and {len(judged.flips) - lost} gained since the baseline; of these the "
        f"{min(SHOWN, len(judged.flips))} whose smallest margin moved most:",
        "",
        "| sample | class | | margin before | margin now | fell for |",
        "|---|---|---|---|---|---|",
    ]
    return [*lines, *(_flip_row(flip) for flip in judged.flips[:SHOWN]), ""]


def _flip_row(flip: Flip) -> str:
    cells = (
        str(flip.index),
        markdown(flip.name),
        "lost" if flip.lost else "gained",
        f"{flip.margin_before:.3g}",
        f"{flip.margin_now:.3g}",
        markdown(flip.broken_by or "nothing: wrong on the clean image"),
    )
    return f"| {' | '.join(cells)} |"


def markdown(text: str) -> str:
    """Text that Markdown and HTML read as text: whatever either gives a meaning to is written as its number."""
    escaped = re.sub(r"[^\w\s.,%+;=?/()≥≤→∞–-]", lambda found: f"&#{ord(found[0])};", plain(text))
    # What is left are emphasis by underscores and bare addresses.
    return re.sub(r"_|(?<=www)\.", lambda found: f"&#{ord(found[0])};", escaped)
