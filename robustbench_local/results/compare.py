"""Compare results of the same samples: what changed, whether it is significant, and which models are equivalent."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from robustbench_local.errors import UserError
from robustbench_local.results.pairing import (
    EvaluatedResult,
    Flip,
    flips,
    incomparable_reason,
    is_correct,
    is_robust,
    lost_and_gained,
    threat_name,
    untrusted,
    warnings,
)
from robustbench_local.results.reason import Reason
from robustbench_local.results.schema import Accuracy, SampleRecord
from robustbench_local.statistics.intervals import drop_bounds, holm, mcnemar

SCHEMA = "robustbench-local/compare/1"


@dataclass(frozen=True)
class Change:
    """The change of an accuracy from the first model to the second, on the same samples; all rates are fractions.

    change: the second minus the first. low, high: its two-sided confidence interval. lost, gained: samples that only
    the first or only the second gets right. p: two-sided exact McNemar test. p_mid: its mid-p value, which agrees with
    the interval.
    """

    before: float
    now: float
    change: float
    low: float
    high: float
    lost: int
    gained: int
    n: int
    p: float
    p_mid: float


@dataclass(frozen=True)
class ClassChange:
    """The changes on the samples of one class."""

    label: int
    name: str
    clean: Change
    robust: Change


@dataclass(frozen=True)
class AttackChange:
    """An attack on each of the models; None where it was not run on one of them.

    role: as in the result file. left: the robust accuracy after the attack. fooled: the number of its successes.
    """

    attack: str
    role: str
    left: list[float | None]
    fooled: list[int | None]


@dataclass(frozen=True)
class Pair:
    """The changes from the first of two results to the second."""

    clean: Change
    robust: Change
    flips: list[Flip]
    classes: list[ClassChange]


@dataclass(frozen=True)
class Ranked:
    """One of the compared models.

    groups: letters; the robust accuracies of models that share a letter do not differ significantly. verdict: of its
    evaluation. warnings: why that verdict is not `trusted`.
    """

    path: Path
    model: str
    clean: Accuracy
    robust: Accuracy
    groups: str
    verdict: str
    warnings: list[Reason]


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    refusals: why the results cannot be compared; with any, the other fields are empty. pair: for two results only.
    p_values: for every two models by their position in `ranked`, adjusted by the method of Holm.
    """

    paths: list[Path]
    level: float
    refusals: list[Reason]
    threat: str
    data: str
    n: int
    ranked: list[Ranked]
    p_values: dict[tuple[int, int], float]
    attacks: list[AttackChange]
    pair: Pair | None

    def to_dict(self) -> dict[str, object]:
        """The JSON output of `robust compare`; every rate is a fraction."""
        return {
            "schema": SCHEMA,
            "comparable": not self.refusals,
            "reasons": [each.sentence for each in self.refusals],
            "refusals": [asdict(each) for each in self.refusals],
            "results": [str(path) for path in self.paths],
            "threat_model": self.threat,
            "data": self.data,
            "n": self.n,
            "level": self.level,
            "models": [
                {
                    "result": str(each.path),
                    "model": each.model,
                    "clean_accuracy": each.clean.model_dump(),
                    "robust_accuracy": each.robust.model_dump(),
                    "groups": each.groups,
                    "verdict": each.verdict,
                    "doubts": [warning.sentence for warning in each.warnings],
                    "warnings": [asdict(warning) for warning in each.warnings],
                }
                for each in self.ranked
            ],
            "p_values": [{"models": list(pair), "p": p} for pair, p in self.p_values.items()],
            "attacks": [asdict(each) for each in self.attacks],
            "pair": None if self.pair is None else asdict(self.pair),
        }


def compare(paths: Sequence[Path], alpha: float = 0.05) -> Comparison:
    """Compare result files of the same samples, the earlier result first.

    alpha: intervals have level 1 − alpha, and models differ where the adjusted p-value is below alpha. Raises UserError
    for files that cannot be read, for fewer than two files, and for a file given twice.
    """
    if len(paths) < 2:
        raise UserError("a comparison needs at least two results: robust compare A.json B.json", slug="too-few-results")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("the same result is given twice: name each once", slug="duplicate-result")
    results = [EvaluatedResult.read(path) for path in paths]
    first = results[0]
    refusals = [_prefixed(each, reason) for each in results if (reason := untrusted(each.result))]
    refusals += [_prefixed(each, reason) for each in results[1:] if (reason := incomparable_reason(each, first))]
    threat, data, n = threat_name(first.result.threat_model), first.result.data.name, first.result.data.n
    if refusals:
        unique = list(dict.fromkeys(refusals))
        return Comparison(list(paths), 1 - alpha, unique, threat, data, n, [], {}, [], None)
    ranked, p_values = _ranked(results, alpha)
    pair = _pair(results[0], results[1], alpha) if len(results) == 2 else None
    return Comparison(list(paths), 1 - alpha, [], threat, data, n, ranked, p_values, _attacks(results), pair)


