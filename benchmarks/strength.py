"""Strength and cost of this project's suites compared with peers: same models, same images, one process.

    python benchmarks/strength.py [--images 200] [--subjects NAME…] [--attackers NAME…] [--output JSON] [--plot PNG]

Everybody is counted by the same wrapper: images forward and images backward through the model, and wall-clock seconds
without imports. Peers get the images that are classified correctly, after one clean pass that they are charged for. A
success counts once the float32 model confirms it, inside the ball and inside the box; that is not charged to peers, to
ours it is. The JSON grows row by row: rows that are there already, made under the same settings, are not run again.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import machine
from plots import draw, show
from subjects import FOLDER, Subject, all_subjects, missing
from torch import Tensor, nn

from robustbench_local import Classifier, ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.data.dataset import Dataset
from robustbench_local.engine.protocol import resolve_suite
from robustbench_local.io.atomic_write import write_atomically
from robustbench_local.models import fingerprint
from robustbench_local.models.metered import Metered

STEPS, SLACK, BATCH = 50, 1e-6, 250
REFERENCE, BASE = "pyautoattack standard", "robust autoattack/1"
SUBJECTS = (
    "salman_mnist_lpd_mlp_b_0.1:linf-0.1",
    "wong_fmnist_small_eps0.1:linf-0.1",
    "sdp_cifar_cnn_a_adv:linf-2/255",
    "vnncomp_cifar_resnet2b:linf-2/255",
    "mmr_universal_gts:l2-0.2",
    "fashion-pgd-at",
    "cifar-pgd-at",
    "distilled",
    "label-smoothed",
    "quantised-input",
    "digits-cnn",
)
"""The default comparison."""

Row = dict[str, Any]
Attack = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """build: model, threat model and number of classes to an attack. package: its name, None where it is torch's."""

    build: Callable[[nn.Module, ThreatModel, int], Attack]
    package: str | None
    usual: bool = True


def unsupported(name: str, threat_model: ThreatModel) -> NotImplementedError:
    return NotImplementedError(f"{name} has no attack for {threat_model.norm}")


def step_size(threat_model: ThreatModel) -> float:
    return 2.5 * threat_model.eps / STEPS


def bare_pgd(model: nn.Module, threat_model: ThreatModel, classes: int) -> Attack:  # noqa: ARG001
    if threat_model.norm != "linf":
        raise unsupported("the bare loop", threat_model)
    eps, step = threat_model.eps, step_size(threat_model)

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        points = (images + (2 * torch.rand_like(images) - 1) * eps).clamp(0, 1)
        for _ in range(STEPS):
            points.requires_grad_(True)
            gradient = torch.autograd.grad(F.cross_entropy(model(points), labels, reduction="sum"), points)[0]
            points = (images + (points.detach() + step * gradient.sign() - images).clamp(-eps, eps)).clamp(0, 1)
        return points

    return attack


def pyautoattack(model: nn.Module, threat_model: ThreatModel, classes: int) -> Attack:
    from pyautoattack import AutoAttack

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat_model.norm]
    made = AutoAttack(model, norm=norm, eps=threat_model.eps, seed=0, version="standard")
    made.apgd_targeted.n_target_classes = min(made.apgd_targeted.n_target_classes, classes - 1)
    made.fab.n_target_classes = min(made.fab.n_target_classes, classes - 1)
    return lambda images, labels: made.run_standard_evaluation(images, labels, batch_size=BATCH)[0]


def _toolbox(kind: str, model: nn.Module, threat_model: ThreatModel, classes: int, **settings: Any) -> Attack:
    """adversarial-robustness-toolbox, which needs the image shape, and labels as one-hot rows."""
    import art.attacks.evasion
    from art.estimators.classification import PyTorchClassifier

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        estimator = PyTorchClassifier(
            model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(images.shape[1:]),
            nb_classes=classes,
            clip_values=(0, 1),
            device_type="cpu",
        )
        norm = {"linf": np.inf, "l2": 2, "l1": 1}[threat_model.norm]
        made = getattr(art.attacks.evasion, kind)(estimator, norm=norm, eps=threat_model.eps, **settings)
        return torch.from_numpy(made.generate(images.numpy(), F.one_hot(labels, classes).float().numpy()))

    return attack


