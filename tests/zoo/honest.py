"""Networks that mask nothing: of many families, adversarially trained ones, published ones, and an undefended one.

    python tests/zoo/honest.py [--data fashion] [NAME…]

prints, for those trained here, what a naive and the best adaptive attack leave standing.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import adaptive
import honest_recipes
import torch
from adaptive import Hunt
from tasks import task, undefended
from torch import Tensor

from robustbench_local import Classifier, ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import pgd
from robustbench_local.data.dataset import ArrayDataset, Dataset
from robustbench_local.training.recipe import Recipe
from robustbench_local.training.run import run_training
from robustbench_local.training.settings import RuntimeSettings

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("pgd-at:steps=5", "trades:steps=5", "mart:steps=5", "hat:steps=5", "n-fgsm")
SEEDS = (0, 1, 2)
EPS = "0.1"


@dataclass(frozen=True)
class Honest:
    """A network that masks nothing, what it is to be attacked within, and images that it has not been trained on."""

    name: str
    threat_model: ThreatModel
    build: Callable[[], Classifier]
    dataset: Callable[[], Dataset]


@dataclass(frozen=True)
class Relative(Honest):
    """One training seed of a family.

    kind: "robust" or "undefended". half: "derive" where thresholds may be chosen on it, "confirm" where they are tried.
    l2: the threat model in L2.
    """

    family: str
    seed: int
    kind: honest_recipes.Kind
    half: honest_recipes.Half
    l2: ThreatModel

    def within(self, norm: str) -> Relative:
        """The same network, to be attacked in "linf" or "l2"."""
        return self if norm == self.threat_model.norm else replace(self, threat_model=self.l2)


def families() -> dict[str, Relative]:
    """Every family with three seeds each, by names such as `residual-1`."""
    return {
        f"{family}-{seed}": Relative(
            f"{family}-{seed}",
            ThreatModel("linf", recipe.eps),
            partial(honest_recipes.fitted, family, seed),
            partial(_test_images, family),
            family=family,
            seed=seed,
            kind=recipe.kind,
            half=honest_recipes.half(family),
            l2=ThreatModel("l2", recipe.l2_eps),
        )
        for family, recipe in honest_recipes.FAMILIES.items()
        for seed in SEEDS
    }


def _test_images(family: str) -> Dataset:
    return honest_recipes.FAMILIES[family].task.test


@functools.cache
def _trained(method: str, seed: int, data: str) -> Classifier:
    on = task(data)
    settings = {"digits": {"arch": "digits-cnn", "data": "digits", "epochs": 15, "batch_size": 64}}
    settings["fashion"] = {
        "arch": "cnn-small",
        "data": f"npz:{ROOT / 'runs' / 'data' / 'fashion-train.npz'}",
        "samples": len(on.images),
        "epochs": 6,
        "batch_size": 128,
    }
    recipe = Recipe(method=method, eps=EPS, lr=0.05, seed=seed, **settings[data])
    with tempfile.TemporaryDirectory() as folder:
        run_training(recipe, Path(folder) / "trained", runtime=RuntimeSettings(device="cpu"))
        return load_classifier(folder + "/trained")


def trained(data: str = "digits") -> dict[str, Honest]:
    """Five methods with three seeds each, by names such as `trades-1`."""
    return {
        f"{method.partition(':')[0]}-{seed}": Honest(
            f"{method.partition(':')[0]}-{seed}",
            ThreatModel("linf", EPS),
            partial(_trained, method, seed, data),
            lambda: task(data).test,
        )
        for method in METHODS
        for seed in SEEDS
    }


def undefended_honest(data: str = "digits") -> Honest:
    """Hardly anything of it is left under attack, and it hides nothing."""

    def build() -> Classifier:
        return Classifier(undefended(data), name="undefended")

    return Honest("undefended", ThreatModel("linf", "0.2"), build, lambda: task(data).test)


# Published checkpoints.


def published_honest() -> list[Honest]:
    """Checkpoints that others trained adversarially or to be certified; none where there are no shared files.

    One for every check that the manifest states, with the images of that check.
    """
    folder = Path(os.environ.get("ROBUST_SHARED", ROOT.parent / "shared")) / "published"
    if not (folder / "manifest.json").is_file():
        return []
    return [
        Honest(
            f"{entry['name']}:{check['norm']}-{_written(check['eps'])}",
            ThreatModel(check["norm"], _written(check["eps"])),
            partial(_load_published, folder, entry),
            partial(_images_of, folder / check["images"]),
        )
        for entry in json.loads((folder / "manifest.json").read_text())["models"]
        if entry["training"] != "standard"
        for check in entry["checks"]
        if "eps" in check
    ]


def _written(eps: float) -> str:
    """Eps as papers write it: with few decimals, else in gray levels."""
    return f"{eps:g}" if round(eps, 4) == eps else f"{round(eps * 255)}/255"


def _load_published(folder: Path, entry: dict[str, Any]) -> Classifier:
    normalization = ":".join(",".join(map(repr, entry["normalisation"][key])) for key in ("mean", "std"))
    factory = f"{folder / 'architectures.py'}:{entry['architecture']}"
    return load_classifier(factory, checkpoint=folder / entry["file"], normalize=normalization)


def _images_of(path: Path) -> Dataset:
    return load_dataset(f"npz:{path}")


# What is left of them.


def naive(one: Honest, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Right before and after PGD with 20 steps, bool [N]."""
    hunt = Hunt(classifier, images, labels, one.threat_model)
    hunt.offer(hunt.rows, pgd(classifier, images, labels, one.threat_model, steps=20)[hunt.rows])
    return hunt.standing


