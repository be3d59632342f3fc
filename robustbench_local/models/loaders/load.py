"""From a MODEL, as the command line names it, to a `Classifier`."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustbench_local.errors import UserError
from robustbench_local.models.architectures.registry import build_architecture, input_shape, options_from_weights
from robustbench_local.models.catalog import (
    ARCHITECTURES,
    PROGRAM_SUFFIXES,
    WEIGHT_SUFFIXES,
    bundled_names,
    is_collection_name,
    is_own_name,
    require_own_name,
)
from robustbench_local.models.classifier import Classifier, ClassifierInfo
from robustbench_local.models.loaders.bundled import apply_metadata, description_beside, load_bundled, read_description
from robustbench_local.models.loaders.checkpoint import Checkpoint
from robustbench_local.models.loaders.checkpoint_file import check_file, read_checkpoint
from robustbench_local.models.loaders.hub import COLLECTIONS
from robustbench_local.models.loaders.loaded_model import LoadedModel, LoadOptions
from robustbench_local.models.loaders.onnx_graph import load_onnx
from robustbench_local.models.loaders.state_dict import best_match, infer_size, load_weights
from robustbench_local.models.loaders.tensors import refuse_non_finite, shapes_of
from robustbench_local.models.loaders.torch_export import load_exported
from robustbench_local.models.loaders.torchscript import load_torchscript
from robustbench_local.models.loaders.user_code import call_factory
from robustbench_local.models.normalization import Normalization, parse_normalization


def load_classifier(
    model: str,
    *,
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    arch: str | None = None,
    normalize: str | None = None,
    num_classes: int | None = None,
    map_location: str | torch.device = "cpu",
) -> Classifier:
    """The classifier that MODEL names, its normalization included, frozen, on `map_location`.

    `checkpoint` gives the weights of a MODEL that is an architecture or a factory; `arch` gives the architecture of a
    MODEL that is a file of weights. `checkpoint_key` says where in the file the weights are, such as `state_dict_ema`;
    it must be given where several different ones fit. `normalize` overrides what the source says; without it, a
    normalization stored in the checkpoint is used, else the published weights' own. `num_classes` is inferred from the
    checkpoint when not given. Random weights are the same every time, and torch's random state is left as it was.

    The classifier's `weights` and `notes` say which key was used and what else was decided. Raises UserError for
    whatever the caller can fix.
    """
    override = None if normalize is None else (parse_normalization(normalize),)
    options = LoadOptions(None if checkpoint is None else Path(checkpoint), checkpoint_key, arch, num_classes, override)
    with _own_random_state(), warnings.catch_warnings():
        # Libraries warn whoever writes such models, not whoever loads one. Our own notes are no Python warnings.
        warnings.simplefilter("ignore")
        loaded = _load(model, options)
    if checkpoint_key is not None and loaded.weights is None:
        raise UserError(
            f"--checkpoint-key {checkpoint_key} chooses among the weights in a file, but {model} takes none from one; "
            "leave it out, or give --checkpoint FILE",
            slug="checkpoint-key-without-checkpoint",
        )
    refuse_non_finite(_named_tensors(loaded), str(checkpoint or model))
    mean, std = (loaded.normalization if override is None else override[0]) or (None, None)
    classifier = Classifier(
        loaded.module,
        name=model,
        mean=mean,
        std=std,
        class_names=loaded.class_names,
        input_shape=loaded.input_shape,
        info=ClassifierInfo(
            resize=loaded.resize, probabilities=loaded.probabilities, weights=loaded.weights, notes=tuple(loaded.notes)
        ),
        copy=False,
    )
    return classifier.to(map_location)


@contextlib.contextmanager
def _own_random_state() -> Iterator[None]:
    """Draw initial weights from a fixed seed and leave the caller's generator untouched."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def _named_tensors(loaded: LoadedModel) -> list[tuple[str, torch.Tensor]]:
    return [(key, value) for key, value in loaded.module.state_dict().items() if isinstance(value, torch.Tensor)]


