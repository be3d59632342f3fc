"""Broken defenses and honest models: the accuracy claimed, the one that `robust` reports, and the best attack's.

    python benchmarks/verdicts.py [--part broken|subtle|adaptive|honest|published|cost] [--data digits] [--suite fast]

Broken and subtle defenses (tests/zoo) must be flagged, and their accuracy be within two points of what the best
adaptive attack written for them leaves (`--norm` and `--eps` for another ball). Honest models must raise no warning.
`cost` compares the passes of all that looks for masking with those of the suite itself, under `fast` and `standard`.
`adaptive` measures only what is left of the defenses. Results go to benchmarks/results/verdicts.json, a section for
each part and dataset, or that which `--section` names.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from images import SHARED
from machine import machine
from torchvision.models import resnet18

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / room) for room in ("zoo", "support")]

import honest  # noqa: E402 – in the tests' directory
import members  # noqa: E402
from subjects import FOLDER, all_subjects, missing  # noqa: E402
from tasks import task  # noqa: E402

from robustbench_local import Classifier, ThreatModel, evaluate, load_dataset  # noqa: E402
from robustbench_local.data.dataset import ArrayDataset, Dataset  # noqa: E402
from robustbench_local.results.schema import Result  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "verdicts.json"
SEARCH = ("search", "follow-up", "probe", "tail", "solver")
COUNTED = ("fast", "standard")


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
    """Write every row at once, so that an interrupted run loses nothing; several runs may write at the same time."""
    folder = os.open(RESULTS.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        rows.setdefault(section, {})[name] = row
        RESULTS.write_text(json.dumps({**rows, "machine": machine()}, indent=1) + "\n")
    finally:
        os.close(folder)


def broken(section: str, ones: list[members.Member], data: str, suite: str, samples: int) -> None:
    """Evaluate all; then tell of each what is left of it."""
    test = task(data).test
    test = test.subset(range(min(samples, len(test))))
    rows = {}
    for member in ones:
        try:
            row = evaluated(member.build(), test, member.threat_model, suite)
        except Exception as error:
            row = {"verdict": f"crashed: {type(error).__name__}", "flagged_by": []}
        known = {"about": member.about, "norm": member.threat_model.norm, "eps": member.threat_model.eps_text}
        rows[member.name] = {**known, **row}
        write_row(section, member.name, rows[member.name])
    for member in ones:
        row = {**rows[member.name], **left(member, data, test)}
        write_row(section, member.name, row)
        keys = ("clean", "claimed", "suite", "reported", "best_adaptive")
        told = " | ".join(f"{row[key]:.1%}" if key in row else "" for key in keys)
        print(f"| {member.name} | {told} | {row['verdict']} | {'; '.join(row['flagged_by'])} |", flush=True)


def left(member: members.Member, data: str, test: Dataset) -> dict[str, Any]:
    """What is claimed of a member and what its adaptive attack leaves; measured once, and kept in the result file."""
    section, key = f"adaptive-{data}", f"{member.name}:{member.threat_model.norm}-{member.threat_model.eps_text}"
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    known = rows.get(section, {}).get(key)
    if known is None or known["n"] != len(test):
        images, labels = test.images(range(len(test))), test.labels
        claimed = member.claimed(member.build(), images, labels)
        best = member.adaptive(member.build(), images, labels, member.threat_model)
        shares = {"claimed": float(claimed.float().mean()), "best_adaptive": float(best.float().mean())}
        known = {"n": len(test), **shares}
        write_row(section, key, known)
    return {key: known[key] for key in ("claimed", "best_adaptive")}


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


def cost_subjects() -> dict[str, Callable[[], tuple[Classifier, Dataset, ThreatModel]]]:
    """What the passes are counted on: small and large networks, few images and many."""
    published = all_subjects()

    def first(name: str, images: int) -> tuple[Classifier, Dataset, ThreatModel]:
        subject = published[name]
        return subject.classifier(FOLDER), subject.dataset(FOLDER).subset(range(images)), subject.threat_model

    names = {
        "digits-cnn": ("digits-cnn", 100),
        "small-cifar": ("sdp_cifar_cnn_a_adv:linf-2/255", 100),
        "mnist-0.1": ("salman_mnist_lpd_mlp_b_0.1:linf-0.1", 10_000),
        "mnist-0.3": ("salman_mnist_lpd_mlp_b_0.3:linf-0.3", 10_000),
    }
    known = {name: partial(first, *of) for name, of in names.items() if of[0] in published}
    return {**known, "resnet-18": partial(_resnet, 100)} if missing() is None else known


def _resnet(images: int) -> tuple[Classifier, Dataset, ThreatModel]:
    """Torchvision's ResNet-18 as it is initialized: what it answers counts as right, in a ball that leaves some."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier(resnet18(num_classes=10).eval(), name="resnet18")
    pixels = load_dataset(f"npz:{SHARED / 'published' / 'images' / 'cifar10_sdp200.npz'}").images(range(images))
    with torch.no_grad():
        answers = classifier(pixels).argmax(1)
    return classifier, ArrayDataset(pixels, answers, name="cifar10-as-answered"), ThreatModel("linf", "1/510")


