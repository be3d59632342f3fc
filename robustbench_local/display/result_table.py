"""The table of an evaluation: the clean pass, each attack, and all of them."""

from __future__ import annotations

import re

from rich.table import Table

from robustbench_local.display.fitted_table import Row, fitted_table
from robustbench_local.results.schema import Accuracy, Result

HEADING = Row("after", ("accuracy", "95 % interval", "fooled", "passes", "seconds"))
LAYOUTS = (((0,), (1,), (2,), (3,), (4,)), ((0, 1), (2,), (3, 4)), ((0, 1, 2, 3, 4),))


def result_table(result: Result, width: int) -> Table:
    """The table in at most `width` columns, down to about 36."""
    return fitted_table(HEADING, _rows(result), LAYOUTS, width, name=24)


def spaced(attack: str) -> str:
    """The name of an attack with spaces where it may wrap: before its settings and between them."""
    return re.sub(r":(?=[\w-]+=)", ": ", attack).replace(",", ", ")


def _rows(result: Result) -> list[Row]:
    clean, robust, cost = result.clean_accuracy, result.robust_accuracy, result.cost
    rows = [Row("clean", (*_accuracy(clean), "", f"{clean.n:,}", ""))]
    for attack in result.attacks:
        if attack.role in ("diagnostic", "adaptive") and not attack.fooled:
            continue
        after = Accuracy.of(round(attack.robust_accuracy_after * result.data.n), result.data.n)
        passes = f"{attack.forward_passes + attack.backward_passes:,}"
        fooled = f"{attack.fooled} of {attack.attacked}"
        name = spaced(attack.name)
        rows.append(Row(name, (*_accuracy(after), fooled, passes, f"{attack.seconds:.1f}")))
    fooled = f"{clean.correct - robust.correct} of {clean.correct}"
    passes = f"{cost.forward_passes + cost.backward_passes:,}"
    return [*rows, Row("all attacks", (*_accuracy(robust), fooled, passes, f"{cost.seconds:.1f}"), total=True)]


def _accuracy(accuracy: Accuracy) -> tuple[str, str]:
    return f"{accuracy.value:.1%}", f"[{accuracy.confidence.low:.1%}, {accuracy.confidence.high:.1%}]"