def art_pgd(model: nn.Module, threat_model: ThreatModel, classes: int) -> Attack:
    return _toolbox(
        "ProjectedGradientDescentPyTorch",
        model,
        threat_model,
        classes,
        eps_step=step_size(threat_model),
        max_iter=STEPS,
        num_random_init=1,
        batch_size=BATCH,
        verbose=False,
    )


def art_autoattack(model: nn.Module, threat_model: ThreatModel, classes: int) -> Attack:
    return _toolbox("AutoAttack", model, threat_model, classes, eps_step=2 * threat_model.eps, batch_size=BATCH)


def foolbox_pgd(model: nn.Module, threat_model: ThreatModel, classes: int) -> Attack:  # noqa: ARG001
    import foolbox

    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD, "l1": foolbox.attacks.L1PGD}
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    made = kind[threat_model.norm](steps=STEPS, abs_stepsize=step_size(threat_model), random_start=True)
    return lambda images, labels: made.run(wrapped, images, labels, epsilon=threat_model.eps)


def torchattacks_pgd(model: nn.Module, threat_model: ThreatModel, classes: int) -> Attack:  # noqa: ARG001
    import torchattacks

    kinds = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}
    if threat_model.norm not in kinds:
        raise unsupported("torchattacks", threat_model)
    return kinds[threat_model.norm](model, eps=threat_model.eps, alpha=step_size(threat_model), steps=STEPS)


def torchattacks_autoattack(model: nn.Module, threat_model: ThreatModel, classes: int) -> Attack:
    import torchattacks

    norms = {"linf": "Linf", "l2": "L2"}
    if threat_model.norm not in norms:
        raise unsupported("torchattacks", threat_model)
    return torchattacks.AutoAttack(
        model, norm=norms[threat_model.norm], eps=threat_model.eps, n_classes=classes, seed=0
    )


def _adversarial_library() -> types.ModuleType:
    """adv-lib's attacks. They import a plotting server that they use only on request."""
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))
    import adv_lib.attacks

    return adv_lib.attacks


def adv_lib_pgd(model: nn.Module, threat_model: ThreatModel, classes: int) -> Attack:  # noqa: ARG001
    if threat_model.norm != "linf":
        raise unsupported("adv-lib's pgd_linf", threat_model)
    pgd_linf, eps, step = _adversarial_library().pgd_linf, threat_model.eps, step_size(threat_model)
    return lambda images, labels: pgd_linf(model, images, labels, eps, steps=STEPS, absolute_step_size=step)


def adv_lib_apgd(model: nn.Module, threat_model: ThreatModel, classes: int) -> Attack:
    apgd_targeted, eps = _adversarial_library().apgd_targeted, threat_model.eps
    norm = {"linf": float("inf"), "l2": 2, "l1": 1}[threat_model.norm]
    targets = min(9, classes - 1)
    return lambda images, labels: apgd_targeted(model, images, labels, eps, norm, num_targets=targets)


OURS = {"robust fast/1": True, "robust standard/1": True, "robust autoattack/1": True, "robust exhaustive/1": False}
PEERS = {
    REFERENCE: Peer(pyautoattack, "pyautoattack"),
    "bare PGD-50": Peer(bare_pgd, None),
    "art PGD-50": Peer(art_pgd, "adversarial-robustness-toolbox"),
    "art AutoAttack": Peer(art_autoattack, "adversarial-robustness-toolbox", usual=False),
    "foolbox PGD-50": Peer(foolbox_pgd, "foolbox"),
    "torchattacks PGD-50": Peer(torchattacks_pgd, "torchattacks"),
    "torchattacks AutoAttack": Peer(torchattacks_autoattack, "torchattacks", usual=False),
    "adv-lib PGD-50": Peer(adv_lib_pgd, "adv-lib"),
    "adv-lib APGD-T": Peer(adv_lib_apgd, "adv-lib"),
}
ATTACKERS = {**OURS, **{name: peer.usual for name, peer in PEERS.items()}}
"""Every attacker, and whether it runs unasked."""