def _load(model: str, options: LoadOptions) -> LoadedModel:
    """MODEL by its form; a directory that `defend` wrote means the weights in it."""
    # Names win over directories of the same name; ./NAME is the directory.
    if not is_own_name(model) and (Path(model) / "model.safetensors").is_file():
        model = str(Path(model) / "model.safetensors")
    if not is_collection_name(model) and Path(model).suffix.lower() in (*WEIGHT_SUFFIXES, *PROGRAM_SUFFIXES):
        return _load_file(Path(model).expanduser(), options)
    if options.arch is not None:
        raise UserError(
            f"--arch {options.arch} says how to read a checkpoint named as MODEL, but {model!r} is no checkpoint "
            f"file; name the file as MODEL, or give it as {model} --checkpoint FILE",
            slug="arch-without-checkpoint-file",
        )
    if model.startswith("robustbench/"):
        raise UserError(
            f"{model!r}: RobustBench's zoo is not loaded by name yet; download the checkpoint and name it "
            "with its architecture, as --arch wide-resnet-28-10 or --arch path/file.py:FACTORY, and the "
            "file with --checkpoint or as MODEL",
            slug="robustbench-zoo",
        )
    if is_collection_name(model):
        return _load_from_collection(model, options)
    require_own_name(model)
    if is_own_name(model):
        return _load_own(model, options)
    return _load_factory(model, options)


def _load_file(path: Path, options: LoadOptions) -> LoadedModel:
    """A file that is a program or, with `--arch`, a checkpoint."""
    if options.checkpoint is not None:
        raise UserError(
            f"two files of weights, {path} and --checkpoint {options.checkpoint}; give one, and the architecture "
            "as MODEL or with --arch",
            slug="two-checkpoints",
        )
    check_file(path)
    kind = _program_kind(path)
    if kind is None:
        return _load_described(path, options)
    if options.arch is not None or options.num_classes is not None:
        option = "--arch" if options.arch is not None else "--num-classes"
        raise UserError(
            f"{path} is a whole program ({kind.__name__.removeprefix('load_')}) that brings its own "
            f"architecture; leave {option} out",
            slug="program-brings-architecture",
        )
    return kind(path)


def _load_described(path: Path, options: LoadOptions) -> LoadedModel:
    """A file of weights, its architecture from `--arch` or from the description beside it."""
    description, arch = description_beside(path), options.arch
    if arch is None and description is not None:
        arch = _described_architecture(path, description)
    if arch is None:
        raise UserError(_needs_arch(path), slug="missing-arch")
    if Path(arch).suffix.lower() in (*WEIGHT_SUFFIXES, *PROGRAM_SUFFIXES):
        raise UserError(
            f"--arch {arch} is a file of weights; name an architecture ({', '.join(ARCHITECTURES)}, "
            "torchvision/NAME, timm/NAME) or path/file.py:FACTORY",
            slug="arch-is-a-file",
        )
    loaded = _load(arch, dataclasses.replace(options, checkpoint=path, arch=None))
    if description is not None:
        apply_metadata(loaded, description)
    return loaded


