"""Where training starts: an architecture with fresh weights, or a copy of a classifier that exists."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robustbench_local.data import require_files
from robustbench_local.data.dataset import Dataset
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.models import Classifier, build_architecture, load_classifier, parse_normalization
from robustbench_local.models.architectures.registry import find_architecture
from robustbench_local.models.catalog import ARCHITECTURES
from robustbench_local.models.head import head_parameters, replace_head
from robustbench_local.models.loaders.bundled import description_beside
from robustbench_local.models.loaders.hub import published_resize, torchvision_names, untrained
from robustbench_local.specs import parse_spec
from robustbench_local.training.recipe import Recipe

Normalization = dict[str, list[float]]
ZOOS = ("torchvision/", "timm/")
SIDE_OUTPUTS = ("torchvision/googlenet", "torchvision/inception_v3")
"""Networks that give several outputs while they are trained, with a loss of their own."""


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global random numbers start from the seed – for initial weights and dropout – and the caller's go on
    afterwards as if nothing had drawn from them.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class NormalizedModel(nn.Module):
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
class InitialModel:
    """What is trained, and what has to be known to load it again.

    resize: how the network wants image files resized; None where it says nothing. Data of arrays keep their size
    whatever stands there.
    """

    network: NormalizedModel
    architecture: str
    normalization: Normalization | None
    class_names: list[str] | None
    resize: Resize | None = None

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the last layer's parameters among `network.named_parameters()`; empty where none is found."""
        return tuple(f"module.{name}" for name in head_parameters(self.network.module))

    def classifier(self, name: str, input_shape: tuple[int, int, int]) -> Classifier:
        """The trained module, frozen and ready to be evaluated."""
        given = self.normalization or {}
        return Classifier(
            self.network.module,
            name=name,
            mean=given.get("mean"),
            std=given.get("std"),
            class_names=self.class_names,
            input_shape=input_shape,
        )


