"""The table of an evaluation: the clean pass, the suite's attacks, what looked for more, and all of it together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.table import Table

from robustbench_local.display.fitted_table import Row, fitted_table
from robustbench_local.results.schema import Accuracy, AttackReport, Cost, CostPart, Result

HEADING = Row("after", ("accuracy", "95 % interval", "fooled", "passes", "seconds"))
LAYOUTS = (((0,), (1,), (2,), (3,), (4,)), ((0, 1), (2,), (3, 4)), ((0, 1, 2, 3, 4),))
NO_NUMBERS = ("", "", "", "", "")


def result_table(result: Result, width: int) -> Table:
    """The table in at most `width` columns, down to about 36."""
    return fitted_table(HEADING, _rows(result), LAYOUTS, width, name=24)


def spaced(attack: str) -> str:
    """The name of an attack with spaces where it may wrap: before its settings and between them."""
    return re.sub(r":(?=[\w-]+=)", ": ", attack).replace(",", ", ")


def cost_of_looking(cost: Cost) -> str:
    """How many passes checks, probes and adaptive attacks took; empty where the result does not say."""
    suite = cost.part("suite")
    if suite is None:
        return ""
    passes = sum(part.passes for part in cost.parts or () if part.name not in ("clean pass", "suite"))
    return f"looking: {passes:,} passes" + (f", {passes / suite.passes:.2f} of the suite's" if suite.passes else "")


def _rows(result: Result) -> list[Row]:
    clean, robust, cost = result.clean_accuracy, result.robust_accuracy, result.cost
    probes, adaptive = (
        [attack for attack in result.attacks if attack.role == role] for role in ("diagnostic", "adaptive")
    )
    suite = [attack for attack in result.attacks if attack.role not in ("diagnostic", "adaptive")]
    table = _Rows(result)
    first, checks = cost.part("clean pass"), cost.part("checks")
    passes, seconds = _spent(first) if first else (f"{clean.n:,}", "")
    rows = [Row("clean", (*_accuracy(clean), "", passes, seconds)), *table.of_attacks([[attack] for attack in suite])]
    if checks:
        rows.append(Row("checks", ("", "", "", *_spent(checks)), section=True))
    if probes:
        rows += table.of_probes(_by_name(probes), section=checks is None)
    if adaptive:
        rows.append(Row("adaptive attacks", NO_NUMBERS, section=True))
        rows += table.of_attacks(_by_name(adaptive))
    fooled = f"{clean.correct - robust.correct} of {clean.correct}"
    passes = f"{cost.forward_passes + cost.backward_passes:,}"
    return [*rows, Row("all attacks", (*_accuracy(robust), fooled, passes, f"{cost.seconds:.1f}"), total=True)]


class _Rows:
    """Makes the rows of attacks in the order of the table, and counts down what they leave robust."""

    def __init__(self, result: Result) -> None:
        self._robust, self._n = result.clean_accuracy.correct, result.data.n

    def of_attacks(self, attacks: Sequence[Sequence[AttackReport]]) -> Iterator[Row]:
        """A row for each attack, which may have run several times, on other samples each time."""
        for reports in attacks:
            yield self._row(spaced(reports[0].name), reports, sum(report.attacked for report in reports))

    def of_probes(self, probes: Sequence[Sequence[AttackReport]], *, section: bool) -> Iterator[Row]:
        """One row where no probe has fooled anything; otherwise a row for each."""
        asked = max(sum(report.attacked for report in reports) for reports in probes)
        name = f"probes: {asked:,} image{'' if asked == 1 else 's'} asked"
        reports = [report for each in probes for report in each]
        if any(report.fooled for report in reports):
            yield Row(name, NO_NUMBERS, section=True)
            yield from self.of_attacks(probes)
        else:
            row = self._row(name, reports, asked)
            yield Row(row.name, row.cells, section=section)

    def _row(self, name: str, reports: Sequence[AttackReport], attacked: int) -> Row:
        fooled = sum(report.fooled for report in reports)
        self._robust -= fooled
        passes = sum(report.forward_passes + report.backward_passes for report in reports)
        seconds = sum(report.seconds for report in reports)
        after = _accuracy(Accuracy.of(self._robust, self._n))
        return Row(name, (*after, f"{fooled} of {attacked}", f"{passes:,}", f"{seconds:.1f}"))


def _by_name(attacks: Sequence[AttackReport]) -> list[list[AttackReport]]:
    """The reports of each attack, in the order in which they first ran."""
    groups: dict[str, list[AttackReport]] = {}
    for attack in attacks:
        groups.setdefault(attack.name, []).append(attack)
    return list(groups.values())


def _spent(part: CostPart) -> tuple[str, str]:
    return f"{part.passes:,}", f"{part.seconds:.1f}"


def _accuracy(accuracy: Accuracy) -> tuple[str, str]:
    return f"{accuracy.value:.1%}", f"[{accuracy.confidence.low:.1%}, {accuracy.confidence.high:.1%}]"
