"""Do results clear their limits? Pass, fail, undecided or not comparable.

What one limit says is decided in `gate_limits`; here results, limits and baselines are brought together by their threat
models, and what cannot be compared or believed is refused.

Several limits at once: whatever truly holds is failed with probability at most alpha over all limits together (Holm).
Passing needs no such correction: the gate passes only where every single limit does, so for a wrong pass the one limit
that is truly broken must pass wrongly, which has probability at most alpha (an intersection-union test).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from robustbench_local.errors import UserError
from robustbench_local.gates.decision import Decision, ResultDecision
from robustbench_local.gates.gate import ClassFloors, Gate, Limits
from robustbench_local.gates.limits import Check, Drop, Floor, Limit, failing, refused
from robustbench_local.results.pairing import (
    EvaluatedResult,
    Flip,
    class_label,
    flips,
    incomparable_reason,
    is_correct,
    is_robust,
    lost_and_gained,
    same_threat,
    threat_name,
    untrusted,
    warnings,
)
from robustbench_local.results.protocol_order import weaker
from robustbench_local.results.reading import read_result, read_samples
from robustbench_local.results.schema import ClassReport, Result


def decide(gate: Gate, paths: Sequence[Path], *, first: bool = False) -> Decision:
    """Hold result files, one for each threat model, against the gate.

    first: a baseline that does not exist is to be made of the result, so that there is nothing to compare with yet.
    Raises UserError for files that cannot be read, for two results of one threat model, and for a file that is given
    twice or is its own baseline.
    """
    places = {path.resolve(): path for path in paths}
    if len(places) < len(paths):
        raise UserError("the same result is given twice: name each once")
    for baseline in gate.baselines:
        if baseline.resolve() in places:
            raise UserError(
                f"{places[baseline.resolve()]} is a result and the baseline itself: name the new result, "
                "or another baseline"
            )
    results = {path: read_result(path) for path in paths}
    for position, (path, result) in enumerate(results.items()):
        for other, earlier in list(results.items())[:position]:
            if same_threat(earlier.threat_model, result.threat_model):
                raise UserError(
                    f"{other} and {path} are both of {threat_name(result.threat_model)}: give one result for each "
                    "threat model"
                )
    baselines = _Baselines(gate, first)
    drafts = [_draft(gate.of(result.threat_model), path, result, baselines) for path, result in results.items()]
    limits = [limit for draft in drafts for limit in draft.limits]
    failed = iter(failing(limits, gate.alpha))
    judged = []
    for draft in drafts:
        checks = [limit.check(gate.alpha, len(limits), next(failed)) for limit in draft.limits]
        judged.append(
            ResultDecision(
                threat_name(draft.result.threat_model),
                draft.path,
                draft.result,
                [*draft.refusals, *checks],
                [*warnings(draft.result), *draft.notes],
                draft.flips,
                draft.baseline,
            )
        )
    return Decision([*judged, *_missing(gate, list(results.values())), *baselines.unused()], gate.alpha, gate.source)


def _missing(gate: Gate, results: list[Result]) -> list[ResultDecision]:
    """What the gate speaks of and no result was given for."""
    return [
        ResultDecision(
            limits.threat.name,
            None,
            None,
            [
                refused(
                    "threat_model",
                    "a result for every threat model",
                    f"there is no result for {limits.threat.name}, which the gate speaks of: attack with these --norm and "
                    "--eps, and give its result too",
                )
            ],
        )
        for limits in gate.limits
        if limits.threat is not None and not any(limits.threat.matches(each.threat_model) for each in results)
    ]


@dataclass
class _Draft:
    """What is known of one result before all limits are decided together."""

    path: Path
    result: Result
    refusals: list[Check] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)
    baseline: Path | None = None


def _draft(limits: Limits | None, path: Path, result: Result, baselines: _Baselines) -> _Draft:
    draft = _Draft(path, result)
    if limits is None:
        draft.refusals.append(
            refused(
                "threat_model",
                "limits for every result",
                f"the gate does not speak of {threat_name(result.threat_model)}: add limits for it, or leave {path} out",
            )
        )
        return draft
    if limits.baselines:
        # Also for a result that is refused below, so that its baseline does not seem to be one without a result.
        draft.baseline = baselines.take(limits, result)
    reason = untrusted(result)
    if reason:
        draft.refusals.append(refused("verdict", "verdict", f"the result itself {reason}"))
        return draft
    reason = weaker(result.protocol, limits.require) if limits.require is not None else ""
    if reason:
        draft.refusals.append(refused("require", f"protocol {limits.require} or stronger", reason))
        return draft
    # Floors need no record, but one that lies there must be this result's.
    if (path.parent / (result.samples_file or "")).is_file():
        read_samples(result, path)
    _add_floors(draft, limits)
    if limits.baselines:
        _add_drops(draft, limits, baselines)
    return draft


def _add_floors(draft: _Draft, limits: Limits) -> None:
    result = draft.result
    stopped = result.sequential is not None
    for rule, name, accuracy, limit in (
        ("min_robust", "robust accuracy", result.robust_accuracy, limits.min_robust),
        ("min_clean", "clean accuracy", result.clean_accuracy, limits.min_clean),
    ):
        if limit is not None:
            draft.limits.append(
                Floor(rule, name, accuracy.correct, accuracy.n, limit, result.data.available, finite=stopped)
            )
    for rule, floors in (("min_class_robust", limits.min_class_robust), ("min_class_clean", limits.min_class_clean)):
        wanted = _class_limits(floors, rule, draft)
        if wanted and stopped and result.data.n < result.data.available:
            draft.refusals.append(
                refused(
                    rule,
                    "accuracy of single classes",
                    "the evaluation was stopped when a gate was decided, and how many images of each class the rest of the "
                    "split has is not recorded: hold classes to limits without --until-gate",
                )
            )
            continue
        for each, limit in wanted:
            robust = rule == "min_class_robust"
            accuracy = each.robust_accuracy if robust else each.clean_accuracy
            of = f" of class {class_label(each.label, each.name)}"
            # A subset is stratified in the split's own proportions.
            available = round(accuracy.n * result.data.available / result.data.n)
            draft.limits.append(
                Floor(
                    f"{rule}:{each.label}",
                    f"{'robust' if robust else 'clean'} accuracy{of}",
                    accuracy.correct,
                    accuracy.n,
                    limit,
                    available,
                    finite=stopped,
                    of=of,
                )
            )


def _class_limits(floors: ClassFloors, rule: str, draft: _Draft) -> list[tuple[ClassReport, float]]:
    """Each class that is held to a limit; a limit for a class that the result does not have is refused."""
    chosen: dict[int, float] = {}
    for key, limit in floors.single.items():
        labels = [each.label for each in draft.result.per_class if each.name == key]
        if not labels and str(key).isdecimal():
            labels = [each.label for each in draft.result.per_class if str(each.label) == str(key)]
        if len(labels) != 1 or labels[0] in chosen:
            told = (
                f"{draft.path} has no samples of such a class"
                if not labels
                else f"{draft.path} has {len(labels)} classes of that name: give the label"
                if len(labels) > 1
                else "another line speaks of the same class"
            )
            sentence = f"{rule} speaks of class {key!r}: {told}"
            draft.refusals.append(refused(f"{rule}:{key}", f"accuracy of class {key}", sentence))
            continue
        chosen[labels[0]] = limit
    limits = [(each, chosen.get(each.label, floors.default)) for each in draft.result.per_class]
    return [(each, limit) for each, limit in limits if limit is not None]


def _add_drops(draft: _Draft, limits: Limits, baselines: _Baselines) -> None:
    what = "change since the baseline"
    if draft.baseline is None:
        draft.refusals.append(
            refused("baseline", what, f"none of the baselines is of {threat_name(draft.result.threat_model)}: give one")
        )
        return
    if draft.baseline not in baselines.read:
        draft.notes.append(f"there is no baseline {draft.baseline} yet: nothing to compare with")
        return
    before, now = baselines.read[draft.baseline], EvaluatedResult.read(draft.path)
    reason = untrusted(before.result)
    reason = f"the baseline {draft.baseline} {reason}" if reason else incomparable_reason(now, before)
    if reason:
        draft.refusals.append(refused("baseline", what, reason))
        return
    draft.flips = flips(before, now)
    n, available = draft.result.data.n, draft.result.data.available
    for rule, name, of, limit in (
        ("max_drop", "robust accuracy", is_robust, limits.max_drop),
        ("max_clean_drop", "clean accuracy", is_correct, limits.max_clean_drop),
    ):
        if limit is not None:
            old = [of(before.samples[index]) for index in now.samples]
            lost, gained = lost_and_gained(old, [of(sample) for sample in now.samples.values()])
            draft.limits.append(Drop(rule, name, lost, gained, n, limit, available))


def read_files(gate: Gate, paths: Sequence[Path]) -> set[Path]:
    """Every file that the decision rests on, resolved: results, baselines, their records, and the gate file.

    Raises UserError for a result or baseline that cannot be read.
    """
    files = [] if gate.source is None else [gate.source]
    for path in [*paths, *gate.baselines]:
        # The record that a baseline gets when it is made, and the one that is named in what is there.
        files += [path, path.with_name(f"{path.stem}.samples.jsonl")]
        if path in paths or path.exists():
            files.append(path.parent / (read_result(path).samples_file or path.name))
    return {file.resolve() for file in files}


class _Baselines:
    """The baselines of a gate: each is read once, and each must belong to a result."""

    def __init__(self, gate: Gate, first: bool):
        gone = next((path for path in gate.baselines if not path.exists()), None)
        if gone is not None and not first:
            raise UserError(
                f"there is no baseline {gone}: check its path, or make the first one of the result with "
                "--update-baseline"
            )
        self.read = {path: EvaluatedResult.read(path) for path in gate.baselines if path.exists()}
        self._taken: set[Path] = set()
        read = list(self.read.values())
        for position, one in enumerate(read):
            for other in read[:position]:
                if same_threat(one.result.threat_model, other.result.threat_model):
                    raise UserError(
                        f"the baselines {other.path} and {one.path} are both of "
                        f"{threat_name(one.result.threat_model)}: give one for each threat model"
                    )

    def take(self, limits: Limits, result: Result) -> Path | None:
        """The baseline of the result's threat model, else the only one there is, else the one that is to be made."""
        same = [
            path
            for path in limits.baselines
            if path in self.read and same_threat(self.read[path].result.threat_model, result.threat_model)
        ]
        new = [path for path in limits.baselines if path not in self.read and path not in self._taken]
        chosen = same or new or (list(limits.baselines) if len(limits.baselines) == 1 else [])
        if len(chosen) != 1:
            return None
        self._taken.add(chosen[0])
        return chosen[0]

    def unused(self) -> list[ResultDecision]:
        return [
            ResultDecision(
                threat_name(each.result.threat_model),
                None,
                None,
                [
                    refused(
                        "baseline",
                        "a result for every baseline",
                        f"there is no result to compare with the baseline {path}, of "
                        f"{threat_name(each.result.threat_model)}: give its result too, or leave the baseline out",
                    )
                ],
            )
            for path, each in self.read.items()
            if path not in self._taken
        ]
