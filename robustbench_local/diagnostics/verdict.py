"""From findings to a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from robustbench_local.results.checks import CONFIRMED, FINITE_LOGITS
from robustbench_local.results.schema import AttackReport, Diagnostic, Verdict


def finding_of(findings: Sequence[Diagnostic], slug: str) -> Diagnostic:
    """Return the finding of one check."""
    return next(finding for finding in findings if finding.slug == slug)


def after_attacks(reports: Sequence[AttackReport], not_numbers: int) -> list[Diagnostic]:
    """Return what the search itself shows about its results. not_numbers: points at which a logit was NaN."""
    unconfirmed = sum(report.unconfirmed for report in reports)
    return [
        Diagnostic(
            slug=CONFIRMED,
            status="warn" if unconfirmed else "pass",
            value=float(unconfirmed),
            threshold=0.0,
            advice=f"the model answered differently when {unconfirmed} successes were verified (is it random, or does "
            "it depend on the batch?): they count as robust, so the robust accuracy may be an overestimate"
            if unconfirmed
            else "",
        ),
        Diagnostic(
            slug=FINITE_LOGITS,
            status="fail" if not_numbers else "pass",
            value=float(not_numbers),
            threshold=0.0,
            advice=f"the model returned NaN at {not_numbers} points, which count as fooled in an untargeted attack: "
            "check its forward for overflow"
            if not_numbers
            else "",
        ),
    ]


def verdict_of(findings: Sequence[Diagnostic], *, assessed: bool = True) -> Verdict:
    """Return "not-trusted" where a check failed, "doubtful" where one warned, else "trusted".

    assessed: whether the checks after the attacks were run; without them the verdict is "not-assessed" at best.
    """
    problems = [finding for finding in findings if finding.status in ("warn", "fail")]
    status: Literal["trusted", "doubtful", "not-trusted", "not-assessed"] = "trusted" if assessed else "not-assessed"
    if problems:
        status = "not-trusted" if any(finding.status == "fail" for finding in problems) else "doubtful"
    return Verdict(status=status, reasons=[f"{finding.sentence}: {finding.advice}" for finding in problems])