def part(one: Honest, samples: int) -> Dataset:
    """The first of its images."""
    dataset = one.dataset()
    return dataset.subset(range(min(samples, len(dataset))))


def truth(one: Honest, classifier: Classifier, images: Tensor, labels: Tensor, *, queries: int = 5000) -> Tensor:
    """Right, and not fooled by anything that was tried, bool [N].

    A model of a family meets the whole of `exhaustive` too, and the points of its sibling of another seed.
    """
    asked = _unchanging(classifier)
    hunt = Hunt(asked, images, labels, one.threat_model)
    twins = []
    if isinstance(one, Relative):
        dataset = ArrayDataset(images, labels)
        found = evaluate(
            classifier, dataset, one.threat_model, suite="exhaustive", diagnostics=False, device="cpu"
        ).samples
        hunt.standing &= torch.tensor([sample.robust for sample in found])
        twins.append(_unchanging(honest_recipes.fitted(one.family, (one.seed + 1) % len(SEEDS))))
    adaptive.everything(hunt, [asked], twins, queries=queries)
    return hunt.standing


def _unchanging(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """The classifier asked about copies: some write into their input."""
    return lambda images: classifier(images.clone())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--data", default="digits", choices=("digits", "fashion"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    heads = "network", "eps", "clean", "PGD-20", "adaptive", "trained in s", "attacked in s"
    print(f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", sep="\n")
    extra = undefended_honest(options.data)
    for name, one in {**trained(options.data), extra.name: extra}.items():
        if options.names and name not in options.names:
            continue
        test, began = one.dataset(), time.process_time()
        count = min(360, len(test))
        images, labels = test.images(range(count)), test.labels[:count]
        classifier = one.build()
        built = time.process_time()
        clean = Hunt(classifier, images, labels, one.threat_model).standing
        left = naive(one, classifier, images, labels), truth(one, classifier, images, labels)
        shares = " | ".join(f"{100 * float(each.float().mean()):.1f}" for each in (clean, *left))
        seconds = f"{built - began:.1f} | {time.process_time() - built:.1f}"
        print(f"| {name} | {one.threat_model.eps_text} | {shares} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
