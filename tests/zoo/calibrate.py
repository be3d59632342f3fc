"""What an evaluation says of honest models: its number, its verdict, and the value of every check.

    python tests/zoo/calibrate.py [--half derive|confirm] [--suite SUITE]… [--norm linf|l2]… [--samples N]
                                  [--truth] [--output FILE.jsonl] [NAME…]

NAME is a family or one of its seeds. What the best attack leaves is measured where it decides: of models that are not
trusted; with --truth of all. It is kept under runs/zoo. A false alarm is a warning, a failure or a lost "trusted" where
the best attack known leaves at most a point less than what is reported. The last lines count them and bound their
probability.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import honest
import torch
from honest import Relative
from scipy.stats import beta
from torch import Tensor

from robustbench_local import Classifier, evaluate
from robustbench_local.data.dataset import Dataset
from robustbench_local.models.classifier import fingerprint
from robustbench_local.results.schema import Result

LOOKING = ("diagnostic", "adaptive")
POINT = 0.01


KEPT = Path(__file__).resolve().parents[2] / "runs" / "zoo"


def measured(one: Relative, suite: str, samples: int, *, always: bool = False) -> dict[str, Any]:
    """One model's row: what is reported, what the best attack leaves, the verdict and every check's value.

    always: attack it with all that is known even where it is trusted.
    """
    row: dict[str, Any] = {"model": one.name, "family": one.family, "kind": one.kind, "half": one.half}
    row |= {"norm": one.threat_model.norm, "eps": one.threat_model.eps_text, "suite": suite}
    classifier, part = one.build(), honest.part(one, samples)
    began = time.process_time()
    try:
        evaluation = evaluate(classifier, part, one.threat_model, suite=suite, device="cpu")
    except Exception as error:  # a crash is an outcome to be counted, not the end of the measuring
        trace = traceback.extract_tb(error.__traceback__)[-1]
        return row | {"crash": f"{type(error).__name__}: {error} ({Path(trace.filename).name}:{trace.lineno})"}
    seconds = time.process_time() - began
    result = evaluation.result
    best = None
    if always or result.verdict.status != "trusted":
        standing = torch.tensor([sample.robust for sample in evaluation.samples])
        best = float((standing & _kept_truth(one, classifier, part)).float().mean())
    row |= {"n": len(part), "clean": result.clean_accuracy.value, "reported": result.robust_accuracy.value}
    row |= {"best": best, "verdict": result.verdict.status, "seconds": seconds}
    row |= {"warnings": [each.slug for each in result.diagnostics if each.status in ("warn", "fail")]}
    row |= {"values": {each.slug: [each.status, each.value, each.threshold] for each in result.diagnostics}}
    return row | {"passes": _passes(result)}


def _kept_truth(one: Relative, classifier: Classifier, images: Dataset) -> Tensor:
    """`honest.truth`, measured once for the same weights, images and threat model."""
    said = (fingerprint(classifier), images.sha256(), one.threat_model.norm, one.threat_model.eps_text)
    path = KEPT / f"{one.name}-{hashlib.sha256(repr(said).encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        standing = honest.truth(one, classifier, images.images(range(len(images))), images.labels)
        KEPT.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(standing.tolist()))
    return torch.tensor(json.loads(path.read_text()))


def _passes(result: Result) -> dict[str, int]:
    """Forward and backward passes of the suite and of everything else: checks, probes, preflight, adaptive attacks."""
    suite = sum(
        report.forward_passes + report.backward_passes for report in result.attacks if report.role not in LOOKING
    )
    return {"suite": suite, "looking": result.cost.forward_passes + result.cost.backward_passes - suite}


def is_false_alarm(row: dict[str, Any]) -> bool:
    """Whether something was said against a number that is right to a point, or the evaluation crashed."""
    if "crash" in row:
        return True
    return row["verdict"] != "trusted" and row["reported"] - row["best"] <= POINT + 1e-9


def bound(alarms: int, trials: int) -> float:
    """The largest probability of an alarm that so few in so many independent trials allow, at 95 %, one-sided."""
    return 1.0 if alarms == trials else float(beta.ppf(0.95, alarms + 1, trials - alarms))


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    start = f"{row['model']:22} {row['half']:7} {row['norm']:4} {row['eps']:4} {row['suite']:10}"
    if "crash" in row:
        return f"{start} CRASH {row['crash']}"
    shares = " ".join(f"{100 * row[key]:5.1f}" for key in ("clean", "reported"))
    shares += "     -" if row["best"] is None else f" {100 * row['best']:5.1f}"
    values = " ".join(f"{slug}={_short(value)}" for slug, (_, value, _) in row["values"].items() if value is not None)
    alarm = " FALSE ALARM" if is_false_alarm(row) else ""
    passes = "{suite}+{looking}".format(**row["passes"])
    warnings = ",".join(row["warnings"]) or "-"
    return f"{start} {shares} {row['verdict']}{alarm} [{warnings}] {passes} {row['seconds']:.1f}s {values}"


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How many false alarms, over evaluations and over models, and what they bound."""
    models = {row["model"] for row in rows}
    families = {row["family"] for row in rows}
    alarmed = {row["model"] for row in rows if is_false_alarm(row)}
    alarmed_families = {row["family"] for row in rows if is_false_alarm(row)}
    return [
        f"{sum(map(is_false_alarm, rows))} false alarms in {len(rows)} evaluations",
        f"{len(alarmed)} of {len(models)} models: at most {bound(len(alarmed), len(models)):.1%} at 95 %",
        f"{len(alarmed_families)} of {len(families)} families: "
        f"at most {bound(len(alarmed_families), len(families)):.1%} at 95 %",
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--half", choices=("derive", "confirm"))
    parser.add_argument("--suite", action="append", help="may be repeated; by default fast")
    parser.add_argument("--norm", action="append", choices=("linf", "l2"), help="may be repeated; by default linf")
    parser.add_argument("--samples", type=int, default=120)
    parser.add_argument("--truth", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, one in honest.families().items():
        if options.names and not {name, one.family} & set(options.names):
            continue
        if options.half and one.half != options.half:
            continue
        for norm, suite in itertools.product(options.norm or ["linf"], options.suite or ["fast"]):
            row = measured(one.within(norm), suite, options.samples, always=options.truth)
            rows.append(row)
            print(line(row), flush=True)
            if options.output:
                with options.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(*summary(rows), sep="\n")


if __name__ == "__main__":
    main()
