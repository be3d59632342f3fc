"""From a MODEL, as the command line names it, to a `Classifier`."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from robustbench_local.errors import UserError, nearest
from robustbench_local.models.architectures.registry import build_architecture, input_shape
from robustbench_local.models.catalog import ARCHITECTURES
from robustbench_local.models.classifier import Classifier, ClassifierInfo
from robustbench_local.models.loaders.bundled import (
    apply_metadata,
    bundled_names,
    description_beside,
    load_bundled,
    read_description,
)
from robustbench_local.models.loaders.checkpoint_file import SUFFIXES, check_file, read_state_dict
from robustbench_local.models.loaders.hub import COLLECTIONS, torchvision_names
from robustbench_local.models.loaders.loaded_model import LoadedModel
from robustbench_local.models.loaders.state_dict import (
    State,
    align,
    extract_normalization,
    infer_size,
    load_into,
    refuse_non_finite,
    shapes_of,
)
from robustbench_local.models.loaders.torch_export import load_exported
from robustbench_local.models.loaders.torchscript_onnx import load_onnx, load_torchscript
from robustbench_local.models.loaders.user_code import call_factory
from robustbench_local.models.normalization import parse_normalization

PROGRAM_SUFFIXES = (".pt2", ".onnx")
IMAGE_SIZES = range(8, 260, 4)
FORMS = (
    "a bundled name, torchvision/NAME, timm/NAME, a file, package.module:FACTORY or path/file.py:FACTORY "
    "('robust list models' shows the names)"
)


def load_classifier(
    model: str,
    *,
    checkpoint: str | Path | None = None,
    arch: str | None = None,
    normalize: str | None = None,
    num_classes: int | None = None,
    map_location: str | torch.device = "cpu",
) -> Classifier:
    """The classifier that MODEL names, its normalisation inside, frozen, on `map_location`.

    `checkpoint` gives the weights of a MODEL that is an architecture or a factory; `arch` gives the architecture of a
    MODEL that is a checkpoint. `normalize` wins over what the source says; without it, a scaling stored in the
    checkpoint counts, then the published weights' own. `num_classes` is read off the checkpoint when not given. Weights
    that come from nowhere are the same every time, and torch's random state is left as it was.

    Raises UserError for whatever the caller can mend.
    """
    wanted = None if normalize is None else (parse_normalization(normalize),)
    path = None if checkpoint is None else Path(checkpoint)
    with _own_random_state():
        loaded = _load(model, path, arch, num_classes)
    refuse_non_finite(_named_tensors(loaded), model if path is None else str(path))
    scaling = loaded.normalization if wanted is None else wanted[0]
    classifier = Classifier(
        loaded.module,
        name=model,
        mean=None if scaling is None else scaling[0],
        std=None if scaling is None else scaling[1],
        class_names=loaded.class_names,
        input_shape=loaded.input_shape,
        info=ClassifierInfo(resize=loaded.resize, probabilities=loaded.probabilities),
        copy=False,
    )
    return classifier.to(map_location)


@contextlib.contextmanager
def _own_random_state() -> Iterator[None]:
    """Initial weights drawn from a fixed seed, the caller's generator untouched."""
    before = torch.random.default_generator.get_state()
    torch.random.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.random.default_generator.set_state(before)


def _named_tensors(loaded: LoadedModel) -> list[tuple[str, torch.Tensor]]:
    return [(key, value) for key, value in loaded.module.state_dict().items() if isinstance(value, torch.Tensor)]


