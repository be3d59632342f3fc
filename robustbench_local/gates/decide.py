"""Decide a gate: pass, fail, undecided or not comparable.

`limits` decides a single limit. Here results, limits and baselines are matched by their threat models, and results that
are not comparable or not trusted are refused.

Several limits at once: the probability of failing any limit that holds is at most alpha over all of them (Holm).
Passing needs no correction: the gate passes only where every limit does, so for a wrong pass a broken limit must pass,
which has probability at most alpha (an intersection-union test).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from robustbench_local.errors import UserError
from robustbench_local.gates.baseline import Baselines
from robustbench_local.gates.decision import Decision, ResultDecision
from robustbench_local.gates.floors import class_floors, whole_floors
from robustbench_local.gates.gate import Gate, Limits
from robustbench_local.gates.limits import Check, Drop, Limit, Outcome, failing, refused
from robustbench_local.results.pairing import (
    EvaluatedResult,
    Flip,
    flips,
    incomparable_reason,
    is_correct,
    is_robust,
    lost_and_gained,
    same_threat,
    threat_id,
    threat_name,
    untrusted,
    warnings,
)
from robustbench_local.results.protocol_order import weaker
from robustbench_local.results.reading import read_result, read_samples
from robustbench_local.results.reason import Reason
from robustbench_local.results.schema import Result

DROP = "change since the baseline"


@dataclass
class _Draft:
    """What is known about one result before all limits are decided together."""

    path: Path
    result: Result
    refusals: list[Check] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    warnings: list[Reason] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)
    baseline: Path | None = None
    missing: list[Path] = field(default_factory=list)

    def refuse(self, rule: str, limit: str, slug: str, sentence: str) -> None:
        """Add a refusal."""
        self.refusals.append(refused(rule, limit, Reason(slug, sentence)))

    def decided(self, checks: list[Check]) -> ResultDecision:
        """The decision on this result. checks: the outcomes of its limits."""
        threat = self.result.threat_model
        return ResultDecision(
            threat_name(threat),
            threat_id(threat),
            self.path,
            self.result,
            [*self.refusals, *checks],
            [*warnings(self.result), *self.warnings],
            self.flips,
            self.baseline,
            self.missing,
        )


def decide(gate: Gate, paths: Sequence[Path], *, create_baselines: bool = False) -> Decision:
    """Compare result files, one for each threat model, with the limits of a gate.

    create_baselines: a missing baseline is about to be created from the result, so it is no error. Raises UserError for
    files that cannot be read, for two results of one threat model, and for a file that is given twice or is its own
    baseline.
    """
    _require_different_files(gate, paths)
    results = {path: read_result(path) for path in paths}
    _require_different_threats(results)
    baselines = Baselines(gate)
    drafts = []
    for path, result in results.items():
        limits = gate.limits_for(result.threat_model)
        draft = _Draft(path, result)
        if limits is None:
            draft.refuse(
                "threat_model",
                "limits for every result",
                "threat-model-without-limits",
                f"the gate has no limits for {threat_name(result.threat_model)}: add some, or leave {path} out",
            )
        else:
            _fill(draft, limits, baselines, create_baselines)
        drafts.append(draft)
    all_limits = [limit for draft in drafts for limit in draft.limits]
    failed = iter(failing(all_limits, gate.alpha))
    decisions = [
        draft.decided([limit.check(gate.alpha, len(all_limits), next(failed)) for limit in draft.limits])
        for draft in drafts
    ]
    missing = _missing_results(gate, list(results.values()))
    return Decision([*decisions, *missing, *baselines.without_result()], gate.alpha, gate.source)


def _require_different_files(gate: Gate, paths: Sequence[Path]) -> None:
    places = {path.resolve(): path for path in paths}
    if len(places) < len(paths):
        raise UserError("the same result is given twice: name each once", slug="duplicate-result")
    for baseline in gate.baselines:
        if baseline.resolve() in places:
            raise UserError(
                f"{places[baseline.resolve()]} is both a result and the baseline: name the new result, or another "
                "baseline",
                slug="result-is-baseline",
            )


def _require_different_threats(results: dict[Path, Result]) -> None:
    items = list(results.items())
    for position, (path, result) in enumerate(items):
        for other, earlier in items[:position]:
            if same_threat(earlier.threat_model, result.threat_model):
                raise UserError(
                    f"{other} and {path} are both of {threat_name(result.threat_model)}: give one result for each "
                    "threat model",
                    slug="duplicate-threat-model",
                )


def _missing_results(gate: Gate, results: list[Result]) -> list[ResultDecision]:
    """A refusal for every threat model of the gate without a result."""
    decisions = []
    for limits in gate.limits:
        threat = limits.threat
        if threat is None or any(threat.matches(each.threat_model) for each in results):
            continue
        reason = Reason(
            "result-missing",
            f"there is no result for {threat.name}, for which the gate has limits: attack with these --norm and --eps, "
            "and give that result too",
        )
        check = refused("threat_model", "a result for every threat model", reason)
        decisions.append(ResultDecision(threat.name, threat.id, None, None, [check]))
    return decisions


def _fill(draft: _Draft, limits: Limits, baselines: Baselines, create_baselines: bool) -> None:
    """Add the limits that apply to a result, and the reasons why some cannot be decided."""
    if limits.baselines:
        # Also for a result that is refused below; otherwise its baseline would seem to be one without a result.
        match = baselines.match(limits, draft.result)
        draft.baseline, draft.missing = match.path, match.missing
    reason = untrusted(draft.result)
    if reason is not None:
        draft.refusals.append(refused("verdict", "verdict", reason))
    elif limits.require is not None and (reason := weaker(draft.result.protocol, limits.require)) is not None:
        draft.refusals.append(refused("require", f"protocol {limits.require} or stronger", reason))
    else:
        # Floors do not need the per-sample record, but where it exists it must belong to this result.
        if (draft.path.parent / (draft.result.samples_file or "")).is_file():
            read_samples(draft.result, draft.path)
        draft.limits += whole_floors(draft.result, limits)
        class_limits, refusals = class_floors(draft.result, draft.path, limits)
        draft.limits += class_limits
        draft.refusals += refusals
        if limits.baselines and not draft.missing:
            _add_drops(draft, limits, baselines)
    if draft.missing:
        _report_missing(draft, limits, create_baselines)


def _report_missing(draft: _Draft, limits: Limits, create_baselines: bool) -> None:
    """Say that a baseline is missing: a warning where other limits decide the gate, else an undecided check."""
    names = " or ".join(map(str, draft.missing))
    if draft.baseline is None or draft.missing == [draft.baseline]:
        slug, absent = "baseline-missing", f"there is no baseline {names}"
        fix = "check its path, or create it with --update-baseline"
    else:
        slug, absent = "baseline-incomplete", f"the baseline {draft.baseline} lacks its per-sample record {names}"
        fix = "put the record there, or remove the baseline and create it again with --update-baseline"
    if create_baselines and draft.baseline is None:
        threat = threat_name(draft.result.threat_model)
        fix = f"name the baseline of {threat} under its threat model in the gate file"
        draft.refuse("baseline", DROP, "baseline-ambiguous", f"{absent}: {fix}")
    elif create_baselines and slug == "baseline-missing":
        draft.warnings.append(Reason(slug, f"{absent} yet, so drops were not checked"))
    elif create_baselines or limits.require_baseline:
        required = ", but the gate requires a baseline" if limits.require_baseline else ""
        draft.refuse("baseline", DROP, slug, f"{absent}{required}: {fix}")
    elif draft.limits or draft.refusals:
        draft.warnings.append(Reason(slug, f"{absent}, so drops were not checked: {fix}"))
    else:
        sentence = f"{absent}, and the gate limits only drops, so nothing was checked: {fix}"
        draft.refusals.append(Check("baseline", DROP, Outcome.UNDECIDED, sentence, slug))


def _add_drops(draft: _Draft, limits: Limits, baselines: Baselines) -> None:
    if draft.baseline is None:
        threat = threat_name(draft.result.threat_model)
        draft.refuse("baseline", DROP, "baseline-not-named", f"none of the baselines is of {threat}: give one")
        return
    before, now = baselines.evaluated[draft.baseline], EvaluatedResult.read(draft.path)
    reason = untrusted(before.result)
    if reason is not None:
        reason = Reason(reason.slug, f"the baseline {draft.baseline} cannot be used: {reason.sentence}")
    else:
        reason = incomparable_reason(now, before)
    if reason is not None:
        draft.refusals.append(refused("baseline", DROP, reason))
        return
    draft.flips = flips(before, now)
    n, available = draft.result.data.n, draft.result.data.available
    for rule, name, test, limit in (
        ("max_drop", "robust accuracy", is_robust, limits.max_drop),
        ("max_clean_drop", "clean accuracy", is_correct, limits.max_clean_drop),
    ):
        if limit is not None:
            old = [test(before.samples[index]) for index in now.samples]
            lost, gained = lost_and_gained(old, [test(sample) for sample in now.samples.values()])
            draft.limits.append(Drop(rule, name, lost, gained, n, limit, available))


def read_files(gate: Gate, paths: Sequence[Path]) -> set[Path]:
    """Every file that a decision reads, resolved: results, baselines, their records, and the gate file.

    Raises UserError for a result or baseline that cannot be read.
    """
    files = [] if gate.source is None else [gate.source]
    for path in [*paths, *gate.baselines]:
        # Both the record that a new baseline gets and the record that the existing file names.
        files += [path, path.with_name(f"{path.stem}.samples.jsonl")]
        if path in paths or path.exists():
            files.append(path.parent / (read_result(path).samples_file or path.name))
    return {file.resolve() for file in files}
