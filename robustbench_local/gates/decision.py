"""The outcome of a gate: what was decided for each result and each limit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from robustbench_local.gates.limits import Check, Outcome
from robustbench_local.results.pairing import Flip
from robustbench_local.results.schema import Result

SCHEMA = "robustbench-local/gate/1"


@dataclass(frozen=True)
class ResultDecision:
    """What became of one result. path: None where a result is missing. doubts: what its evaluation itself warned of, or
    that nothing looked; it decides nothing, but it is said. flips: samples that changed sides since the baseline, those
    that moved most first. baseline: the result file it was, or for want of one is to be, compared with.
    """

    threat: str
    path: Path | None
    result: Result | None
    checks: list[Check]
    doubts: list[str] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)
    baseline: Path | None = None

    @property
    def heading(self) -> str:
        """Model, data, threat model and file, such as `digits-cnn on digits, L∞ 0.1 (runs/x.json)`."""
        if self.result is None:
            return self.threat
        return f"{self.result.model.name} on {self.result.data.name}, {self.threat} ({self.path})"


@dataclass(frozen=True)
class Decision:
    """updated: baselines that were written because that was asked for."""

    judged: list[ResultDecision]
    alpha: float
    source: Path | None = None
    updated: list[Path] = field(default_factory=list)

    @property
    def checks(self) -> list[Check]:
        return [check for each in self.judged for check in each.checks]

    @property
    def outcome(self) -> Outcome:
        """The gravest of all: what cannot be compared, then what failed, then what is undecided."""
        for outcome in (Outcome.NOT_COMPARABLE, Outcome.FAIL, Outcome.UNDECIDED):
            if any(check.outcome is outcome for check in self.checks):
                return outcome
        return Outcome.PASS

    def to_dict(self) -> dict[str, object]:
        outcome = self.outcome
        return {
            "schema": SCHEMA,
            "outcome": outcome.name.lower(),
            "exit_code": int(outcome),
            "alpha": self.alpha,
            "gate": None if self.source is None else str(self.source),
            "checks": [
                {"threat_model": each.threat, **asdict(check), "outcome": check.outcome.name.lower()}
                for each in self.judged
                for check in each.checks
            ],
            "doubts": [doubt for each in self.judged for doubt in each.doubts],
            "results": [
                {
                    "threat_model": each.threat,
                    "result": None if each.path is None else str(each.path),
                    "model": None if each.result is None else each.result.model.name,
                    "baseline": None if each.baseline is None else str(each.baseline),
                    "flipped": [asdict(flip) for flip in each.flips],
                }
                for each in self.judged
            ],
            "updated": [str(path) for path in self.updated],
        }


def status_line(check: Check) -> str:
    return f"{check.outcome.word}: {check.limit}: {check.sentence}"


def location(decision: Decision, judged: ResultDecision) -> Path:
    """The file to look into: the gate file where there is one, else the result, else the baseline without one."""
    return decision.source or judged.path or judged.baseline or Path("gate")
