"""Broken defenses and honest models: what is claimed, what `robust` reports, what the best adaptive attack leaves.

    python benchmarks/verdicts.py [--part broken|honest|published|cost] [--data digits|fashion] [--suite fast]

Broken ones (tests/zoo) must be flagged and end within two points of the best adaptive attack that was written for
them; honest ones must raise no warning. `cost` counts what looking costs beside `autoattack/1`, from 1,000 images.
Results go to benchmarks/results/verdicts.json, one section for each part and data.
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

import honest  # noqa: E402 – lies with the tests
import members  # noqa: E402
from subjects import FOLDER, all_subjects  # noqa: E402
from tasks import task  # noqa: E402

from robustbench_local import Classifier, ThreatModel, evaluate  # noqa: E402
from robustbench_local.data.dataset import Dataset  # noqa: E402
from robustbench_local.results.schema import Result  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "verdicts.json"
SEARCH = ("search", "follow-up", "probe", "tail", "solver")


def told(result: Result) -> dict[str, Any]:
    """What a result says, in short."""
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


def judged(classifier: Classifier, dataset: Dataset, threat_model: ThreatModel, suite: str) -> dict[str, Any]:
    began = time.process_time()
    row = told(evaluate(classifier, dataset, threat_model, suite=suite, device="cpu").result)
    return {**row, "seconds": round(time.process_time() - began, 1)}


def keep(section: str, name: str, row: dict[str, Any]) -> None:
    """Every row at once, so that a run that is stopped has not been in vain."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    kept.setdefault(section, {})[name] = row
    RESULTS.write_text(json.dumps({**kept, "machine": machine()}, indent=1) + "\n")


def broken(data: str, suite: str, names: list[str], samples: int) -> None:
    for name, member in members.members(data).items():
        if names and name not in names:
            continue
        classifier, test = member.build(), task(data).test
        test = test.subset(range(min(samples, len(test))))
        images, labels = test.images(range(len(test))), test.labels
        claimed = float(member.claimed(classifier, images, labels).float().mean())
        row = judged(classifier, test, member.threat_model, suite)
        best = float(member.adaptive(classifier, images, labels, member.threat_model).float().mean())
        keep(
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
        row = judged(one.build(), one.dataset(), one.threat_model, suite)
        keep(section, one.name, {"eps": one.threat_model.eps_text, **row})
        print(
            f"| {one.name} | {row['clean']:.1%} | {row['reported']:.1%} | {row['verdict']} | "
            f"{'; '.join(row['flagged_by'])} |",
            flush=True,
        )


def cost(names: list[str]) -> None:
    """Passes of preflight and diagnostics beside those of autoattack/1 on the same images."""
    for name, subject in all_subjects().items():
        if name not in names:
            continue
        classifier, dataset = subject.classifier(FOLDER), subject.dataset(FOLDER)
        dataset = dataset.subset(range(min(1000, len(dataset))))
        passes = {}
        for suite, assess in (("fast", False), ("fast", True), ("autoattack", False)):
            done = evaluate(classifier, dataset, subject.threat_model, suite=suite, diagnostics=assess, device="cpu")
            result = done.result
            passes[suite, assess] = result.cost.forward_passes + result.cost.backward_passes
            attacks = sum(report.forward_passes + report.backward_passes for report in result.attacks)
            if not assess and suite == "fast":
                before = passes[suite, assess] - attacks - len(dataset)
        looking = before + passes["fast", True] - passes["fast", False]
        row = {
            "n": len(dataset),
            "stands": result.robust_accuracy.value,
            "preflight": before,
            "looking": looking,
            "autoattack": passes["autoattack", False],
            "share": looking / passes["autoattack", False],
        }
        keep("cost", name, row)
        print(
            f"| {name} | {len(dataset)} | {row['stands']:.1%} | {looking:,} | {row['autoattack']:,} | "
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