def from_checkpoint(recipe: Recipe) -> InitialModel:
    """A copy of the recipe's classifier.

    Raises UserError where it cannot be loaded or has no parameters to train.
    """
    assert recipe.model is not None
    if recipe.pretrained:
        raise UserError(
            f"--pretrained is for an --arch, but MODEL {recipe.model} brings its own weights: leave one of them out"
        )
    _refuse_side_outputs(recipe.arch or recipe.model)
    classifier = load_classifier(
        recipe.model,
        checkpoint=Path(recipe.checkpoint) if recipe.checkpoint else None,
        arch=recipe.arch,
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
    return InitialModel(
        NormalizedModel(module, classifier.normalization),
        recipe.arch or _described(recipe.model),
        classifier.normalization,
        classifier.class_names,
        resize_of(recipe) or classifier.resize,
    )


def _described(model: str) -> str:
    """The architecture of a folder or file that was trained here, so that what comes of it loads by itself too."""
    path = Path(model).expanduser()
    description = description_beside(path / "model.safetensors" if path.is_dir() else path)
    return str(description["architecture"]) if description else model


def resize_of(recipe: Recipe) -> Resize | None:
    """How image files are resized for the recipe's architecture: as the recipe says, else as the published weights do.

    Data are loaded with it before `fresh_start` can know how many classes there are; nothing is fetched. A recipe's
    `model` says it itself, in `loaded_start`. Raises UserError for an unknown architecture of the collections, a resize
    of the wrong form, and one for data that do not come from files.
    """
    if recipe.resize is not None:
        require_files(recipe.data)
        return Resize.parse(recipe.resize)
    zoo = recipe.model is None and recipe.arch is not None and recipe.arch.startswith(ZOOS)
    return published_resize(str(recipe.arch)) if zoo else None


def from_scratch(recipe: Recipe, dataset: Dataset) -> InitialModel:
    """The recipe's architecture for the classes of the data set, what is random in it drawn from the recipe's seed.

    `pretrained` keeps the published weights, or those of the recipe's checkpoint, with their normalisation, and draws
    only the last layer. Raises UserError where there are no such weights, or the architecture does not go with the
    images.
    """
    architecture = recipe.arch or "digits-cnn"
    _require_sense(recipe, architecture, dataset)
    classes = len(dataset.class_names) if dataset.class_names else int(dataset.labels.max()) + 1
    if recipe.pretrained:
        checkpoint = Path(recipe.checkpoint) if recipe.checkpoint else None
        classifier = load_classifier(architecture, checkpoint=checkpoint, normalize=recipe.normalize)
        module, normalization = classifier.module, classifier.normalization
        with seeded(recipe.seed, torch.device("cpu")):
            replace_head(module, classes)
    else:
        with seeded(recipe.seed, torch.device("cpu")):
            module = _random(architecture, classes, dataset.image_shape)
        scaling = parse_normalization(recipe.normalize or "none")
        normalization = {"mean": list(scaling[0]), "std": list(scaling[1])} if scaling else None
    return InitialModel(
        NormalizedModel(module, normalization), architecture, normalization, dataset.class_names, resize_of(recipe)
    )


def _random(architecture: str, classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """The architecture with weights from torch's global generator."""
    if architecture.startswith(ZOOS):
        return untrained(architecture, classes)
    # Some small networks are tied to one image size; the others do not ask for it.
    sized = "image_size" in inspect.signature(find_architecture(architecture)).parameters
    options = {"image_size": image_shape[1]} if sized else {}
    return build_architecture(architecture, num_classes=classes, in_channels=image_shape[0], **options)


def _require_sense(recipe: Recipe, architecture: str, dataset: Dataset) -> None:
    """Raises UserError where the recipe's settings of the start contradict each other or the images."""
    _refuse_side_outputs(architecture)
    zoo = architecture.startswith(ZOOS)
    if not zoo and architecture not in ARCHITECTURES and architecture in torchvision_names():
        raise UserError(f"there is no architecture {architecture!r}, but there is torchvision/{architecture}")
    if not zoo:
        find_architecture(architecture)
    if recipe.checkpoint is not None and not recipe.pretrained:
        raise UserError(
            f"--checkpoint {recipe.checkpoint} gives weights, but {architecture} is to start without any: name the "
            "file as MODEL to go on training it, or add --pretrained to give it a new last layer"
        )
    if recipe.pretrained and not zoo and recipe.checkpoint is None:
        raise UserError(
            f"there are no published weights of {architecture}: leave --pretrained out, give weights with "
            "--checkpoint, or take an architecture of torchvision/ or timm/"
        )
    if not zoo:
        return
    _, options = parse_spec(architecture)
    if "num_classes" in options:
        raise UserError(f"{architecture}: how many classes there are is read off the data, so leave num_classes out")
    if "weights" in options:
        none = options["weights"].lower() == "none"
        if recipe.pretrained and none:
            raise UserError(f"{architecture} is to have no weights, and --pretrained asks for them: leave one out")
        if not recipe.pretrained and not none:
            raise UserError(f"{architecture} names weights: add --pretrained to start from them")
    if dataset.image_shape[0] != 3:
        raise UserError(
            f"{architecture} takes images of 3 channels, but those of {dataset.name} have {dataset.image_shape[0]}: "
            f"save them in colour, or take one of our own architectures ({', '.join(ARCHITECTURES)})"
        )


def _refuse_side_outputs(architecture: str) -> None:
    if architecture.partition(":")[0] in SIDE_OUTPUTS:
        raise UserError(
            f"{architecture} has side outputs that need a loss of their own in training: take another architecture, "
            "such as torchvision/resnet50"
        )


def require_seen(network: nn.Module, name: str, dataset: Dataset, *, trained_on: Dataset) -> int:
    """How many classes the network knows, which is to be evaluated on another set than it is trained on.

    Raises UserError where the set has other images than it can take, or classes that it does not know.
    """
    (there, *_), (here, *_) = dataset.image_shape, trained_on.image_shape
    if there != here:
        raise UserError(
            f"--eval-data {dataset.name} has images of {there} channels, but those of {trained_on.name}, which is "
            f"trained on, have {here}: give data of the same kind"
        )
    return _logits_of(network, name, dataset).shape[1]


def check_fits(network: nn.Module, name: str, dataset: Dataset) -> int:
    """The number of classes of a network that can be trained on the data set.

    Raises UserError where the two do not go together, or the data set cannot teach anything.
    """
    if len(dataset.labels.unique()) < 2:
        raise UserError(f"every image of {dataset.name} is of class {int(dataset.labels[0])}: give data of two or more")
    logits = _logits_of(network, name, dataset)
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all()):
        raise UserError(f"{name} ends in a softmax, but training needs logits: take that layer out of its forward")
    return logits.shape[1]


def _logits_of(network: nn.Module, name: str, dataset: Dataset) -> Tensor:
    """What the network says of the first images. Raises UserError where it cannot take them or lacks a class."""
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
    return logits
