"""Making a result the new baseline: only when that is asked for, and only after a gate that it has not failed."""

from __future__ import annotations

from pathlib import Path

from robustbench_local.errors import UserError
from robustbench_local.gates.decision import Decision
from robustbench_local.gates.limits import Outcome
from robustbench_local.io.atomic_write import check_writable, write_all_or_none
from robustbench_local.results.reading import read_result, read_samples


def update_baselines(decision: Decision) -> list[Path]:
    """Put every result that was given, with its samples, in the place of its baseline.

    Returns the baselines that were written, which is none where the gate failed or could not compare. The two files are
    replaced together. Raises UserError where a result has no baseline to replace, or two have the same.
    """
    if decision.outcome in (Outcome.FAIL, Outcome.NOT_COMPARABLE):
        return []
    moves: list[tuple[Path, Path]] = []
    for judged in decision.judged:
        if judged.path is None or judged.baseline is None:
            raise UserError(f"--update-baseline: no baseline is named for {judged.path}: give --baseline FILE")
        if judged.baseline in [baseline for _, baseline in moves]:
            raise UserError(f"--update-baseline: {judged.baseline} cannot be the baseline of two results: name another")
        moves.append((judged.path, judged.baseline))
    for path, baseline in moves:
        _replace(path, baseline)
    return [baseline for _, baseline in moves]


def _replace(path: Path, baseline: Path) -> None:
    result = read_result(path)
    read_samples(result, path)
    content = (path.parent / str(result.samples_file)).read_bytes()
    samples = baseline.with_name(f"{baseline.stem}.samples.jsonl")
    check_writable(baseline)
    moved = result.model_copy(update={"samples_file": samples.name})
    write_all_or_none({samples: content, baseline: moved.to_json()})