def _load(model: str, checkpoint: Path | None, arch: str | None, num_classes: int | None) -> LoadedModel:
    """MODEL by its form; a folder that `defend` wrote stands for the weights in it."""
    # Names win over folders that happen to be called the same; ./NAME is the folder.
    named = model in ARCHITECTURES or model in bundled_names()
    if not named and (Path(model) / "model.safetensors").is_file():
        model = str(Path(model) / "model.safetensors")
    suffix = Path(model).suffix.lower()
    where, colon, _ = model.rpartition(":")
    is_zoo = model.startswith(("torchvision/", "timm/", "robustbench/"))
    if not is_zoo and (suffix in SUFFIXES or suffix in PROGRAM_SUFFIXES):
        return _load_file(Path(model).expanduser(), checkpoint, arch, num_classes)
    if arch is not None:
        raise UserError(
            f"--arch {arch} says how to read a checkpoint named as MODEL, but {model!r} is no checkpoint "
            f"file; name the file as MODEL, or give it as {model} --checkpoint FILE"
        )
    if model.startswith("robustbench/"):
        raise UserError(
            f"{model!r}: RobustBench's zoo is not loaded by name yet; download the checkpoint and name it "
            "with its architecture, as --arch wide-resnet-28-10 or --arch path/file.py:FACTORY, and the "
            "file with --checkpoint or as MODEL"
        )
    if is_zoo:
        return _load_zoo(model, checkpoint, num_classes)
    if named:
        return _load_own(model, checkpoint, num_classes)
    if colon and where.partition(":")[0] in (*ARCHITECTURES, *bundled_names()):
        raise UserError(f"{model!r}: {where} takes no settings; give --num-classes and --checkpoint instead")
    if colon:
        return _load_factory(model, checkpoint, num_classes)
    raise UserError(_unknown(model))


def _load_file(path: Path, checkpoint: Path | None, arch: str | None, num_classes: int | None) -> LoadedModel:
    """A file that is a program or, with `--arch`, a checkpoint."""
    if checkpoint is not None:
        raise UserError(
            f"two files of weights, {path} and --checkpoint {checkpoint}; give one, and the architecture "
            "as MODEL or with --arch"
        )
    check_file(path)
    kind = _program_kind(path)
    if kind is None:
        description = description_beside(path)
        if arch is None and description is not None:
            arch = _described_architecture(path, description)
        if arch is None:
            raise UserError(_needs_arch(path))
        if Path(arch).suffix.lower() in (*SUFFIXES, *PROGRAM_SUFFIXES):
            raise UserError(
                f"--arch {arch} is a file of weights; name an architecture ({', '.join(ARCHITECTURES)}, "
                "torchvision/NAME, timm/NAME) or path/file.py:FACTORY"
            )
        loaded = _load(arch, path, None, num_classes)
        if description is not None:
            apply_metadata(loaded, description)
        return loaded
    if arch is not None or num_classes is not None:
        option = "--arch" if arch is not None else "--num-classes"
        raise UserError(
            f"{path} is a whole program ({kind.__name__.removeprefix('load_')}) that brings its own "
            f"architecture; leave {option} out"
        )
    return kind(path)


def _described_architecture(path: Path, description: dict[str, Any]) -> str:
    """The architecture that the description beside the weights names; never code, which a file must not choose."""
    arch = str(description.get("architecture"))
    if arch in ARCHITECTURES or arch in bundled_names() or arch.startswith(("torchvision/", "timm/")):
        return arch
    raise UserError(
        f"{path} was trained from {arch!r}; name the code that builds it with --arch path/file.py:FACTORY "
        "or --arch package.module:FACTORY"
    )


def _program_kind(path: Path) -> Callable[[Path], LoadedModel] | None:
    """The loader of a file that brings its own architecture, by its suffix or by what a `.pt` holds."""
    suffix = path.suffix.lower()
    if suffix in PROGRAM_SUFFIXES:
        return load_onnx if suffix == ".onnx" else load_exported
    if suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return None
    try:
        inner = {name.partition("/")[2] for name in zipfile.ZipFile(path).namelist()}
    except zipfile.BadZipFile:
        return None
    if "archive_format" in inner:
        return load_exported
    return load_torchscript if "constants.pkl" in inner else None


def _needs_arch(path: Path) -> str:
    """The file needs `--arch`; which of ours it fits is said when one does."""
    state = read_state_dict(path)
    fits = []
    for name in ARCHITECTURES:
        with torch.device("meta"):
            shapes = shapes_of(build_architecture(name))
        if all(key in state for key in shapes if not key.endswith("num_batches_tracked")):
            fits.append(name)
    hint = f"; its names are those of --arch {fits[0]}" if len(fits) == 1 else ""
    return (
        f"{path} holds weights alone: name their architecture with --arch ({', '.join(ARCHITECTURES)}, "
        f"torchvision/NAME, timm/NAME, package.module:FACTORY or path/file.py:FACTORY){hint}"
    )


def _load_zoo(model: str, checkpoint: Path | None, num_classes: int | None) -> LoadedModel:
    collection, _, spec = model.partition("/")
    state = None if checkpoint is None else read_state_dict(checkpoint)
    loaded = COLLECTIONS[collection](spec, state, num_classes)
    if checkpoint is not None:
        _fill(loaded, checkpoint)
    return loaded


