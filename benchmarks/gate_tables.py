"""Markdown tables of gate_statistics.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def tables(content: dict[str, Any]) -> str:
    """The results of gate_statistics.py as Markdown tables."""
    draws = content["floors"][0]["draws"]
    error = percent(math.sqrt(0.05 * 0.95 / draws))
    lines = [*error_rates(content), "", *power_table(content), "", *sequential_table(content), ""]
    return "\n".join([*lines, f"At 5 %, {draws:,} draws leave a standard error of {error}."])


def percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"


def error_rates(content: dict[str, Any]) -> list[str]:
    """The worst error rate of each part, and that of the simpler rule."""
    lines = ["| what | at worst | naive, at worst | where |", "|---|---|---|---|"]

    def worst(part: str, what: str, key: str, naive: str | None, where: Callable[[dict[str, Any]], str]) -> None:
        rows = [row for row in content[part] if key in row]
        row = max(rows, key=lambda each: each[key])
        beside = percent(max(each[naive] for each in rows)) if naive else "–"
        lines.append(f"| {what} | {percent(row[key])} | {beside} | {where(row)}, {row['draws']:,} draws |")

    def at_floor(row: dict[str, Any]) -> str:
        return f"n = {row['n']:,}, limit {row['limit']:.0%}"

    def at_drop(row: dict[str, Any]) -> str:
        return f"{at_floor(row)}, {row['discordance']:.0%} change sides"

    for how in ("", "exact_"):
        label = ", summed exactly" if how else ""
        worst("floors", f"floor wrongly passed{label}", f"{how}wrong_pass", None, at_floor)
        worst("floors", f"floor wrongly failed{label}", f"{how}wrong_fail", "naive_wrong_fail", at_floor)
        worst("drops", f"drop wrongly passed{label}", f"{how}wrong_pass", None, at_drop)
        worst("drops", f"drop wrongly failed{label}", f"{how}wrong_fail", "naive_wrong_fail", at_drop)
    worst(
        "holm",
        "any of several limits wrongly failed",
        "any_wrong_fail",
        "naive_any_wrong_fail",
        lambda row: f"{row['limits']} limits, {row['broken']} truly broken",
    )
    worst(
        "sequential",
        "sequential, wrong either way",
        "wrong",
        "naive_wrong",
        lambda row: f"{row['correct']:,} of {row['population']:,} correct, limit {row['limit']:.0%}",
    )
    return lines


def power_table(content: dict[str, Any]) -> list[str]:
    """How often drops away from the limit pass and fail."""
    lines = [
        "| n | largest drop | true drop | change sides | fails | passes | fails without mid-p | fails unpaired |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in content["power"]:
        beside = [percent(row[key]) if key in row else "–" for key in ("fail_without_mid_p", "fail_unpaired")]
        lines.append(
            f"| {row['n']:,} | {row['limit']:.0%} | {row['drop']:.0%} | {row['discordance']:.0%} | "
            f"{percent(row['fail'])} | {percent(row['pass'])} | {beside[0]} | {beside[1]} |"
        )
    return lines


def sequential_table(content: dict[str, Any]) -> list[str]:
    """How many samples a sequential floor needs."""
    lines = [
        "| set | limit | correct | samples, mean | share | nine in ten within | wrong |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['population']:,} | {row['limit']:.0%} | {row['correct'] / row['population']:.2%} | "
        f"{row['mean_samples']:,.0f} | {row['mean_share']:.1%} | {row['samples_of_nine_in_ten']:,} | "
        f"{percent(row['wrong'])} |"
        for row in content["sequential"]
    ]
    return lines
