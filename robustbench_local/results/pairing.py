"""Pair two results sample by sample: whether they are comparable, and which samples changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustbench_local.results.protocol_order import distinct_prefixes, protocol_name
from robustbench_local.results.reading import read_result, read_samples
from robustbench_local.results.reason import Reason
from robustbench_local.results.schema import DataInfo, Result, SampleRecord, ThreatModelInfo

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True)
class EvaluatedResult:
    """A result file and its per-sample records by index."""

    path: Path
    result: Result
    samples: dict[int, SampleRecord]

    @classmethod
    def read(cls, path: Path) -> EvaluatedResult:
        """Read both files. Raises UserError for files that cannot be read or belong to two runs."""
        result = read_result(path)
        return cls(path, result, {sample.index: sample for sample in read_samples(result, path)})

    def class_name(self, label: int) -> str:
        """`stop (14)`, or the label alone where its class has no name."""
        return next(
            (class_label(each.label, each.name) for each in self.result.per_class if each.label == label), str(label)
        )


@dataclass(frozen=True)
class Flip:
    """A sample on which one of two models is robust and the other is not.

    lost: the first model is robust, the second is not. margin_before, margin_now: the smallest margin under attack of
    each model, in logits. broken_by: the attack that succeeded; None where the clean image is misclassified.
    """

    index: int
    label: int
    name: str
    lost: bool
    margin_before: float
    margin_now: float
    broken_by: str | None

    @property
    def margin_change(self) -> float:
        """By how much the smallest margin changed, in logits."""
        return abs(self.margin_now - self.margin_before)


def class_label(label: int, name: str | None) -> str:
    """A class for people: `stop (14)`, or the label alone."""
    return str(label) if name is None or name == str(label) else f"{name} ({label})"


def threat_name(threat: ThreatModelInfo) -> str:
    """A threat model for people: `L∞ 8/255, 14 → 5`."""
    goal = ""
    if threat.goal != "untargeted":
        source, target = threat.goal.source, threat.goal.target
        goal = f", target {target} (every other class)" if source is None else f", {source} → {target}"
    reject = "" if threat.reject is None else f", rejection class {threat.reject}"
    return f"{NORMS.get(threat.norm, threat.norm)} {threat.eps_text}{goal}{reject}"


def threat_id(threat: ThreatModelInfo) -> str:
    """A threat model for programs: `linf-8/255, 14 → 5`. It never changes, so that alerts of CI keep their rules."""
    goal = ""
    if threat.goal != "untargeted":
        goal = f", {'any' if threat.goal.source is None else threat.goal.source} → {threat.goal.target}"
    reject = "" if threat.reject is None else f", class {threat.reject} rejects"
    return f"{threat.norm}-{threat.eps_text}{goal}{reject}"


def same_threat(one: ThreatModelInfo, other: ThreatModelInfo) -> bool:
    """Whether two threat models are equal, however their eps is written."""
    return one.model_dump(exclude={"eps_text"}) == other.model_dump(exclude={"eps_text"})


def untrusted(result: Result) -> Reason | None:
    """Why a result cannot be trusted; None where it can."""
    if result.verdict.status != "not-trusted":
        return None
    reasons = "; ".join(result.verdict.reasons)
    return Reason("verdict-not-trusted", f"its verdict is not-trusted{': ' if reasons else ''}{reasons}")


def warnings(result: Result) -> list[Reason]:
    """The warnings of an evaluation about itself; empty where its verdict is trusted."""
    if result.verdict.status == "doubtful":
        return [Reason("verdict-doubtful", reason) for reason in result.verdict.reasons]
    if result.verdict.status == "not-assessed":
        sentence = "the evaluation ran with --no-diagnostics, so gradient masking was not checked"
        return [Reason("verdict-not-assessed", sentence)]
    return []


def incomparable_reason(now: EvaluatedResult, before: EvaluatedResult) -> Reason | None:
    """Why two results cannot be compared; None where they can. Their models may differ, nothing else may."""
    old, new = before.result, now.result
    there, here = f"in {before.path.name}", f"in {now.path.name}"
    if not same_threat(new.threat_model, old.threat_model):
        names = (threat_name(old.threat_model), threat_name(new.threat_model))
        return Reason("threat-models-differ", f"the threat models differ: {names[0]} {there}, {names[1]} {here}")
    if new.protocol != old.protocol:
        one, other = protocol_name(old.protocol), protocol_name(new.protocol)
        if one != other:
            return Reason("protocols-differ", f"the protocols differ: {one} {there}, {other} {here}")
        first, second = distinct_prefixes(old.protocol.sha256, new.protocol.sha256)
        return Reason(
            "protocols-differ",
            f"the protocols differ: both are {one}, but with different settings ({first} {there}, {second} {here})",
        )
    if (_source(new.data), new.data.split) != (_source(old.data), old.data.split):
        return Reason(
            "data-differ",
            f"the datasets differ: {old.data.name} ({old.data.split}) {there}, "
            f"{new.data.name} ({new.data.split}) {here}",
        )
    for each in (before, now):
        if each.result.sequential is not None:
            return Reason(
                "stopped-by-gate",
                f"the evaluation of {each.path.name} stopped when its gate {each.result.sequential.gate} was decided, "
                "so its samples depend on their outcomes: compare results of runs without --until-gate",
            )
    if not _same_samples(now, before):
        return Reason(
            "samples-differ",
            "the results have different samples: evaluate both with the same data, --samples and --seed",
        )
    return None


def _same_samples(now: EvaluatedResult, before: EvaluatedResult) -> bool:
    return (
        now.result.data.sha256 == before.result.data.sha256
        and now.samples.keys() == before.samples.keys()
        and all(
            (sample.input_sha256, sample.label) == (before.samples[index].input_sha256, before.samples[index].label)
            for index, sample in now.samples.items()
        )
    )


def _source(data: DataInfo) -> str:
    """The name of the data without its directory, which may differ between machines."""
    kind, colon, path = data.name.partition(":")
    return f"{kind}:{Path(path).name}" if colon else kind


def is_correct(sample: SampleRecord) -> bool:
    """Whether the clean image is classified correctly."""
    return sample.clean_prediction == sample.label


def is_robust(sample: SampleRecord) -> bool:
    """Whether the clean image is classified correctly and no attack succeeded on it."""
    return sample.robust


def lost_and_gained(before: Sequence[bool], now: Sequence[bool]) -> tuple[int, int]:
    """How many samples only the first model gets right, and how many only the second."""
    pairs = list(zip(before, now, strict=True))
    return pairs.count((True, False)), pairs.count((False, True))


def flips(before: EvaluatedResult, now: EvaluatedResult) -> list[Flip]:
    """Every sample on which one model is robust and the other is not, the largest change of margin first."""
    changed = []
    for index, new in now.samples.items():
        old = before.samples[index]
        if old.robust != new.robust:
            broken_by = (new if old.robust else old).broken_by
            name = now.class_name(new.label)
            changed.append(Flip(index, new.label, name, old.robust, old.margin, new.margin, broken_by))
    return sorted(changed, key=lambda flip: (-flip.margin_change, flip.index))
