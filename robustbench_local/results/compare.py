"""Two or more results of the same samples: what changed, how sure that is, and which models cannot be told apart."""

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
from robustbench_local.results.schema import Accuracy, SampleRecord
from robustbench_local.statistics.intervals import drop_bounds, holm, mcnemar

SCHEMA = "robustbench-local/compare/1"


@dataclass(frozen=True)
class Change:
    """What became of an accuracy from the first model to the second, on the same samples; fractions.

    change: the second's minus the first's. low, high: its two-sided interval of the comparison's level. p: exact paired
    test, two-sided, that losing and gaining are equally likely (McNemar). p_mid: the same, counting the observed split
    by half; it is the one that agrees with the interval.
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
    label: int
    name: str
    clean: Change
    robust: Change


@dataclass(frozen=True)
class AttackChange:
    """What the models had left after an attack, and how many fell for it; None where it was not run on one of them.

    role: what the attack is run for, as in the result file.
    """

    attack: str
    role: str
    left: list[float | None]
    fooled: list[int | None]


@dataclass(frozen=True)
class Pair:
    """Two models side by side, the first being the earlier one."""

    clean: Change
    robust: Change
    flips: list[Flip]
    classes: list[ClassChange]


@dataclass(frozen=True)
class Ranked:
    """A model among several. groups: letters; models that share one cannot be told apart by their robust accuracy.
    verdict: how far its evaluation is to be believed. doubts: why not outright.
    """

    path: Path
    model: str
    clean: Accuracy
    robust: Accuracy
    groups: str
    verdict: str
    doubts: list[str]


@dataclass(frozen=True)
class Comparison:
    """refusals: why the results cannot be compared; with any, there is nothing else. pair: of two results alone.

    p_values: for every two models by their position in `ranked`, adjusted for their number (Holm).
    """

    paths: list[Path]
    level: float
    refusals: list[str]
    threat: str
    data: str
    n: int
    ranked: list[Ranked]
    p_values: dict[tuple[int, int], float]
    attacks: list[AttackChange]
    pair: Pair | None

    def to_dict(self) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "comparable": not self.refusals,
            "reasons": self.refusals,
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
                    "doubts": each.doubts,
                }
                for each in self.ranked
            ],
            "p_values": [{"models": list(pair), "p": p} for pair, p in self.p_values.items()],
            "attacks": [asdict(each) for each in self.attacks],
            "pair": None if self.pair is None else asdict(self.pair),
        }


def compare(paths: Sequence[Path], alpha: float = 0.05) -> Comparison:
    """Hold result files of the same samples side by side, in the given order.

    alpha: intervals are of level 1 − alpha, and models are told apart where the adjusted p-value is below it. Raises
    UserError for files that cannot be read, and where there are fewer than two or one is given twice.
    """
    if len(paths) < 2:
        raise UserError("a comparison needs two results at least: robust compare A.json B.json")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("the same result is given twice: name each once")
    results = [EvaluatedResult.read(path) for path in paths]
    first = results[0]
    refusals = [f"{each.path} {reason}" for each in results if (reason := untrusted(each.result))]
    refusals += [f"{each.path}: {reason}" for each in results[1:] if (reason := incomparable_reason(each, first))]
    info = (threat_name(first.result.threat_model), first.result.data.name, first.result.data.n)
    if refusals:
        return Comparison(list(paths), 1 - alpha, list(dict.fromkeys(refusals)), *info, [], {}, [], None)
    ranked, p_values = _ranked(results, alpha)
    return Comparison(
        list(paths),
        1 - alpha,
        [],
        *info,
        ranked,
        p_values,
        _attacks(results),
        _pair(results[0], results[1], alpha) if len(results) == 2 else None,
    )


def _pair(before: EvaluatedResult, now: EvaluatedResult, alpha: float) -> Pair:
    everything = list(now.samples)
    by_class: dict[int, list[int]] = {}
    for index, sample in now.samples.items():
        by_class.setdefault(sample.label, []).append(index)
    classes = [
        ClassChange(
            label,
            now.class_name(label),
            _change(before, now, members, is_correct, alpha),
            _change(before, now, members, is_robust, alpha),
        )
        for label, members in sorted(by_class.items())
    ]
    return Pair(
        _change(before, now, everything, is_correct, alpha),
        _change(before, now, everything, is_robust, alpha),
        flips(before, now),
        classes,
    )


def _change(
    before: EvaluatedResult, now: EvaluatedResult, members: list[int], of: Callable[[SampleRecord], bool], alpha: float
) -> Change:
    old, new = ([of(each.samples[index]) for index in members] for each in (before, now))
    lost, gained = lost_and_gained(old, new)
    n = len(members)
    # Two one-sided bounds, each wrong half as often, make an interval.
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
    """Paired test, two-sided, that losing and gaining are equally likely (McNemar, 1947); exact without mid_p."""
    return min(1.0, 2 * mcnemar(max(lost, gained), min(lost, gained), mid_p=mid_p))


def _attacks(results: Sequence[EvaluatedResult]) -> list[AttackChange]:
    """Every attack in the order it was run; one that was run several times has a line for each."""
    reports = []
    for each in results:
        count: Counter[str] = Counter()
        mine = {}
        for attack in each.result.attacks:
            count[attack.name] += 1
            mine[attack.name, count[attack.name]] = attack
        reports.append(mine)
    lines = []
    for key in dict.fromkeys(key for mine in reports for key in mine):
        found = [mine.get(key) for mine in reports]
        lines.append(
            AttackChange(
                key[0],
                next(attack.role for attack in found if attack is not None),
                [None if attack is None else attack.robust_accuracy_after for attack in found],
                [None if attack is None else attack.fooled for attack in found],
            )
        )
    return lines


def _ranked(results: Sequence[EvaluatedResult], alpha: float) -> tuple[list[Ranked], dict[tuple[int, int], float]]:
    """The models by falling robust accuracy, with letters, and the adjusted p-values of every two of them."""
    order = sorted(results, key=lambda each: -each.result.robust_accuracy.correct)
    outcomes = [[is_robust(each.samples[index]) for index in order[0].samples] for each in order]
    pairs = list(itertools.combinations(range(len(order)), 2))
    adjusted = holm([two_sided(*lost_and_gained(outcomes[i], outcomes[j])) for i, j in pairs])
    p_values = dict(zip(pairs, adjusted, strict=True))
    letters = _letters(len(order), {pair for pair, p in p_values.items() if p >= alpha})
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


def _letters(count: int, alike: set[tuple[int, int]]) -> list[str]:
    """A letter for each largest group of models that are all alike, in the order of the best of each."""
    neighbours = {i: {j for j in range(count) if (min(i, j), max(i, j)) in alike and i != j} for i in range(count)}
    groups: list[list[int]] = []

    def grow(group: list[int], candidates: set[int], done: set[int]) -> None:
        """Bron and Kerbosch (1973): every largest set of mutual neighbours."""
        if not candidates and not done:
            groups.append(sorted(group))
        for each in sorted(candidates):
            grow([*group, each], candidates & neighbours[each], done & neighbours[each])
            candidates = candidates - {each}
            done = done | {each}

    grow([], set(range(count)), set())
    letters = [""] * count
    for number, group in enumerate(sorted(groups)):
        for each in group:
            letters[each] += _letter(number)
    return letters


def _letter(number: int) -> str:
    """a, b, …, z, a1, b1, …"""
    letter = "abcdefghijklmnopqrstuvwxyz"[number % 26]
    return letter + (str(number // 26) if number >= 26 else "")
