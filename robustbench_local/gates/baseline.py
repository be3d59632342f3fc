"""The baselines of a gate: find the one of each result, and replace baselines on request."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from robustbench_local.errors import UserError
from robustbench_local.gates.decision import Decision, ResultDecision
from robustbench_local.gates.gate import Gate, Limits
from robustbench_local.gates.limits import Outcome, refused
from robustbench_local.io.atomic_write import check_writable, write_all_or_none
from robustbench_local.results.pairing import EvaluatedResult, same_threat, threat_id, threat_name
from robustbench_local.results.reading import read_result, read_samples, samples_path
from robustbench_local.results.reason import Reason
from robustbench_local.results.schema import Result


@dataclass(frozen=True)
class BaselineMatch:
    """The baseline of one result.

    path: the file; None where none can be chosen. missing: the files that do not exist: the baseline itself, several
    where any of them could be it, or the per-sample record of an existing baseline.
    """

    path: Path | None = None
    missing: list[Path] = field(default_factory=list)


class Baselines:
    """The baselines of a gate. Each is read once, and each existing one must belong to a result."""

    def __init__(self, gate: Gate):
        """Read all baselines that exist.

        Raises UserError for a baseline that cannot be read, and for two of one threat model. Files may be missing.
        """
        self._results = {path: read_result(path) for path in gate.baselines if path.exists()}
        self.evaluated: dict[Path, EvaluatedResult] = {}
        self._records: dict[Path, Path] = {}
        for path, result in self._results.items():
            record = samples_path(result, path)
            if record.exists():
                self.evaluated[path] = EvaluatedResult.read(path)
            else:
                self._records[path] = record
        self._matched: set[Path] = set()
        self._require_different_threats()

    def _require_different_threats(self) -> None:
        existing = list(self._results.items())
        for position, (path, result) in enumerate(existing):
            for other, earlier in existing[:position]:
                if same_threat(earlier.threat_model, result.threat_model):
                    raise UserError(
                        f"the baselines {other} and {path} are both of {threat_name(result.threat_model)}: give one "
                        "for each threat model",
                        slug="duplicate-baseline",
                    )

    def match(self, limits: Limits, result: Result) -> BaselineMatch:
        """The baseline of the result's threat model, else the only one there is, else those that do not exist."""
        same = [
            path
            for path in limits.baselines
            if path in self._results and same_threat(self._results[path].threat_model, result.threat_model)
        ]
        absent = [path for path in limits.baselines if path not in self._results and path not in self._matched]
        candidates = same or absent or (list(limits.baselines) if len(limits.baselines) == 1 else [])
        if len(candidates) != 1:
            return BaselineMatch(None, candidates)
        (path,) = candidates
        self._matched.add(path)
        if path in self._records:
            return BaselineMatch(path, [self._records[path]])
        return BaselineMatch(path, [] if path in self.evaluated else [path])

    def without_result(self) -> list[ResultDecision]:
        """A refusal for every existing baseline that no result was compared with."""
        decisions = []
        for path, result in self._results.items():
            if path in self._matched:
                continue
            threat = threat_name(result.threat_model)
            reason = Reason(
                "result-for-baseline-missing",
                f"there is no result to compare with the baseline {path} of {threat}: give its result too, or leave "
                "the baseline out",
            )
            check = refused("baseline", "a result for every baseline", reason)
            decisions.append(ResultDecision(threat, threat_id(result.threat_model), None, None, [check]))
        return decisions


def update_baselines(decision: Decision) -> list[Path]:
    """Replace the baseline of every result, with its per-sample record, by the result.

    Returns the baselines that were written: none where the gate failed or the results are not comparable. The two files
    of a baseline are replaced together. Raises UserError where a result has no baseline, or two results have the same.
    """
    if decision.outcome in (Outcome.FAIL, Outcome.NOT_COMPARABLE):
        return []
    moves: dict[Path, Path] = {}
    for each in decision.results:
        if each.path is None or each.baseline is None:
            raise UserError(
                f"--update-baseline: no baseline is named for {each.path}: give --baseline FILE",
                slug="baseline-not-named",
            )
        if each.baseline in moves:
            raise UserError(
                f"--update-baseline: {each.baseline} cannot be the baseline of two results: name another",
                slug="duplicate-baseline",
            )
        moves[each.baseline] = each.path
    for baseline, path in moves.items():
        _replace(baseline, path)
    return list(moves)


def _replace(baseline: Path, path: Path) -> None:
    result = read_result(path)
    read_samples(result, path)
    content = samples_path(result, path).read_bytes()
    samples = baseline.with_name(f"{baseline.stem}.samples.jsonl")
    check_writable(baseline)
    renamed = result.model_copy(update={"samples_file": samples.name})
    write_all_or_none({samples: content, baseline: renamed.to_json()})
