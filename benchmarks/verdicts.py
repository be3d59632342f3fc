"""Broken defenses and honest models: the accuracy claimed, the one that `robust` reports, and the best attack's.

    python benchmarks/verdicts.py [--part broken|honest|published|cost] [--data digits|fashion] [--suite fast]

Broken defenses (tests/zoo) must be flagged, and their accuracy be within two points of what the best adaptive attack
written for them leaves. Honest models must raise no warning. `cost` compares the passes of all checks with those of
`autoattack/1`, on 1,000 images. Results go to benchmarks/results/verdicts.json, a section for each part and dataset.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / room) for room in ("zoo", "support")]

import honest  # noqa: E402 – in the tests' directory
import members  # noqa: E402
from subjects import FOLDER, all_subjects  # noqa: E402
from tasks import task  # noqa: E402

from robustbench_local import Classifier, ThreatModel, evaluate  # noqa: E402
from robustbench_local.data.dataset import Dataset  # noqa: E402
from robustbench_local.results.schema import Result  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "verdicts.json"
SEARCH = ("search", "follow-up", "probe", "tail", "solver")


def summary(result: Result) -> dict[str, Any]:
    """The main numbers of a result."""
    suite = [report.robust_accuracy_after for report in result.attacks if report.role in SEARCH]
    return {
        "clean": result.clean_accuracy.value,
        "suite": suite[-1] if suite else result.clean_accuracy.value,
        "reported": result.robust_accuracy.value,
        "verdict": result.verdict.status,
        "flagged_by": [each.slug for each in result.diagnostics if each.status in ("warn", "fail")],
        "adaptive": [
            f"{each.name}: {each.fooled}" for each in result.attacks if each.role == "adaptive" and each.fooled
        ],
        "n": result.data.n,
        "forward": result.cost.forward_passes,
        "backward": result.cost.backward_passes,
    }


def evaluated(classifier: Classifier, dataset: Dataset, threat_model: ThreatModel, suite: str) -> dict[str, Any]:
    start = time.process_time()
    row = summary(evaluate(classifier, dataset, threat_model, suite=suite, device="cpu").result)
    return {**row, "seconds": round(time.process_time() - start, 1)}


def write_row(section: str, name: str, row: dict[str, Any]) -> None:
    """Write every row at once, so that an interrupted run loses nothing."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    rows.setdefault(section, {})[name] = row
    RESULTS.write_text(json.dumps({**rows, "machine": machine()}, indent=1) + "\n")


def broken(data: str, suite: str, names: list[str], samples: int) -> None:
    for name, member in members.members(data).items():
        if names and name not in names:
            continue
        classifier, test = member.build(), task(data).test
        test = test.subset(range(min(samples, len(test))))
        images, labels = test.images(range(len(test))), test.labels
        claimed = float(member.claimed(classifier, images, labels).float().mean())
        row = evaluated(classifier, test, member.threat_model, suite)
        best = float(member.adaptive(classifier, images, labels, member.threat_model).float().mean())
        write_row(
            f"broken-{data}-{suite}",
            name,
            {
                "about": member.about,
                "eps": member.threat_model.eps_text,
                "claimed": claimed,
                **row,
                "best_adaptive": best,
            },
        )
        print(
            f"| {name} | {row['clean']:.1%} | {claimed:.1%} | {row['suite']:.1%} | {row['reported']:.1%} | "
            f"{best:.1%} | {row['verdict']} | {'; '.join(row['flagged_by'])} |",
            flush=True,
        )


def honest_ones(section: str, ones: list[honest.Honest], suite: str, names: list[str]) -> None:
    for one in ones:
        if names and one.name not in names:
            continue
        row = evaluated(one.build(), one.dataset(), one.threat_model, suite)
        write_row(section, one.name, {"eps": one.threat_model.eps_text, **row})
        print(
            f"| {one.name} | {row['clean']:.1%} | {row['reported']:.1%} | {row['verdict']} | "
            f"{'; '.join(row['flagged_by'])} |",
            flush=True,
        )


def cost(names: list[str]) -> None:
    """Passes of preflight and diagnostics compared with those of autoattack/1 on the same images."""
    for name, subject in all_subjects().items():
        if name not in names:
            continue
        classifier, dataset = subject.classifier(FOLDER), subject.dataset(FOLDER)
        dataset = dataset.subset(range(min(1000, len(dataset))))
        passes = {}
        for suite, checks in (("fast", False), ("fast", True), ("autoattack", False)):
            result = evaluate(
                classifier, dataset, subject.threat_model, suite=suite, diagnostics=checks, device="cpu"
            ).result
            passes[suite, checks] = result.cost.forward_passes + result.cost.backward_passes
            attacks = sum(report.forward_passes + report.backward_passes for report in result.attacks)
            if not checks and suite == "fast":
                before = passes[suite, checks] - attacks - len(dataset)
        checking = before + passes["fast", True] - passes["fast", False]
        row = {
            "n": len(dataset),
            "stands": result.robust_accuracy.value,
            "preflight": before,
            "looking": checking,
            "autoattack": passes["autoattack", False],
            "share": checking / passes["autoattack", False],
        }
        write_row("cost", name, row)
        print(
            f"| {name} | {len(dataset)} | {row['stands']:.1%} | {checking:,} | {row['autoattack']:,} | "
            f"{row['share']:.2%} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--part", choices=["broken", "honest", "published", "cost"], default="broken")
    parser.add_argument("--data", choices=["digits", "fashion"], default="digits")
    parser.add_argument("--suite", default="fast")
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "broken":
        broken(options.data, options.suite, options.names, options.samples)
    elif options.part == "cost":
        cost(options.names or ["salman_mnist_lpd_mlp_b_0.1:linf-0.1", "salman_mnist_lpd_mlp_b_0.3:linf-0.3"])
    else:
        trained = [*honest.trained(options.data).values(), honest.undefended_honest(options.data)]
        ones = trained if options.part == "honest" else honest.published_honest()
        honest_ones(f"{options.part}-{options.data}-{options.suite}", ones, options.suite, options.names)


if __name__ == "__main__":
    main()
