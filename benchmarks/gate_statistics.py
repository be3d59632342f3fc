"""Error rates and power of the gate, simulated with the gate's own decisions.

    python benchmarks/gate_statistics.py [--draws 1000000] [--runs 40000] [--seed 0]

floors: how often a floor wrongly passes and wrongly fails where the true accuracy equals the limit.
drops: the same for a largest drop on paired samples.
power: how often the paired test detects a drop, and how often a model without a drop passes.
holm: how often any of several limits that hold is failed.
sequential: a floor that is tested after every sample of a finite set, drawn in random order.
Each is compared with a simpler rule: the measured value against the limit, every limit tested alone, the bounds for a
fixed number of samples tested repeatedly. draws: simulated counts for the first three; runs: simulated evaluations. The
exact probability is stored too where it is cheap.

A decision depends on the counts only and is monotone in each of them (tests/statistics), so the simulation computes
where it changes and looks it up for every draw.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from gate_tables import tables
from machine import machine
from scipy import stats

from robustbench_local.gates.limits import Drop, Floor, Limit, failing
from robustbench_local.io.atomic_write import write_atomically
from robustbench_local.statistics.intervals import mcnemar

RESULTS = Path(__file__).parent / "results" / "gate_statistics.json"
ALPHA = 0.05
SIZES = (100, 500, 1000, 10_000)
FLOORS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
DROPS = (0.0, 0.01, 0.02, 0.03)
DISCORDANCES = (0.03, 0.06, 0.1, 0.2)
SEQUENTIAL_LIMITS = (0.3, 0.5, 0.7, 0.9)
Rows = list[dict[str, Any]]


def least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The least number in low … high - 1 for which `holds` is true, or high; `holds` is monotone."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def floor(correct: int, n: int, limit: float) -> Floor:
    return Floor("min_robust", "robust accuracy", correct, n, limit, n)


def drop(lost: int, gained: int, n: int, limit: float) -> Drop:
    return Drop("max_drop", "robust accuracy", lost, gained, n, limit, n)


# Floors.


@cache
def correct_to_pass(n: int, limit: float) -> int:
    """The fewest correct samples with which the floor passes."""
    return least(0, n + 1, lambda k: floor(k, n, limit).passes(ALPHA))


@cache
def correct_to_hold(n: int, limit: float) -> int:
    """The fewest correct samples with which the floor does not fail."""
    return least(0, n + 1, lambda k: not floor(k, n, limit).fails(ALPHA))


def floors(draws: int, rng: np.random.Generator) -> Rows:
    rows = []
    for n in SIZES:
        for limit in FLOORS:
            passes, holds = correct_to_pass(n, limit), correct_to_hold(n, limit)
            correct = rng.binomial(n, limit, draws)
            rows.append(
                {
                    "n": n,
                    "limit": limit,
                    "draws": draws,
                    "wrong_pass": float((correct >= passes).mean()),
                    "wrong_fail": float((correct < holds).mean()),
                    "exact_wrong_pass": float(stats.binom.sf(passes - 1, n, limit)),
                    "exact_wrong_fail": float(stats.binom.cdf(holds - 1, n, limit)),
                    "naive_wrong_fail": float((correct / n < limit).mean()),
                }
            )
    return rows


# Drops.


def gained_to_pass(lost: np.ndarray, n: int, limit: float) -> np.ndarray:
    """For each number of lost samples the fewest gained samples with which the drop passes."""
    return np.array([least(0, n - k + 1, lambda g, k=k: drop(k, g, n, limit).passes(ALPHA)) for k in lost.tolist()])


def gained_to_hold(lost: np.ndarray, n: int, limit: float) -> np.ndarray:
    """For each number of lost samples the fewest gained samples with which the drop does not fail."""
    return np.array([least(0, n - k + 1, lambda g, k=k: not drop(k, g, n, limit).fails(ALPHA)) for k in lost.tolist()])


def drop_rates(
    n: int, limit: float, truth: float, discordance: float, draws: int, rng: np.random.Generator
) -> dict[str, float]:
    """How often a largest drop passes and fails, simulated and exact."""
    lose, gain = (discordance + truth) / 2, (discordance - truth) / 2
    counts = rng.multinomial(n, [lose, gain, 1 - discordance], draws)
    lost = np.arange(counts[:, 0].min(), counts[:, 0].max() + 1)
    passing, holding = gained_to_pass(lost, n, limit), gained_to_hold(lost, n, limit)
    drawn, gained = counts[:, 0] - lost[0], counts[:, 1]
    # Given the lost samples, every other sample is gained with the same probability.
    weights, others = stats.binom.pmf(lost, n, lose), gain / (1 - lose)
    return {
        "pass": float((gained >= passing[drawn]).mean()),
        "fail": float((gained < holding[drawn]).mean()),
        "exact_pass": float(weights @ stats.binom.sf(passing - 1, n - lost, others)),
        "exact_fail": float(weights @ stats.binom.cdf(holding - 1, n - lost, others)),
        "naive_fail": float((counts[:, 0] - gained > round(limit * n, 6)).mean()),
    }


def drops(draws: int, rng: np.random.Generator) -> Rows:
    """The true drop equals the limit."""
    return [
        {"n": n, "limit": limit, "discordance": discordance, "draws": draws}
        | {
            name.replace("pass", "wrong_pass").replace("fail", "wrong_fail"): rate
            for name, rate in drop_rates(n, limit, limit, discordance, draws, rng).items()
        }
        for n in SIZES
        for limit in DROPS
        for discordance in DISCORDANCES
    ]


def power(draws: int, rng: np.random.Generator) -> Rows:
    """With a true drop away from the limit; also with independent samples for each model, and without mid-p."""
    rows = []
    for n, limit, truth, discordance in (
        (200, 0.0, 0.02, 0.06),
        (500, 0.0, 0.02, 0.06),
        (1000, 0.0, 0.02, 0.06),
        (2000, 0.0, 0.02, 0.06),
        (1000, 0.02, 0.0, 0.03),
        (1000, 0.02, 0.0, 0.06),
        (1000, 0.02, 0.05, 0.08),
        (10_000, 0.01, 0.0, 0.06),
        (10_000, 0.01, 0.02, 0.06),
    ):
        row = {"n": n, "limit": limit, "drop": truth, "discordance": discordance, "draws": draws}
        rows.append(row | drop_rates(n, limit, truth, discordance, draws, rng))
        if limit == 0:
            counts = rng.multinomial(n, [(discordance + truth) / 2, (discordance - truth) / 2, 1 - discordance], draws)
            changed, times = np.unique(counts[:, :2], axis=0, return_counts=True)
            strict = np.array([mcnemar(*pair) < ALPHA for pair in changed.tolist()])
            rows[-1]["fail_without_mid_p"] = float(times[strict].sum() / draws)
            rows[-1]["fail_unpaired"] = unpaired(n, truth, draws, rng)
    return rows


def unpaired(n: int, truth: float, draws: int, rng: np.random.Generator) -> float:
    """How often two independent sets of n samples show a drop from 50 % (z-test, one-sided)."""
    old, new = rng.binomial(n, 0.5, draws) / n, rng.binomial(n, 0.5 - truth, draws) / n
    z = (old - new) / np.sqrt((old * (1 - old) + new * (1 - new)) / n)
    return float((z > stats.norm.isf(ALPHA)).mean())


# Several gates.


def holm(runs: int, rng: np.random.Generator) -> Rows:
    """K limits, alternately floors and drops, on 1,000 samples: some broken, the others exactly at the limit.

    naive: every limit is tested alone.
    """
    n, rows = 1000, []
    for k in (2, 5, 10, 20):
        for broken in (0, k // 2):
            wrong = naive = detected = 0
            for row in zip(*(simulated_limits(i % 2 == 0, i < broken, n, runs, rng) for i in range(k)), strict=True):
                failed = failing(row, ALPHA)
                wrong += any(failed[broken:])
                naive += any(limit.fails(ALPHA) for limit in row[broken:])
                detected += all(failed[:broken])
            rows.append(
                {
                    "limits": k,
                    "broken": broken,
                    "n": n,
                    "draws": runs,
                    "any_wrong_fail": wrong / runs,
                    "naive_any_wrong_fail": naive / runs,
                    "all_broken_failed": detected / runs if broken else None,
                }
            )
    return rows


def simulated_limits(is_floor: bool, broken: bool, n: int, runs: int, rng: np.random.Generator) -> list[Any]:
    """A limit for each run. Equal counts share one limit, which caches its decisions."""
    if is_floor:
        counts = rng.binomial(n, 0.43 if broken else 0.5, (runs, 1)).tolist()
        make = cache(lambda correct: caching(floor(correct, n, 0.5)))
    else:
        truth, discordance = (0.05 if broken else 0.01), 0.08
        shares = [(discordance + truth) / 2, (discordance - truth) / 2, 1 - discordance]
        counts = rng.multinomial(n, shares, runs)[:, :2].tolist()
        make = cache(lambda lost, gained: caching(drop(lost, gained, n, 0.01)))
    return [make(*each) for each in counts]


def caching(limit: Limit) -> SimpleNamespace:
    return SimpleNamespace(fails=cache(limit.fails))


# Testing after every sample.


def sequential(runs: int, rng: np.random.Generator) -> Rows:
    """True accuracies at the limit, one sample below it, and five points off; naive: fixed bounds every 100 samples."""
    rows = []
    for population in (1000, 10_000):
        for limit in SEQUENTIAL_LIMITS:
            needed = math.ceil(round(limit * population, 6))
            boundaries = sequential_boundaries(population, limit)
            off = population // 20
            for truth in (needed, needed - 1, needed + off, needed - off):
                holds = truth >= needed
                passed, samples = walk(truth, population, *boundaries, runs, rng)
                rows.append(
                    {
                        "population": population,
                        "limit": limit,
                        "correct": truth,
                        "draws": runs,
                        "wrong": float((passed != holds).mean()),
                        "mean_samples": float(samples.mean()),
                        "mean_share": float(samples.mean() / population),
                        "samples_of_nine_in_ten": int(np.quantile(samples, 0.9)),
                        "naive_wrong": naive_peeking(truth, population, limit, holds, runs, rng),
                    }
                )
    return rows


def sequential_boundaries(population: int, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """After 0 … population samples: the fewest correct samples that pass, and the fewest that do not fail.

    Both grow by at most one with each sample.
    """
    passes, holds = np.ones(population + 1, dtype=int), np.zeros(population + 1, dtype=int)
    for n in range(1, population + 1):

        def decision(correct: int, n: int = n) -> Floor:
            return Floor("min_robust", "robust accuracy", correct, n, limit, population, finite=True)

        least_passing, least_holding = passes[n - 1], holds[n - 1]
        passes[n] = least_passing + (least_passing <= n and not decision(least_passing).passes(ALPHA))
        holds[n] = least_holding + decision(least_holding).fails(ALPHA)
    return passes, holds


def walk(
    truth: int, population: int, passes: np.ndarray, holds: np.ndarray, runs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each run passed, and after how many samples it was decided."""
    passed, samples = np.zeros(runs, dtype=bool), np.zeros(runs, dtype=int)
    open_runs, correct = np.arange(runs), np.zeros(runs, dtype=int)
    for n in range(1, population + 1):
        correct += rng.random(len(correct)) * (population - n + 1) < truth - correct
        passing, failing_now = correct >= passes[n], correct < holds[n]
        done = passing | failing_now
        passed[open_runs[passing]] = True
        samples[open_runs[done]] = n
        open_runs, correct = open_runs[~done], correct[~done]
        if not len(open_runs):
            return passed, samples
    raise AssertionError(f"{len(open_runs)} runs were not decided by the whole set")


