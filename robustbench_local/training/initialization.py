"""The initial model of a training: an architecture with random weights, or a copy of a trained classifier."""

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
AUXILIARY_CLASSIFIERS = ("torchvision/googlenet", "torchvision/inception_v3")
"""Networks with auxiliary classifiers, which need a loss of their own in training."""


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global random numbers start from the seed; afterwards the caller's continue as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class NormalizedModel(nn.Module):
    """A module with its input normalization; all parameters are trained."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, normalization: Normalization | None):
        super().__init__()
        self.module = module.requires_grad_(True)
        scaling = normalization or {"mean": [0.0], "std": [1.0]}
        self.register_buffer("mean", torch.tensor(scaling["mean"]).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(scaling["std"]).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module((images - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class InitialModel:
    """The network that is trained, and what is needed to load it again.

    resize: how image files are resized for the network; None where it does not say. Arrays keep their size.
    notes: what was done to load trained weights, such as the key in their file.
    """

    network: NormalizedModel
    architecture: str
    normalization: Normalization | None
    class_names: list[str] | None
    resize: Resize | None = None
    notes: tuple[str, ...] = ()

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the last layer's parameters in `network.named_parameters()`; empty where no last layer is known."""
        return tuple(f"module.{name}" for name in head_parameters(self.network.module))

    def classifier(
        self, name: str, input_shape: tuple[int, int, int], *, module: nn.Module | None = None
    ) -> Classifier:
        """A frozen classifier for evaluation. module: with other weights; by default the trained one itself."""
        scaling = self.normalization or {}
        return Classifier(
            self.network.module if module is None else module,
            name=name,
            mean=scaling.get("mean"),
            std=scaling.get("std"),
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
            f"--pretrained is for an --arch, but MODEL {recipe.model} has weights of its own: leave one of them out",
            slug="pretrained-with-model",
        )
    _refuse_auxiliary_classifiers(recipe.arch or recipe.model)
    classifier = load_classifier(
        recipe.model,
        checkpoint=Path(recipe.checkpoint) if recipe.checkpoint else None,
        checkpoint_key=recipe.checkpoint_key,
        arch=recipe.arch,
        normalize=recipe.normalize,
    )
    programs = (torch.fx.GraphModule, torch.jit.ScriptModule)
    if any(isinstance(part, programs) for part in classifier.module.modules()):
        # Train and eval mode were fixed when it was exported, and weights alone cannot be loaded into it again.
        raise UserError(
            f"{recipe.model} is an exported program, which can be evaluated but not trained: give a checkpoint with "
            "--arch, or a factory that builds the network",
            slug="exported-program",
        )
    module = copy.deepcopy(classifier.module)
    if not any(True for _ in module.parameters()):
        raise UserError(
            f"{recipe.model} has no weights to train: give a network with trainable weights", slug="nothing-to-train"
        )
    return InitialModel(
        NormalizedModel(module, classifier.normalization),
        recipe.arch or _described(recipe.model),
        classifier.normalization,
        classifier.class_names,
        resize_of(recipe) or classifier.resize,
        classifier.notes,
    )


def _described(model: str) -> str:
    """The architecture of a checkpoint that was trained here, so that its successor can be loaded without --arch."""
    path = Path(model).expanduser()
    description = description_beside(path / "model.safetensors" if path.is_dir() else path)
    return str(description["architecture"]) if description else model


def resize_of(recipe: Recipe) -> Resize | None:
    """How image files are resized for the recipe's architecture: as the recipe says, else as for the published weights.

    Nothing is downloaded. A recipe's `model` brings its own, which `from_checkpoint` reads. Raises UserError for an
    unknown torchvision or timm architecture, a resize of the wrong form, and a resize of data that are not files.
    """
    if recipe.resize is not None:
        require_files(recipe.data)
        return Resize.parse(recipe.resize)
    zoo = recipe.model is None and recipe.arch is not None and recipe.arch.startswith(ZOOS)
    return published_resize(str(recipe.arch)) if zoo else None


def from_scratch(recipe: Recipe, dataset: Dataset) -> InitialModel:
    """The recipe's architecture for the classes of the dataset, with random weights from the recipe's seed.

    `pretrained` keeps the published weights, or those of the recipe's checkpoint, with their normalization; only the
    last layer is random. Raises UserError where there are no such weights, or the architecture does not fit the images.
    """
    architecture = recipe.arch or "digits-cnn"
    _require_consistent(recipe, architecture, dataset)
    classes = len(dataset.class_names) if dataset.class_names else int(dataset.labels.max()) + 1
    if recipe.pretrained:
        checkpoint = Path(recipe.checkpoint) if recipe.checkpoint else None
        key = recipe.checkpoint_key
        classifier = load_classifier(
            architecture, checkpoint=checkpoint, checkpoint_key=key, normalize=recipe.normalize
        )
        module, normalization, notes = classifier.module, classifier.normalization, classifier.notes
        with seeded(recipe.seed, torch.device("cpu")):
            replace_head(module, classes)
    else:
        with seeded(recipe.seed, torch.device("cpu")):
            module = _random(architecture, classes, dataset.image_shape)
        scaling = parse_normalization(recipe.normalize or "none")
        normalization = {"mean": list(scaling[0]), "std": list(scaling[1])} if scaling else None
        notes = ()
    network = NormalizedModel(module, normalization)
    return InitialModel(network, architecture, normalization, dataset.class_names, resize_of(recipe), notes)