def run_ours(suite: str, classifier: Classifier, dataset: Dataset, threat_model: ThreatModel) -> Row:
    began = time.perf_counter()
    evaluation = evaluate(classifier, dataset, threat_model, suite=suite, diagnostics=False, device="cpu")
    seconds, result = time.perf_counter() - began, evaluation.result
    standing = [sample.index for sample in evaluation.samples if sample.robust]
    return {
        "clean": result.clean_accuracy.correct,
        "robust": len(standing),
        "standing": standing,
        "forward_passes": result.cost.forward_passes,
        "backward_passes": result.cost.backward_passes,
        "seconds": seconds,
        "verdict": result.verdict.status,
        "stages": [
            stage.model_dump(
                include={
                    "name",
                    "role",
                    "attacked",
                    "fooled",
                    "robust_accuracy_after",
                    "forward_passes",
                    "backward_passes",
                    "seconds",
                }
            )
            for stage in result.attacks
        ],
    }


def run_peer(peer: Peer, classifier: Classifier, dataset: Dataset, threat_model: ThreatModel) -> Row:
    images, labels = dataset.images(range(len(dataset))), dataset.labels
    counted = Metered(classifier)
    counted.training = False  # foolbox checks this; the classifier inside is always in eval mode
    torch.manual_seed(0)
    np.random.seed(0)  # the toolbox draws from it
    with torch.no_grad():
        classes = classifier(images[:1]).shape[1]
    attack = peer.build(counted, threat_model, classes)
    began = time.perf_counter()
    with torch.no_grad():
        correct = (counted(images).argmax(1) == labels).nonzero().squeeze(1)
    found = [attack(images[rows], labels[rows]).detach() for rows in correct.split(BATCH)]
    seconds = time.perf_counter() - began
    passes = counted.passes.copy()
    points = torch.cat(found) if found else images[:0]
    fallen, refused = confirmed(classifier, points, images[correct], labels[correct], threat_model)
    standing = dataset.indices[correct[~fallen]].tolist()
    return {
        "clean": len(correct),
        "robust": len(standing),
        "standing": standing,
        "forward_passes": passes.forward,
        "backward_passes": passes.backward,
        "seconds": seconds,
        "refused": int(refused.sum()),
    }


def confirmed(
    classifier: Classifier, points: Tensor, images: Tensor, labels: Tensor, threat_model: ThreatModel
) -> tuple[Tensor, Tensor]:
    """Which points the float32 model takes for another class, and of those, which are refused as out of bounds."""
    points = points.to(torch.float32)
    with torch.no_grad():
        wrong = classifier(points.nan_to_num()).argmax(1) != labels
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[threat_model.norm]
    distance = torch.linalg.vector_norm((points.double() - images.double()).flatten(1), order, dim=1)
    low, high = threat_model.box
    boxed = ((points >= low) & (points <= high)).flatten(1).all(1)
    allowed = boxed & (distance <= threat_model.eps + SLACK)
    return wrong & allowed, wrong & ~allowed


def run_one(attacker: str, classifier: Classifier, dataset: Dataset, threat_model: ThreatModel) -> Row:
    """What one attacker finds, or why it could not be run: peers fail in ways of their own."""
    try:
        if attacker in OURS:
            return run_ours(attacker.removeprefix("robust "), classifier, dataset, threat_model)
        return run_peer(PEERS[attacker], classifier, dataset, threat_model)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def made_by(attacker: str) -> str | None:
    """The version of an attacker; None if it is not installed or does not exist."""
    try:
        if attacker in OURS:
            return resolve_suite(attacker.removeprefix("robust "))[0].sha256
        return version(PEERS[attacker].package or "torch")
    except Exception:
        return None