def naive_peeking(truth: int, population: int, limit: float, holds: bool, runs: int, rng: np.random.Generator) -> float:
    """How often fixed-sample bounds decide wrongly where they are tested after every hundred samples.

    What they leave open is decided by the whole set.
    """
    correct, wrong = np.zeros(runs, dtype=int), 0
    for n in range(100, population, 100):
        left = population - (n - 100)
        correct += rng.hypergeometric(truth - correct, left - (truth - correct), 100)
        passing, failing_now = correct >= correct_to_pass(n, limit), correct < correct_to_hold(n, limit)
        wrong += int((failing_now if holds else passing).sum())
        correct = correct[~(passing | failing_now)]
    return wrong / runs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    content: dict[str, Any] = {
        "command": "python benchmarks/gate_statistics.py",
        "machine": machine(),
        "seed": options.seed,
        "alpha": ALPHA,
    }
    began = time.process_time()
    for number, (part, many) in enumerate(
        (
            (floors, options.draws),
            (drops, options.draws),
            (power, options.draws),
            (holm, options.runs),
            (sequential, options.runs),
        )
    ):
        content[part.__name__] = part(many, np.random.default_rng([options.seed, number]))
        print(f"{part.__name__}: {time.process_time() - began:.0f} s of processor time", flush=True)
    content["processor_seconds"] = time.process_time() - began
    write_atomically(RESULTS, json.dumps(content, indent=1) + "\n")
    print("\n" + tables(content))


if __name__ == "__main__":
    main()