def _prefixed(each: EvaluatedResult, reason: Reason) -> Reason:
    return Reason(reason.slug, f"{each.path}: {reason.sentence}")


def _pair(before: EvaluatedResult, now: EvaluatedResult, alpha: float) -> Pair:
    all_indices = list(now.samples)
    by_class: dict[int, list[int]] = {}
    for index, sample in now.samples.items():
        by_class.setdefault(sample.label, []).append(index)
    classes = [
        ClassChange(
            label,
            now.class_name(label),
            _change(before, now, indices, is_correct, alpha),
            _change(before, now, indices, is_robust, alpha),
        )
        for label, indices in sorted(by_class.items())
    ]
    return Pair(
        _change(before, now, all_indices, is_correct, alpha),
        _change(before, now, all_indices, is_robust, alpha),
        flips(before, now),
        classes,
    )


def _change(
    before: EvaluatedResult,
    now: EvaluatedResult,
    indices: list[int],
    test: Callable[[SampleRecord], bool],
    alpha: float,
) -> Change:
    old, new = ([test(each.samples[index]) for index in indices] for each in (before, now))
    lost, gained = lost_and_gained(old, new)
    n = len(indices)
    # Two one-sided bounds at alpha / 2 each make a two-sided interval.
    low, high = drop_bounds(lost, gained, n, alpha / 2)
    return Change(
        sum(old) / n,
        sum(new) / n,
        (gained - lost) / n,
        -high,
        -low,
        lost,
        gained,
        n,
        two_sided(lost, gained),
        two_sided(lost, gained, mid_p=True),
    )


def two_sided(lost: int, gained: int, *, mid_p: bool = False) -> float:
    """Two-sided p-value of McNemar's test (1947) on the discordant pairs; exact unless mid_p."""
    return min(1.0, 2 * mcnemar(max(lost, gained), min(lost, gained), mid_p=mid_p))


def _attacks(results: Sequence[EvaluatedResult]) -> list[AttackChange]:
    """Every attack in the order it ran; an attack that ran several times has a line for each run."""
    tables = []
    for each in results:
        count: Counter[str] = Counter()
        table = {}
        for attack in each.result.attacks:
            count[attack.name] += 1
            table[attack.name, count[attack.name]] = attack
        tables.append(table)
    lines = []
    for key in dict.fromkeys(key for table in tables for key in table):
        reports = [table.get(key) for table in tables]
        lines.append(
            AttackChange(
                key[0],
                next(report.role for report in reports if report is not None),
                [None if report is None else report.robust_accuracy_after for report in reports],
                [None if report is None else report.fooled for report in reports],
            )
        )
    return lines


def _ranked(results: Sequence[EvaluatedResult], alpha: float) -> tuple[list[Ranked], dict[tuple[int, int], float]]:
    """The models by decreasing robust accuracy with their letters, and the adjusted p-value of every pair."""
    order = sorted(results, key=lambda each: -each.result.robust_accuracy.correct)
    outcomes = [[is_robust(each.samples[index]) for index in order[0].samples] for each in order]
    pairs = list(itertools.combinations(range(len(order)), 2))
    adjusted = holm([two_sided(*lost_and_gained(outcomes[i], outcomes[j])) for i, j in pairs])
    p_values = dict(zip(pairs, adjusted, strict=True))
    letters = group_letters(len(order), {pair for pair, p in p_values.items() if p >= alpha})
    ranked = [
        Ranked(
            each.path,
            each.result.model.name,
            each.result.clean_accuracy,
            each.result.robust_accuracy,
            groups,
            each.result.verdict.status,
            warnings(each.result),
        )
        for each, groups in zip(order, letters, strict=True)
    ]
    return ranked, p_values


def group_letters(count: int, alike: set[tuple[int, int]]) -> list[str]:
    """Letters for models 0 … count - 1, so that two models share a letter exactly where they are alike.

    alike: the pairs (i, j), i < j, that do not differ. Each letter is a maximal group of models that are all alike; a
    is the group of the first model.
    """
    neighbors = {i: {j for j in range(count) if (min(i, j), max(i, j)) in alike and i != j} for i in range(count)}
    groups: list[list[int]] = []

    def grow(group: list[int], candidates: set[int], done: set[int]) -> None:
        """Find every maximal clique (Bron and Kerbosch, 1973)."""
        if not candidates and not done:
            groups.append(sorted(group))
        for each in sorted(candidates):
            grow([*group, each], candidates & neighbors[each], done & neighbors[each])
            candidates = candidates - {each}
            done = done | {each}

    grow([], set(range(count)), set())
    letters = [""] * count
    for number, group in enumerate(sorted(groups)):
        for each in group:
            letters[each] += letter(number)
    return letters


def letter(number: int) -> str:
    """The letter of a group: a, b, …, z, a1, b1, … for 0, 1, …."""
    name = "abcdefghijklmnopqrstuvwxyz"[number % 26]
    return name + (str(number // 26) if number >= 26 else "")
