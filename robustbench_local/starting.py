"""Where training starts: an architecture with fresh weights, or a copy of a classifier that exists."""
from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_local.data.dataset import Dataset
from robustbench_local.errors import UserError
from robustbench_local.models import Classifier, build_architecture, load_classifier, parse_normalization
from robustbench_local.models.architectures import ARCHITECTURES
from robustbench_local.recipes import Recipe
from robustbench_local.training import seeded

Normalization = dict[str, list[float]]


class Trainee(nn.Module):
    """A module behind its normalisation, all of its parameters to be trained."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, normalization: Normalization | None):
        super().__init__()
        self.module = module.requires_grad_(True)
        given = normalization or {"mean": [0.0], "std": [1.0]}
        self.register_buffer("mean", torch.tensor(given["mean"]).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(given["std"]).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.module((images - self.mean) / self.std)


@dataclass(frozen=True)
class Start:
    """What is trained, and what has to be known to load it again. resize: how the classifier wants files resized."""

    network: Trainee
    architecture: str
    normalization: Normalization | None
    class_names: list[str] | None
    resize: Any = None

    def classifier(self, name: str, input_shape: tuple[int, int, int]) -> Classifier:
        """The trained module, frozen and ready to be evaluated."""
        given = self.normalization or {}
        return Classifier(
            self.network.module, name=name, mean=given.get("mean"), std=given.get("std"),
            class_names=self.class_names, input_shape=input_shape,
        )


def loaded_start(recipe: Recipe) -> Start:
    """A copy of the recipe's classifier.

    Raises UserError where it cannot be loaded or has no parameters to train.
    """
    assert recipe.model is not None
    classifier = load_classifier(
        recipe.model, checkpoint=Path(recipe.checkpoint) if recipe.checkpoint else None, arch=recipe.arch,
        normalize=recipe.normalize,
    )
    programs = (torch.fx.GraphModule, torch.jit.ScriptModule)
    if any(isinstance(part, programs) for part in classifier.module.modules()):
        # Its modes were settled when it was exported, and weights alone could not be loaded into it again.
        raise UserError(
            f"{recipe.model} is an exported program, which can be evaluated but not trained: give a checkpoint with "
            "--arch, or a factory that builds the network"
        )
    module = copy.deepcopy(classifier.module)
    if not any(True for _ in module.parameters()):
        raise UserError(f"{recipe.model} has no weights that could be trained: give a network that has some")
    return Start(
        Trainee(module, classifier.normalization), recipe.arch or recipe.model, classifier.normalization,
        classifier.class_names, classifier.resize,
    )


def fresh_start(recipe: Recipe, dataset: Dataset) -> Start:
    """The recipe's architecture for the classes of the data set, its weights drawn from the recipe's seed."""
    architecture = recipe.arch or "digits-cnn"
    classes = len(dataset.class_names) if dataset.class_names else int(dataset.labels.max()) + 1
    normalization = None
    if scaling := parse_normalization(recipe.normalize or "none"):
        normalization = {"mean": list(scaling[0]), "std": list(scaling[1])}
    # Some small networks are tied to one image size; the others do not ask for it.
    factory = ARCHITECTURES.get(architecture)
    sized = factory is not None and "image_size" in inspect.signature(factory).parameters
    options = {"image_size": dataset.image_shape[1]} if sized else {}
    with seeded(recipe.seed, torch.device("cpu")):
        module = build_architecture(architecture, num_classes=classes, in_channels=dataset.image_shape[0], **options)
    return Start(Trainee(module, normalization), architecture, normalization, dataset.class_names)


def require_fit(network: nn.Module, name: str, dataset: Dataset) -> int:
    """The number of classes of a network that can be trained on the data set.

    Raises UserError where the two do not go together, or the data set cannot teach anything.
    """
    low, high = dataset.raw_range
    if low < -1e-4 or high > 1 + 1e-4:
        raise UserError(
            f"{dataset.name} holds values from {low:.4g} to {high:.4g}, but images must be in [0, 1]: store them as "
            "uint8 or before normalisation, and give the normalisation with --normalize"
        )
    if len(dataset.labels.unique()) < 2:
        raise UserError(f"every image of {dataset.name} is of class {int(dataset.labels[0])}: give data of two or more")
    device = next(network.parameters()).device
    shape = "×".join(map(str, dataset.image_shape))
    network.eval()
    try:
        with torch.no_grad():
            logits = network(dataset.images(torch.arange(min(2, len(dataset)))).to(device))
        classes = int(logits.shape[1])
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} cannot take the {shape} images of {dataset.name} ({reason}): check --arch, --normalize and --data"
        ) from None
    if int(dataset.labels.max()) >= classes:
        raise UserError(
            f"{dataset.name} has label {int(dataset.labels.max())}, but {name} knows {classes} classes "
            f"(labels 0 to {classes - 1}): start from scratch with --arch, or give the data it was made for"
        )
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all()):
        raise UserError(f"{name} ends in a softmax, but training needs logits: take that layer out of its forward")
    return classes