def _described_architecture(path: Path, description: dict[str, Any]) -> str:
    """The architecture that the description beside the weights names; never code, which a file must not choose."""
    arch = str(description.get("architecture"))
    if is_own_name(arch) or arch.startswith(("torchvision/", "timm/")):
        return arch
    raise UserError(
        f"{path} was trained from {arch!r}; name the code that builds it with --arch path/file.py:FACTORY "
        "or --arch package.module:FACTORY",
        slug="missing-arch",
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
    """The message that the file needs `--arch`; it names the one of our architectures that fits, if one does."""
    checkpoint = read_checkpoint(path)
    fits = []
    for name in ARCHITECTURES:
        with torch.device("meta"):
            shapes = shapes_of(build_architecture(name))
        state = best_match(checkpoint, shapes).state
        if all(key in state for key in shapes if not key.endswith("num_batches_tracked")):
            fits.append(name)
    hint = f"; its names are those of --arch {fits[0]}" if len(fits) == 1 else ""
    return (
        f"{path} holds weights alone: name their architecture with --arch ({', '.join(ARCHITECTURES)}, "
        f"torchvision/NAME, timm/NAME, package.module:FACTORY or path/file.py:FACTORY){hint}"
    )


def _load_from_collection(model: str, options: LoadOptions) -> LoadedModel:
    collection, _, spec = model.partition("/")
    checkpoint = None if options.checkpoint is None else read_checkpoint(options.checkpoint)
    loaded = COLLECTIONS[collection](spec, options, checkpoint)
    if checkpoint is not None:
        _fill(loaded, checkpoint, options)
    return loaded


def _load_own(model: str, options: LoadOptions) -> LoadedModel:
    """A bundled classifier, or an architecture of ours (also a bundled one's) with a checkpoint."""
    bundled = model in bundled_names()
    if options.checkpoint is None:
        if not bundled:
            raise UserError(
                f"{model} is an architecture without weights; give them with --checkpoint FILE",
                slug="architecture-without-weights",
            )
        if options.num_classes is not None:
            raise UserError(
                f"{model} is bundled with its weights and classes; leave --num-classes out, or give other "
                "weights with --checkpoint FILE",
                slug="num-classes-fixed",
            )
        return load_bundled(model)
    description = read_description(model) if bundled else {}
    checkpoint = read_checkpoint(options.checkpoint)
    module = _sized(description.get("architecture", model), checkpoint, options)
    loaded = LoadedModel(module, input_shape=input_shape(module))
    _fill(loaded, checkpoint, options)
    # The last parameter is the last layer's bias in all of them: one value per class.
    names = description.get("class_names", ())
    if len(names) == list(module.parameters())[-1].numel():
        loaded.class_names = names
    return loaded


def _sized(name: str, checkpoint: Checkpoint, options: LoadOptions) -> nn.Module:
    """The architecture with the classes, channels and options that the checkpoint's shapes imply."""
    with torch.device("meta"):
        shapes = shapes_of(build_architecture(name))
    implied = options_from_weights(name, best_match(checkpoint, shapes, options.key).state)

    def classes_of(count: int) -> nn.Module:
        return build_architecture(name, count, **implied)

    classes = options.num_classes or infer_size(checkpoint, classes_of, (10, 11), options.key) or 10

    def channels_of(count: int) -> nn.Module:
        return build_architecture(name, classes, count, **implied)

    return build_architecture(name, classes, infer_size(checkpoint, channels_of, (3, 4), options.key), **implied)


def _load_factory(model: str, options: LoadOptions) -> LoadedModel:
    if options.num_classes is not None:
        raise UserError(
            f"{model} is called without arguments, so its number of classes is its own; leave "
            "--num-classes out, or name a factory that builds the classes you mean",
            slug="num-classes-fixed",
        )
    module, notes = call_factory(model)
    if isinstance(module, Classifier):
        # Taken apart, so that `--normalize` and `--checkpoint` mean the same as for any other module.
        stored = module.normalization
        loaded = LoadedModel(
            module.module,
            (tuple(stored["mean"]), tuple(stored["std"])) if stored else None,
            module.class_names,
            module.input_shape,
            module.resize,
            module.probabilities,
            notes=[*notes, *module.notes],
        )
    else:
        loaded = LoadedModel(module, notes=notes)
    if options.checkpoint is not None:
        _fill(loaded, read_checkpoint(options.checkpoint), options)
    return loaded


def _fill(loaded: LoadedModel, checkpoint: Checkpoint, options: LoadOptions) -> None:
    """Load the checkpoint's weights into the module; a normalization stored beside them becomes the classifier's."""
    weights = load_weights(loaded.module, checkpoint, options.key)
    loaded.weights = weights.key
    loaded.notes += weights.notes
    if options.normalization is not None:
        stored = [each for each in weights.normalizations if not _same(each, options.normalization[0])]
        loaded.notes += [
            f"normalization: {checkpoint.source} stores {_normalization_text(each)}; --normalize overrides it"
            for each in stored
        ]
        return
    if not weights.normalizations:
        return
    if len(weights.normalizations) > 1:
        listed = " and ".join(map(_normalization_text, weights.normalizations))
        raise UserError(
            f"{checkpoint.source} stores different normalizations, {listed}: choose one with --normalize MEAN:STD",
            slug="ambiguous-normalization",
        )
    loaded.normalization = weights.normalizations[0]
    loaded.notes.append(
        f"normalization: {_normalization_text(loaded.normalization)}, stored in {checkpoint.source}; "
        "--normalize overrides it"
    )


def _same(one: Normalization, other: Normalization | None) -> bool:
    """Whether two normalizations agree up to rounding; one value applies to all channels."""
    if other is None:
        return False
    for left, right in zip(one, other, strict=True):
        channels = max(len(left), len(right))
        left, right = (values * channels if len(values) == 1 else values for values in (left, right))
        if len(left) != len(right) or any(abs(a - b) > 1e-4 for a, b in zip(left, right, strict=True)):
            return False
    return True


def _normalization_text(normalization: Normalization) -> str:
    return ":".join(",".join(f"{value:.6g}" for value in values) for values in normalization)