def cost(section: str, names: list[str]) -> None:
    """Passes of all looking, which is neither a stage of the suite nor the clean pass, beside those of the suite."""
    for name, make in cost_subjects().items():
        for suite in COUNTED if not names or name in names else ():
            classifier, dataset, threat_model = make()
            result = evaluate(classifier, dataset, threat_model, suite=suite, device="cpu").result
            row = looking(result)
            write_row(section, f"{name}:{suite}", {"eps": threat_model.eps_text, **row})
            print(
                f"| {name} | {suite} | {row['n']:,} | {row['standing']:,} | {row['suite_passes']:,} | "
                f"{row['looking_passes']:,} | {row['ratio']:.3f} | {row['suite_seconds']:.1f} | "
                f"{row['other_seconds']:.1f} | {row['verdict']} |",
                flush=True,
            )


def looking(result: Result) -> dict[str, Any]:
    """Passes of the suite and of the looking, and their ratio. Seconds of all but the suite hold the clean pass too."""
    stages = [report for report in result.attacks if report.role in SEARCH]
    own = sum(report.forward_passes + report.backward_passes for report in stages)
    others = result.cost.forward_passes + result.cost.backward_passes - result.data.n - own
    seconds = sum(report.seconds for report in stages)
    return {
        "n": result.data.n,
        "standing": result.robust_accuracy.correct,
        "suite_passes": own,
        "looking_passes": others,
        "ratio": others / own,
        "suite_seconds": round(seconds, 1),
        "other_seconds": round(result.cost.seconds - seconds, 1),
        "verdict": result.verdict.status,
        "flagged_by": [each.slug for each in result.diagnostics if each.status in ("warn", "fail")],
    }


def chosen(part: str, data: str, names: list[str], ball: ThreatModel | None) -> list[members.Member]:
    """The members of a part, or those named; in their own ball, or another."""
    kinds = {"broken": members.EARLIER, "subtle": members.SUBTLE, "adaptive": tuple(members.KINDS)}[part]
    ones = [members.member(name, data) for name in kinds if not names or name in names]
    return [one if ball is None else replace(one, threat_model=ball) for one in ones]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument(
        "--part", choices=["broken", "subtle", "adaptive", "honest", "published", "cost"], default="broken"
    )
    parser.add_argument("--data", choices=["digits", "fashion"], default="digits")
    parser.add_argument("--suite", default="fast")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps", help="of broken and subtle defenses; by default each has its own")
    parser.add_argument("--section", help="of the result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ball = ThreatModel(options.norm, options.eps) if options.eps else None
    known = options.norm if ball else ""
    section = options.section or "-".join(filter(None, (options.part, options.data, options.suite, known)))
    if options.part in ("broken", "subtle"):
        ones = chosen(options.part, options.data, options.names, ball)
        broken(section, ones, options.data, options.suite, options.samples)
    elif options.part == "adaptive":
        test = task(options.data).test
        for one in chosen("adaptive", options.data, options.names, ball):
            print(one.name, left(one, options.data, test.subset(range(min(options.samples, len(test))))), flush=True)
    elif options.part == "cost":
        cost(options.section or "cost", options.names)
    else:
        trained = [*honest.trained(options.data).values(), honest.undefended_honest(options.data)]
        networks = trained if options.part == "honest" else honest.published_honest()
        honest_ones(section, networks, options.suite, options.names)


if __name__ == "__main__":
    main()
