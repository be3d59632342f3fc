"""A gate's decision for GitHub: annotations of the run, and its step summary in Markdown."""

from __future__ import annotations

import os
import re
from pathlib import Path

from robustbench_local.errors import UserError
from robustbench_local.gates.decision import Decision, ResultDecision, location, status_line
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
"""How many changed samples a summary lists; the JSON has all."""
LARGEST = 1_000_000
"""Most bytes of a step summary; GitHub drops one of more than 1 MiB."""


def workflow_commands(decision: Decision) -> str:
    """Workflow commands: one for each limit that did not pass, the worst first, one for each warning, and a summary."""
    lines = []
    for outcome in (Outcome.NOT_COMPARABLE, Outcome.FAIL, Outcome.UNDECIDED):
        for each in decision.results:
            file, title = str(location(decision, each)), f"robust gate: {outcome.word}"
            lines += [
                _command(outcome, title, f"{each.threat}: {status_line(check)}", file)
                for check in each.checks
                if check.outcome is outcome
            ]
    for each in decision.results:
        file = str(location(decision, each))
        lines += [
            _command(Outcome.UNDECIDED, "robust gate: warning", f"{each.threat}: {warning.sentence}", file)
            for warning in each.warnings
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
    settings = ",".join(f"{name}={_escaped(value, more=':,')}" for name, value in properties.items())
    return f"::{COMMANDS[outcome]} {settings}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    """Text in which the runner finds no syntax: `%25` for `%`."""
    return "".join(f"%{ord(letter):02X}" if letter in "%\r\n" + more else letter for letter in plain(text))


def write_step_summary(decision: Decision) -> None:
    """Append the summary to the file that GITHUB_STEP_SUMMARY names; without that variable nothing is written.

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
        raise UserError(
            f"cannot write {name}, which GITHUB_STEP_SUMMARY names: {error.strerror}", slug="cannot-write-summary"
        ) from None


def summary(decision: Decision) -> str:
    """The step summary in Markdown: the outcome, a table of limits for each result, and the samples that changed."""
    sure = confidence(decision.alpha)
    lines = [f"## {SIGNS[decision.outcome]} robust gate: {decision.outcome.word}", ""]
    for each in decision.results:
        lines += [f"### {markdown(each.heading)}", ""]
        lines += [f"| | limit | measured | one-sided bounds ({sure} each) | decision |", "|---|---|---|---|---|"]
        lines += [_row(check) for check in each.checks]
        lines += ["", *(f"Warning: {markdown(warning.sentence)}\n" for warning in each.warnings)]
        if each.flips:
            lines += _flip_table(each)
        if each.result is not None:
            lines += [f"Result file: {markdown(str(each.path))}", ""]
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


def _flip_table(each: ResultDecision) -> list[str]:
    lost = sum(flip.lost for flip in each.flips)
    lines = [
        f"{lost} samples were lost and {len(each.flips) - lost} gained since the baseline. The "
        f"{min(SHOWN, len(each.flips))} with the largest change of margin:",
        "",
        "| sample | class | | margin before | margin now | attack that succeeded |",
        "|---|---|---|---|---|---|",
    ]
    return [*lines, *(_flip_row(flip) for flip in each.flips[:SHOWN]), ""]


def _flip_row(flip: Flip) -> str:
    cells = (
        str(flip.index),
        markdown(flip.name),
        "lost" if flip.lost else "gained",
        f"{flip.margin_before:.3g}",
        f"{flip.margin_now:.3g}",
        markdown(flip.broken_by or "none: the clean image is misclassified"),
    )
    return f"| {' | '.join(cells)} |"


def markdown(text: str) -> str:
    """Text in which Markdown and HTML find no syntax: special characters become numeric entities."""
    escaped = re.sub(r"[^\w\s.,%+;=?/()≥≤→∞–-]", lambda match: f"&#{ord(match[0])};", plain(text))
    # Underscores mean emphasis, and a bare address becomes a link.
    return re.sub(r"_|(?<=www)\.", lambda match: f"&#{ord(match[0])};", escaped)