def _random(architecture: str, classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """The architecture with random weights from torch's global generator."""
    if architecture.startswith(ZOOS):
        return untrained(architecture, classes)
    # Only some small networks are built for one image size.
    sized = "image_size" in inspect.signature(find_architecture(architecture)).parameters
    options = {"image_size": image_shape[1]} if sized else {}
    return build_architecture(architecture, num_classes=classes, in_channels=image_shape[0], **options)


def _require_consistent(recipe: Recipe, architecture: str, dataset: Dataset) -> None:
    """Raises UserError where the recipe's initial model contradicts itself or the images."""
    _refuse_auxiliary_classifiers(architecture)
    zoo = architecture.startswith(ZOOS)
    if not zoo and architecture not in ARCHITECTURES and architecture in torchvision_names():
        raise UserError(
            f"there is no architecture {architecture!r}, but there is torchvision/{architecture}",
            slug="unknown-architecture",
        )
    if not zoo:
        find_architecture(architecture)
    if recipe.checkpoint is not None and not recipe.pretrained:
        raise UserError(
            f"--checkpoint {recipe.checkpoint} has weights, but {architecture} starts with random ones: name the file "
            "as MODEL to fine-tune it, or add --pretrained to give it a new last layer",
            slug="checkpoint-without-pretrained",
        )
    if recipe.pretrained and not zoo and recipe.checkpoint is None:
        raise UserError(
            f"there are no published weights of {architecture}: leave --pretrained out, give weights with "
            "--checkpoint, or choose an architecture of torchvision/ or timm/",
            slug="no-published-weights",
        )
    if zoo:
        _require_zoo_consistent(recipe, architecture, dataset)


def _require_zoo_consistent(recipe: Recipe, architecture: str, dataset: Dataset) -> None:
    """The same for torchvision's and timm's architectures."""
    _, options = parse_spec(architecture)
    if "num_classes" in options:
        raise UserError(
            f"{architecture}: the number of classes comes from the data, so leave num_classes out",
            slug="num-classes-with-data",
        )
    if "weights" in options:
        none = options["weights"].lower() == "none"
        if recipe.pretrained and none:
            raise UserError(
                f"{architecture} has no weights, and --pretrained requests them: leave one out",
                slug="weights-contradict-pretrained",
            )
        if not recipe.pretrained and not none:
            raise UserError(
                f"{architecture} names weights: add --pretrained to start from them",
                slug="weights-contradict-pretrained",
            )
    if dataset.image_shape[0] != 3:
        raise UserError(
            f"{architecture} takes images of 3 channels, but those of {dataset.name} have {dataset.image_shape[0]}: "
            f"save them in color, or choose one of our own architectures ({', '.join(ARCHITECTURES)})",
            slug="channels-do-not-fit",
        )


def _refuse_auxiliary_classifiers(architecture: str) -> None:
    if architecture.partition(":")[0] in AUXILIARY_CLASSIFIERS:
        raise UserError(
            f"{architecture} has auxiliary classifiers, which need a loss of their own in training: choose another "
            "architecture, such as torchvision/resnet50",
            slug="auxiliary-classifiers",
        )


def check_eval_data(network: nn.Module, name: str, dataset: Dataset, *, trained_on: Dataset) -> int:
    """The number of classes of a network that is evaluated on another dataset than it is trained on.

    Raises UserError where the network cannot take its images, or lacks one of its classes.
    """
    eval_channels, channels = dataset.image_shape[0], trained_on.image_shape[0]
    if eval_channels != channels:
        raise UserError(
            f"--eval-data {dataset.name} has images of {eval_channels} channels, but those of {trained_on.name}, the "
            f"training data, have {channels}: give data of the same kind",
            slug="channels-do-not-fit",
        )
    return _logits_of(network, name, dataset).shape[1]


def check_fits(network: nn.Module, name: str, dataset: Dataset) -> int:
    """The number of classes of a network that can be trained on the dataset.

    Raises UserError where the two do not fit, the network ends in a softmax, or all images are of one class.
    """
    if len(dataset.labels.unique()) < 2:
        raise UserError(
            f"every image of {dataset.name} is of class {int(dataset.labels[0])}: give data of two classes or more",
            slug="one-class-in-data",
        )
    logits = _logits_of(network, name, dataset)
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all()):
        raise UserError(
            f"{name} ends in a softmax, but training needs logits: remove that layer from its forward",
            slug="softmax-instead-of-logits",
        )
    return logits.shape[1]


def _logits_of(network: nn.Module, name: str, dataset: Dataset) -> Tensor:
    """The logits of the first images. Raises UserError where the network cannot take them or lacks a class."""
    device = next(network.parameters()).device
    shape = "×".join(map(str, dataset.image_shape))
    network.eval()
    try:
        with torch.no_grad():
            logits: Tensor = network(dataset.images(torch.arange(min(2, len(dataset)))).to(device))
        classes = int(logits.shape[1]) if logits.dim() > 1 else 1
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} cannot take the {shape} images of {dataset.name} ({reason}): check --arch, --normalize and --data",
            slug="images-do-not-fit",
        ) from None
    if classes == 1:
        raise UserError(
            f"{name} has one output per image, but training needs one logit per class: give its last layer two outputs",
            slug="one-output-per-image",
        )
    if int(dataset.labels.max()) >= classes:
        raise UserError(
            f"{dataset.name} has label {int(dataset.labels.max())}, but {name} has {classes} classes (labels 0 to "
            f"{classes - 1}): start from scratch with --arch, or give the data it was trained for",
            slug="label-beyond-classes",
        )
    return logits
