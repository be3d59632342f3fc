"""Does a result clear its limits? Pass, fail or undecided.

A floor is passed or failed when an exact bound clears it. A drop within its limit passes; a larger one fails when the
paired test says that chance does not explain it.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path

from robustbench_local.result import Accuracy, Result, SampleRecord, read_result, read_samples
from robustbench_local.statistics import exact_bounds, mcnemar

MOST_SAMPLES = 10_000_000
"""A limit that so many samples would not decide lies, for all anyone can tell, exactly at the truth."""


class Outcome(IntEnum):
    """The values are the exit codes."""

    PASS = 0
    FAIL = 3
    UNDECIDED = 4
    NOT_COMPARABLE = 5


@dataclass(frozen=True)
class Check:
    """One limit, what was measured against it, and the decision in a sentence."""

    limit: str
    outcome: Outcome
    value: float | None
    threshold: float | None
    sentence: str


@dataclass(frozen=True)
class Gate:
    """Limits as fractions.

    alpha: how often a floor's pass or fail may be wrong, and a drop's fail where nothing was lost.
    max_drop and max_clean_drop speak of what was lost since the baseline, sample by sample.
    """

    min_robust: float | None = None
    min_clean: float | None = None
    max_drop: float | None = None
    max_clean_drop: float | None = None
    alpha: float = 0.05


@dataclass(frozen=True)
class Decision:
    """doubts: what the evaluation itself warned of; it decides nothing, but it is said."""

    checks: list[Check]
    doubts: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """The gravest of all: what cannot be compared, then what failed, then what is undecided."""
        for outcome in (Outcome.NOT_COMPARABLE, Outcome.FAIL, Outcome.UNDECIDED):
            if any(check.outcome is outcome for check in self.checks):
                return outcome
        return Outcome.PASS

    def to_dict(self) -> dict[str, object]:
        checks = [{**asdict(check), "outcome": check.outcome.name.lower()} for check in self.checks]
        outcome = self.outcome
        return {"outcome": outcome.name.lower(), "exit_code": int(outcome), "checks": checks, "doubts": self.doubts}


def decide(gate: Gate, path: Path, baseline: Path | None = None) -> Decision:
    """Hold a result file, and with a baseline the change since then, against the gate.

    Raises UserError for files that cannot be read.
    """
    result = read_result(path)
    if result.verdict.status == "not-trusted":
        reasons = "; ".join(result.verdict.reasons)
        refusal = f"the result itself is not to be trusted{': ' if reasons else ''}{reasons}"
        return Decision([Check("verdict", Outcome.NOT_COMPARABLE, None, None, refusal)])
    # Floors need no record, but one that lies there must be this result's.
    record = path.parent / (result.samples_file or "")
    samples = read_samples(result, path) if baseline is not None or record.is_file() else []
    floors = (("robust accuracy", result.robust_accuracy, gate.min_robust),
              ("clean accuracy", result.clean_accuracy, gate.min_clean))
    checks = [
        _floor(name, accuracy, limit, gate.alpha, result.data.available)
        for name, accuracy, limit in floors if limit is not None
    ]
    if baseline is not None:
        before = read_result(baseline)
        checks += _drops(gate, (result, samples), (before, read_samples(before, baseline)))
    doubts = result.verdict.reasons if result.verdict.status == "doubtful" else []
    return Decision(checks, doubts)


def _floor(name: str, accuracy: Accuracy, limit: float, alpha: float, available: int) -> Check:
    low, high = exact_bounds(accuracy.correct, accuracy.n, alpha)
    measured = f"{name} {accuracy.value:.1%} ({accuracy.correct} of {accuracy.n})"
    sure = f"with {1 - alpha:.0%} confidence"
    if low >= limit:
        outcome, reason = Outcome.PASS, f"{sure} at least {low:.1%}"
    elif high < limit:
        outcome, reason = Outcome.FAIL, f"{sure} at most {high:.1%}"
    else:
        outcome = Outcome.UNDECIDED
        reason = f"{sure} between {low:.1%} and {high:.1%}; {_more_samples(accuracy, limit, alpha, available)}"
    return Check(f"{name} ≥ {limit:.1%}", outcome, accuracy.value, limit, f"{measured}: {reason}")


def _more_samples(accuracy: Accuracy, limit: float, alpha: float, available: int) -> str:
    """How many samples would decide, were they like these, and whether the data set has them."""
    def decides(n: int) -> bool:
        low, high = exact_bounds(round(accuracy.value * n), n, alpha)
        return low >= limit or high < limit

    enough = accuracy.n
    while not decides(enough):
        enough *= 2
        if enough > MOST_SAMPLES:
            return "it lies so near the limit that no number of samples is likely to decide"
    low = enough // 2
    while enough - low > max(1, enough // 100):
        middle = (low + enough) // 2
        low, enough = (low, middle) if decides(middle) else (middle, enough)
    if available >= enough:
        return f"about {enough:,} samples would decide, and the data set has {available:,}"
    has = f"the data set has only {available:,}" if available > accuracy.n else f"all {available:,} are used"
    return f"about {enough:,} samples would decide, but {has}: more data, or another limit"


def _drops(
    gate: Gate, now: tuple[Result, list[SampleRecord]], before: tuple[Result, list[SampleRecord]]
) -> list[Check]:
    reason = _not_comparable(now[0], before[0])
    new, old = ({sample.index: sample for sample in samples} for samples in (now[1], before[1]))
    if not reason and (
        new.keys() != old.keys()
        or any((new[i].input_sha256, new[i].label) != (old[i].input_sha256, old[i].label) for i in new)
    ):
        reason = "the two results speak of different samples: evaluate both on the same data, --samples and --seed"
    if reason:
        return [Check("change since the baseline", Outcome.NOT_COMPARABLE, None, None, reason)]
    checks = []
    if gate.max_drop is not None:
        pairs = [(old[i].robust, new[i].robust) for i in new]
        checks.append(_drop("robust accuracy", pairs, gate.max_drop, gate.alpha))
    if gate.max_clean_drop is not None:
        pairs = [(_right(old[i]), _right(new[i])) for i in new]
        checks.append(_drop("clean accuracy", pairs, gate.max_clean_drop, gate.alpha))
    return checks


def _right(sample: SampleRecord) -> bool:
    return sample.clean_prediction == sample.label


def _not_comparable(now: Result, before: Result) -> str:
    """Why two results cannot be held against each other, or nothing. The model may be another: that is the point."""
    if now.threat_model.model_dump(exclude={"eps_text"}) != before.threat_model.model_dump(exclude={"eps_text"}):
        return f"the threat models differ: {_threat(before)} in the baseline, {_threat(now)} now"
    if now.protocol != before.protocol:
        return (
            f"the protocols differ: {before.protocol.name}/{before.protocol.version or ''} in the baseline, "
            f"{now.protocol.name}/{now.protocol.version or ''} now, or their settings do"
        )
    return ""


def _threat(result: Result) -> str:
    return f"{result.threat_model.norm} {result.threat_model.eps_text}, {result.threat_model.goal}"


def _drop(name: str, pairs: list[tuple[bool, bool]], limit: float, alpha: float) -> Check:
    """Paired: only samples that changed sides count (McNemar's exact test)."""
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    drop, p = (lost - gained) / len(pairs), mcnemar(lost, gained)
    points = 100 * (gained - lost) / len(pairs)
    measured = f"{name} changed by {points:+.1f} points ({lost} lost, {gained} gained of {len(pairs)}, p = {p:.3g})"
    if drop <= limit:
        outcome, reason = Outcome.PASS, "within the limit"
    elif p < alpha:
        outcome, reason = Outcome.FAIL, "more than the limit, and more than chance explains"
    else:
        times = 2
        while mcnemar(lost * times, gained * times) >= alpha and times * len(pairs) < MOST_SAMPLES:
            times *= 2
        outcome = Outcome.UNDECIDED
        reason = f"more than the limit, but chance may explain it; about {times * len(pairs):,} samples would decide"
    return Check(f"drop in {name} ≤ {limit:.1%}", outcome, drop, limit, f"{measured}: {reason}")