def _load_own(model: str, checkpoint: Path | None, num_classes: int | None) -> LoadedModel:
    """A bundled classifier, or an architecture of ours (a bundled one's too) with a checkpoint."""
    bundled = model in bundled_names()
    if checkpoint is None:
        if not bundled:
            raise UserError(f"{model} is an architecture without weights; give them with --checkpoint FILE")
        if num_classes is not None:
            raise UserError(
                f"{model} is bundled with its weights and classes; leave --num-classes out, or give other "
                "weights with --checkpoint FILE"
            )
        return load_bundled(model)
    description = read_description(model) if bundled else {}
    name = description.get("architecture", model)
    module = _sized(name, read_state_dict(checkpoint), num_classes)
    loaded = LoadedModel(module, input_shape=input_shape(module))
    _fill(loaded, checkpoint)
    # The last parameter is the last layer's bias in all of them: one value per class.
    names = description.get("class_names", ())
    if len(names) == list(module.parameters())[-1].numel():
        loaded.class_names = names
    return loaded


def _sized(name: str, state: State, num_classes: int | None) -> torch.nn.Module:
    """The architecture with the classes, channels and image size that the checkpoint's shapes tell."""
    classes = num_classes or infer_size(state, lambda count: build_architecture(name, count), 10, 11) or 10
    channels = infer_size(state, lambda count: build_architecture(name, classes, count), 3, 4)
    options: dict[str, int | bool] = {}
    if name == "preact-resnet18":
        options["final_norm"] = any(key == "bn.weight" or key.endswith(".bn.weight") for key in state)
    if name == "cnn-small":
        options["image_size"] = _image_size(state)
    return build_architecture(name, classes, channels, **options)


def _image_size(state: State) -> int:
    """`cnn-small` is tied to its image size by the first linear layer."""
    with torch.device("meta"):
        state = align(state, shapes_of(build_architecture("cnn-small")))
        for size in IMAGE_SIZES:
            shape = shapes_of(build_architecture("cnn-small", image_size=size))["linear1.weight"]
            if "linear1.weight" in state and tuple(state["linear1.weight"].shape) == shape:
                return size
    return 32


def _load_factory(model: str, checkpoint: Path | None, num_classes: int | None) -> LoadedModel:
    if num_classes is not None:
        raise UserError(
            f"{model} is called without arguments, so its number of classes is its own; leave "
            "--num-classes out, or name a factory that builds the classes you mean"
        )
    module = call_factory(model)
    if isinstance(module, Classifier):
        # Taken apart, so that `--normalize` and `--checkpoint` mean the same as for any other module.
        scaling = module.normalization
        pair = (tuple(scaling["mean"]), tuple(scaling["std"])) if scaling else None
        loaded = LoadedModel(
            module.module, pair, module.class_names, module.input_shape, module.resize, module.probabilities
        )
    else:
        loaded = LoadedModel(module)
    if checkpoint is not None:
        _fill(loaded, checkpoint)
    return loaded


def _fill(loaded: LoadedModel, checkpoint: Path) -> None:
    """The checkpoint's weights into the module; a scaling stored beside them becomes the classifier's."""
    state = read_state_dict(checkpoint, loaded.module)
    state, scaling = extract_normalization(state, shapes_of(loaded.module))
    load_into(loaded.module, state, str(checkpoint))
    if scaling is not None:
        loaded.normalization = (tuple(scaling[0]), tuple(scaling[1]))


def _unknown(model: str) -> str:
    """No form fits: what it may have been meant as."""
    if model.endswith(".py"):
        return f"{model!r} names a file of code without what to call in it; write {model}:FACTORY"
    if Path(model).exists():
        return (
            f"{model!r} is a file or folder, but none of the kinds read: "
            f"{', '.join((*SUFFIXES, *PROGRAM_SUFFIXES))}, or path/file.py:FACTORY"
        )
    if model in torchvision_names():
        return f"there is no model {model!r}, but there is torchvision/{model}"
    known = [*bundled_names(), *ARCHITECTURES, *(f"torchvision/{name}" for name in torchvision_names())]
    return f"there is no model {model!r}; MODEL is {FORMS}.{nearest(model, known)}"
