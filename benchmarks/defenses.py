"""The table of defenses: what each method gains and costs, on real images, by the recipes in configs/.

    python benchmarks/defenses.py [--data digits fashion-mnist …] [--methods pgd-at …] [--seeds 2]

trains every method from scratch with the recipe of its dataset, evaluates the chosen epoch on the whole test split
with standard/1, and writes a row of benchmarks/results/defenses.json as soon as it is known; rows that are there
already are not made again. Seconds are those of the processor (one thread), because wall-clock is worth little on a
machine that does other things too. `--show` prints the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import images
import torch
from machine import machine

from robustbench_local import ThreatModel, evaluate, load_classifier
from robustbench_local.io.atomic_write import write_atomically
from robustbench_local.training.recipe import Recipe, resolve_recipe
from robustbench_local.training.run import run_training
from robustbench_local.training.settings import RuntimeSettings

RESULTS = Path(__file__).parent / "results" / "defenses.json"
FOLDER = Path("runs/defenses")
STOP, EIGHTY = 14, 5
MAIN = ("standard", "pgd-at", "trades", "n-fgsm")
MORE = ("mart", "hat", "trades+awp", "fgsm-rs", "free", "rslad", "defensive-distillation")


@dataclass(frozen=True)
class Board:
    """A dataset and the recipe it is trained by. steps: of the inner attacks."""

    config: str
    steps: int
    npz: str | None = None


BOARDS = {
    "digits": Board("digits-cnn-robust", 7),
    "fashion-mnist": Board("fashion-mnist-cnn", 7),
    "cifar10": Board("cifar10-cnn", 10, "cifar10"),
    "gtsrb": Board("gtsrb-cnn", 7, "gtsrb"),
}
CHANGES: dict[str, dict[str, Any]] = {
    # Distillation divides logits by 20 or more while it trains; AdamW reaches its best accuracy in few epochs.
    "defensive-distillation": {"optimizer": "adamw", "lr": 6e-3, "weight_decay": 0.0}
}
STEPPED = ("pgd-at", "trades", "mart", "hat", "rslad")


def recipe_of(data: str, method: str, seed: int) -> Recipe:
    """The dataset's recipe with another method and seed."""
    board = BOARDS[data]
    name, plus, add_ons = method.partition("+")
    settings: dict[str, Any] = {"seed": seed, **CHANGES.get(name, {})}
    if resolve_recipe(board.config, {}).method.partition(":")[0] != method:  # its own method keeps its settings
        settings["method"] = (f"{name}:steps={board.steps}" if name in STEPPED else name) + plus + add_ons
    if name == "rslad":
        settings["teacher"] = str(FOLDER / data / f"trades-{seed}")
    if board.npz:
        make = getattr(images, board.npz)
        settings["data"], settings["eval_data"] = (f"npz:{make(split, images.FOLDER)}" for split in ("train", "test"))
    return resolve_recipe(board.config, settings)


def make_row(data: str, method: str, seed: int) -> dict[str, Any]:
    """Train and evaluate once."""
    folder, recipe = FOLDER / data / f"{method}-{seed}", recipe_of(data, method, seed)
    shutil.rmtree(folder, ignore_errors=True)
    data_dir = images.fashion_mnist(images.FOLDER) if data == "fashion-mnist" else None
    began, clock = time.process_time(), time.perf_counter()
    run = run_training(recipe, folder, runtime=RuntimeSettings(device="cpu", data_dir=data_dir))
    spent, passed = time.process_time() - began, time.perf_counter() - clock
    evaluated = run.evaluate_checkpoints()
    card, result = evaluated.card, evaluated.result
    assert card.chosen is not None
    last = card.last_evaluation
    signs = {}
    if data == "gtsrb":
        classifier = load_classifier(str(folder))
        attacked = evaluate(
            classifier,
            run.eval_data,
            ThreatModel("linf", "8/255", source=STOP, target=EIGHTY),
            suite="standard/1",
            diagnostics=False,
        ).result
        signs["stop_to_80"] = {
            "images": attacked.clean_accuracy.n,
            "standing": attacked.robust_accuracy.correct,
            "not_standing": 1 - attacked.robust_accuracy.value,
        }
    return {
        "data": data,
        "method": method,
        "seed": seed,
        "clean": result.clean_accuracy.model_dump(),
        "robust": result.robust_accuracy.model_dump(),
        "threat_model": result.threat_model.model_dump(),
        "protocol": result.protocol.model_dump(),
        "verdict": result.verdict.model_dump(),
        "seconds": round(spent, 1),
        "wall_seconds": round(passed, 1),
        "epoch": card.chosen.epoch,
        "undone": sum(report.undone for report in run.reports),
        "last": {"clean": last.clean_accuracy.value, "robust": last.robust_accuracy.value} if last else None,
        "recipe": card.recipe.model_dump(exclude_defaults=True),
        "threads": torch.get_num_threads(),
        "finished": time.strftime("%Y-%m-%d"),
        **signs,
    }


def read_rows() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []


def enter(row: dict[str, Any]) -> None:
    """Add the row to the file, which other processes may have changed meanwhile."""
    same = ("data", "method", "seed")
    rows = [old for old in read_rows() if any(old[key] != row[key] for key in same)] + [row]
    rows.sort(key=lambda each: (list(BOARDS).index(each["data"]), [*MAIN, *MORE].index(each["method"]), each["seed"]))
    head = {
        "command": "python benchmarks/defenses.py",
        "what": "standard/1 on the whole test split; seconds of a processor, for training and choosing on the hold-out",
        "machine": machine(),
    }
    lines = ",\n".join(json.dumps(each) for each in rows)
    write_atomically(RESULTS, f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{lines}\n ]\n}}\n')


def show(rows: list[dict[str, Any]]) -> None:
    """The README's table: means over seeds, and the range of the robust accuracy."""
    print("| data, L∞ | method | clean | `standard/1` | seconds | seeds |\n|---|---|---|---|---|---|")
    for data in BOARDS:
        for method in (*MAIN, *MORE):
            matches = [row for row in rows if (row["data"], row["method"]) == (data, method)]
            if not matches:
                continue
            clean, robust = ([100 * row[key]["value"] for row in matches] for key in ("clean", "robust"))
            spread = f" [{min(robust):.1f}–{max(robust):.1f}]" if len(matches) > 1 else ""
            seconds = statistics.mean(row["seconds"] for row in matches)
            print(
                f"| {data}, {matches[0]['threat_model']['eps_text']} | `{method}` | {statistics.mean(clean):.1f} "
                f"| {statistics.mean(robust):.1f}{spread} | {seconds:,.0f} | {len(matches)} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and evaluate the table of defenses.")
    parser.add_argument("--data", nargs="+", choices=list(BOARDS), default=list(BOARDS))
    parser.add_argument("--methods", nargs="+", choices=[*MAIN, *MORE], default=[*MAIN, *MORE])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--show", action="store_true", help="only print what there is")
    options = parser.parse_args()
    if not options.show:
        if reason := images.missing():
            parser.error(reason)
        torch.set_num_threads(1)
        for seed in options.seeds:
            for data in options.data:
                for method in options.methods:
                    done = {(row["data"], row["method"], row["seed"]) for row in read_rows()}
                    if (data, method, seed) in done:
                        continue
                    row = make_row(data, method, seed)
                    enter(row)
                    print(
                        f"{data:<14} {method:<24} seed {seed}   clean {row['clean']['value']:6.1%}   robust "
                        f"{row['robust']['value']:6.1%}   {row['seconds']:8,.1f} s",
                        flush=True,
                    )
    show(read_rows())


if __name__ == "__main__":
    main()
