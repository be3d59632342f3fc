"""Two results of the same samples, side by side: whether they may be compared, and which samples changed sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustbench_local.results.protocol_order import different_hashes, protocol_name
from robustbench_local.results.reading import read_result, read_samples
from robustbench_local.results.schema import DataInfo, Result, SampleRecord, ThreatModelInfo

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True)
class EvaluatedResult:
    """A result file that was read, and its per-sample record by index."""

    path: Path
    result: Result
    samples: dict[int, SampleRecord]

    @classmethod
    def read(cls, path: Path) -> EvaluatedResult:
        """Raises UserError for files that cannot be read, or are of two runs."""
        result = read_result(path)
        return cls(path, result, {sample.index: sample for sample in read_samples(result, path)})

    def class_name(self, label: int) -> str:
        """`stop (14)`, or the label alone where its class has no name."""
        return next(
            (class_label(each.label, each.name) for each in self.result.per_class if each.label == label), str(label)
        )


@dataclass(frozen=True)
class Flip:
    """A sample that one of two models withstands and the other does not.

    lost: the first withstands, the second falls. margins: the smallest that the attacks left, in each model's logits.
    broken_by: the attack that the falling one fell for; None where it is wrong on the clean image.
    """

    index: int
    label: int
    name: str
    lost: bool
    margin_before: float
    margin_now: float
    broken_by: str | None

    @property
    def moved(self) -> float:
        """How far the smallest margin moved."""
        return abs(self.margin_now - self.margin_before)


def class_label(label: int, name: str | None) -> str:
    """A class as people read it."""
    return str(label) if name is None or name == str(label) else f"{name} ({label})"


def threat_name(threat: ThreatModelInfo) -> str:
    """`L∞ 8/255, 14 → 5`."""
    goal = ""
    if threat.goal != "untargeted":
        goal = f", {'any' if threat.goal.source is None else threat.goal.source} → {threat.goal.target}"
    reject = "" if threat.reject is None else f", class {threat.reject} rejects"
    return f"{NORMS.get(threat.norm, threat.norm)} {threat.eps_text}{goal}{reject}"


def same_threat(one: ThreatModelInfo, other: ThreatModelInfo) -> bool:
    """Whether two threat models are one, however their eps is written."""
    return one.model_dump(exclude={"eps_text"}) == other.model_dump(exclude={"eps_text"})


def untrusted(result: Result) -> str:
    """Why a result is not to be believed, or nothing."""
    if result.verdict.status != "not-trusted":
        return ""
    reasons = "; ".join(result.verdict.reasons)
    return f"is not to be trusted{': ' if reasons else ''}{reasons}"


def warnings(result: Result) -> list[str]:
    """What its evaluation itself warned of, or that nobody looked; nothing where it is trusted."""
    if result.verdict.status == "doubtful":
        return result.verdict.reasons
    if result.verdict.status == "not-assessed":
        return ["not assessed: it was made with --no-diagnostics, so nothing looked for masked gradients"]
    return []


def incomparable_reason(now: EvaluatedResult, before: EvaluatedResult) -> str:
    """Why two results cannot be held against each other, or nothing. The model may be another: that is the point."""
    old, new = before.result, now.result
    where, here = f"in {before.path.name}", f"in {now.path.name}"
    if not same_threat(new.threat_model, old.threat_model):
        return (
            f"the threat models differ: {threat_name(old.threat_model)} {where}, {threat_name(new.threat_model)} {here}"
        )
    if new.protocol != old.protocol:
        one, other = protocol_name(old.protocol), protocol_name(new.protocol)
        if one != other:
            return f"the protocols differ: {one} {where}, {other} {here}"
        first, second = different_hashes(old.protocol.sha256, new.protocol.sha256)
        return f"the protocols differ: both are {one}, but with other settings ({first} {where}, {second} {here})"
    if (_place(new.data), new.data.split) != (_place(old.data), old.data.split):
        return f"the data differ: {old.data.name} ({old.data.split}) {where}, {new.data.name} ({new.data.split}) {here}"
    stopped = next((each for each in (before, now) if each.result.sequential is not None), None)
    if stopped is not None:
        return (
            f"the evaluation of {stopped.path.name} was stopped when its gate {_gate(stopped)} was decided, so its "
            "samples are chosen by their outcomes: compare results of runs without --until-gate"
        )
    if (
        new.data.sha256 != old.data.sha256
        or now.samples.keys() != before.samples.keys()
        or any(
            (sample.input_sha256, sample.label) != (before.samples[index].input_sha256, before.samples[index].label)
            for index, sample in now.samples.items()
        )
    ):
        return "the results speak of different samples: evaluate both on the same data, --samples and --seed"
    return ""


def _gate(stopped: EvaluatedResult) -> str:
    return stopped.result.sequential.gate if stopped.result.sequential is not None else ""


def _place(data: DataInfo) -> str:
    """The data's name without the folder it lies in, which may be another on another machine."""
    kind, colon, path = data.name.partition(":")
    return f"{kind}:{Path(path).name}" if colon else kind


def is_correct(sample: SampleRecord) -> bool:
    """Whether the clean image is taken for what it is."""
    return sample.clean_prediction == sample.label


def is_robust(sample: SampleRecord) -> bool:
    """Whether no attack has fooled the model on it."""
    return sample.robust


def lost_and_gained(before: Sequence[bool], now: Sequence[bool]) -> tuple[int, int]:
    """How many only the first model gets right, and how many only the second."""
    pairs = list(zip(before, now, strict=True))
    return pairs.count((True, False)), pairs.count((False, True))


def flips(before: EvaluatedResult, now: EvaluatedResult) -> list[Flip]:
    """Every sample that stands in one and falls in the other, those whose margin moved most first."""
    found = []
    for index, new in now.samples.items():
        old = before.samples[index]
        if old.robust != new.robust:
            fallen = new if old.robust else old
            found.append(
                Flip(index, new.label, now.class_name(new.label), old.robust, old.margin, new.margin, fallen.broken_by)
            )
    return sorted(found, key=lambda flip: (-flip.moved, flip.index))
