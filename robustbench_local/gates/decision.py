"""The outcome of a gate: what was decided for each result and each limit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from robustbench_local.gates.limits import Check, Outcome
from robustbench_local.results.pairing import Flip
from robustbench_local.results.reason import Reason
from robustbench_local.results.schema import Result

SCHEMA = "robustbench-local/gate/1"


@dataclass(frozen=True)
class ResultDecision:
    """The outcome for one result.

    threat, threat_id: the threat model for people and for programs. path, result: None where the result is missing.
    warnings: they decide nothing, but every format shows them. flips: samples that changed since the baseline, the
    largest change of margin first. baseline: the file that the result is compared with; None where there is none.
    missing_baselines: files that a drop needs and that do not exist.
    """

    threat: str
    threat_id: str
    path: Path | None
    result: Result | None
    checks: list[Check]
    warnings: list[Reason] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)
    baseline: Path | None = None
    missing_baselines: list[Path] = field(default_factory=list)

    @property
    def heading(self) -> str:
        """Model, data, threat model and file, such as `digits-cnn on digits, L∞ 0.1 (runs/x.json)`."""
        if self.result is None:
            return self.threat
        return f"{self.result.model.name} on {self.result.data.name}, {self.threat} ({self.path})"

    def rule_id(self, rule: str) -> str:
        """`min_robust/linf-8/255`: a rule of this result's threat model, for programs."""
        return f"{rule}/{self.threat_id}"

    def to_dict(self) -> dict[str, object]:
        """One of the `results` in the JSON output of `robust gate`."""
        return {
            "threat_model": self.threat,
            "result": None if self.path is None else str(self.path),
            "model": None if self.result is None else self.result.model.name,
            "baseline": None if self.baseline is None else str(self.baseline),
            "missing_baselines": [str(path) for path in self.missing_baselines],
            "flipped": [asdict(flip) for flip in self.flips],
        }


@dataclass(frozen=True)
class Decision:
    """The outcome for all results. updated: baselines that were written on request."""

    results: list[ResultDecision]
    alpha: float
    source: Path | None = None
    updated: list[Path] = field(default_factory=list)

    @property
    def checks(self) -> list[Check]:
        """The checks of all results."""
        return [check for each in self.results for check in each.checks]

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of all checks: not comparable, then fail, then undecided, then pass."""
        for outcome in (Outcome.NOT_COMPARABLE, Outcome.FAIL, Outcome.UNDECIDED):
            if any(check.outcome is outcome for check in self.checks):
                return outcome
        return Outcome.PASS

    def to_dict(self) -> dict[str, object]:
        """The JSON output of `robust gate`; every rate is a fraction."""
        outcome = self.outcome
        return {
            "schema": SCHEMA,
            "outcome": outcome.name.lower(),
            "exit_code": int(outcome),
            "alpha": self.alpha,
            "gate": None if self.source is None else str(self.source),
            "checks": [
                {
                    "threat_model": each.threat,
                    "id": each.rule_id(check.rule),
                    **asdict(check),
                    "outcome": check.outcome.name.lower(),
                }
                for each in self.results
                for check in each.checks
            ],
            "doubts": [warning.sentence for each in self.results for warning in each.warnings],
            "warnings": [
                {"threat_model": each.threat, **asdict(warning)} for each in self.results for warning in each.warnings
            ],
            "results": [each.to_dict() for each in self.results],
            "updated": [str(path) for path in self.updated],
        }


def status_line(check: Check) -> str:
    """`PASS robust accuracy ≥ 40.0%: measured 51.7% …`."""
    return f"{check.outcome.word.upper()} {check.limit}: {check.sentence}"


def location(decision: Decision, each: ResultDecision) -> Path:
    """The file that an annotation points to: the gate file where there is one, else the result, else the baseline."""
    return decision.source or each.path or each.baseline or Path("gate")