class Record:
    """The JSON file: rows of one machine, written again after every row."""

    def __init__(self, path: Path):
        self.path, self.machine = path, machine()
        content = json.loads(path.read_text()) if path.is_file() else {"machine": self.machine, "rows": []}
        if content["machine"] != self.machine:
            raise SystemExit(
                f"{path} was written on another machine or with other threads or versions "
                f"({content['machine']}): name another --output"
            )
        self.rows: list[Row] = content["rows"]

    def finished(self, settings: Row) -> Row | None:
        return next(
            (row for row in self.rows if "error" not in row and all(row[key] == settings[key] for key in settings)),
            None,
        )

    def enter(self, row: Row) -> None:
        """The row in place of an earlier one of that subject, attacker and number of images."""
        key = ("subject", "attacker", "images")
        self.rows = [old for old in self.rows if any(old[name] != row[name] for name in key)] + [row]
        head = {
            "what": "robust counts, passes in images, seconds; indices of the robust samples",
            "date": _now(),
            "machine": self.machine,
        }
        # A row is a line: the lists of samples are long.
        rows = ",\n".join(json.dumps(row) for row in self.rows)
        write_atomically(self.path, f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{rows}\n ]\n}}\n')


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def compare(
    subjects: list[Subject],
    attackers: list[str],
    images: int,
    record: Record,
    *,
    folder: Path = FOLDER,
    again: bool = False,
) -> list[Row]:
    """A row for every subject and attacker, from the record where it is there."""
    warm_up()
    rows = []
    for subject in subjects:
        classifier, dataset = subject.classifier(folder), subject.dataset(folder)
        dataset = dataset.subset(range(min(images, len(dataset))))
        for attacker in attackers:
            settings = {
                "subject": subject.name,
                "attacker": attacker,
                "images": len(dataset),
                "version": made_by(attacker),
                "norm": subject.threat_model.norm,
                "eps": subject.threat_model.eps_text,
                "model": fingerprint(classifier)[:16],
            }
            row = None if again else record.finished(settings)
            if row is None:
                found = run_one(attacker, classifier, dataset, subject.threat_model)
                row = {**settings, "about": subject.about, "date": _now(), **found}
                record.enter(row)
                outcome = row.get("error") or f"{row['robust']}/{row['images']} robust, {row['seconds']:.1f} s"
                print(f"{subject.name}  {attacker}: {outcome}", file=sys.stderr, flush=True)
            rows.append(row)
    return rows


def warm_up() -> None:
    """The first evaluation pays for imports and for choosing kernels: let it be none that counts."""
    digits = load_dataset("digits").subset(range(8))
    evaluate(load_classifier("digits-cnn"), digits, ThreatModel("linf", "0.1"), suite="fast", device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description="Strength and cost compared with peers.")
    parser.add_argument("--images", type=int, default=200, help="number of images of each subject, the first ones")
    parser.add_argument("--subjects", nargs="+", metavar="NAME", help="by default a choice; 'all' for every one")
    parser.add_argument(
        "--attackers", nargs="+", metavar="NAME", choices=list(ATTACKERS), help=f"of: {', '.join(ATTACKERS)}"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "strength.json")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="directory of the trained subjects")
    parser.add_argument("--again", action="store_true", help="run existing rows again")
    options = parser.parse_args()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install -e '.[bench]'")
    torch.set_num_threads(options.threads)
    known = all_subjects()
    names = list(known) if options.subjects == ["all"] else options.subjects or [*SUBJECTS]
    for name in names:
        if name not in known:
            print(f"skipped: {name}: {missing() or 'there is no such subject'}", file=sys.stderr)
    attackers = options.attackers or [name for name, usual in ATTACKERS.items() if usual]
    rows = compare(
        [known[name] for name in names if name in known],
        attackers,
        options.images,
        Record(options.output),
        folder=options.folder,
        again=options.again,
    )
    show(rows, base=BASE, reference=REFERENCE)
    print(options.output)
    if options.plot:
        draw(rows, options.plot)
        print(options.plot)


if __name__ == "__main__":
    main()
