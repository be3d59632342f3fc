"""Names of the bundled models, architectures and input defenses. Imports no torch, so that wrong names fail at once.

To add an architecture or an input defense, write one file and add one line here:

* an architecture: a `torch.nn.Module` class in `models/architectures/`, called with `num_classes` and `in_channels`;
* an input defense: a frozen dataclass in `models/input_defenses/` that follows `InputDefense`.
"""

from __future__ import annotations

import importlib
import importlib.resources
import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from robustbench_local.errors import UserError, nearest

ARCHITECTURES: dict[str, str] = {
    "digits-cnn": "digits_cnn:DigitsCNN",
    "cnn-small": "cnn_small:SmallCNN",
    "cnn-medium": "cnn_medium:MediumCNN",
    "resnet18": "resnet18:ResNet18",
    "preact-resnet18": "preact_resnet18:PreActResNet18",
    "wide-resnet-28-10": "wide_resnet:WideResNet",
}
"""Name -> file and class in `models/architectures/`."""

INPUT_DEFENSES: dict[str, str] = {
    "jpeg": "jpeg:Jpeg",
    "bit-depth": "bit_depth:BitDepth",
    "median": "median:Median",
    "total-variation": "total_variation:TotalVariation",
}
"""Name -> file and class in `models/input_defenses/`."""

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
PROGRAM_SUFFIXES = (".pt2", ".onnx")
COLLECTIONS = ("torchvision/", "timm/")
FORMS = (
    "a bundled name, torchvision/NAME, timm/NAME, a file, package.module:FACTORY or path/file.py:FACTORY "
    "('robust list models' shows the names)"
)


def load_entry(table: Mapping[str, str], name: str, package: str) -> Any:
    """The class that a table of this module names, imported from `robustbench_local.models.PACKAGE`."""
    file, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(f"robustbench_local.models.{package}.{file}"), attribute)


def bundled_directory() -> Traversable:
    """The directory of the bundled weights and their descriptions."""
    return importlib.resources.files("robustbench_local.models.bundled")


def bundled_names() -> list[str]:
    """The names of the bundled classifiers."""
    files = {entry.name for entry in bundled_directory().iterdir()}
    return sorted(
        name.removesuffix(".json")
        for name in files
        if name.endswith(".json") and name.replace(".json", ".safetensors") in files
    )


@cache
def torchvision_classifiers() -> tuple[str, ...]:
    """Names of torchvision's classifiers, read from its source without importing it; empty where it is not installed.

    For suggestions only: torchvision itself decides what it has.
    """
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return ()
    sources = sorted((Path(package.origin).parent / "models").glob("*.py"))
    pattern = re.compile(r"^@register_model\(\)$.*?^def (\w+)\(", re.DOTALL | re.MULTILINE)
    return tuple(name for source in sources for name in pattern.findall(source.read_text(encoding="utf-8")))


def require_architecture(name: str) -> None:
    """Raise UserError for a name that is none of our architectures, with the nearest one."""
    if name not in ARCHITECTURES:
        names = ", ".join(ARCHITECTURES)
        raise UserError(
            f"unknown architecture {name!r}; there are {names}.{nearest(name, ARCHITECTURES)}",
            slug="unknown-architecture",
        )


def require_input_defense(name: str) -> None:
    """Raise UserError for a name that is none of the input defenses, with the nearest one."""
    if name not in INPUT_DEFENSES:
        names = ", ".join(INPUT_DEFENSES)
        raise UserError(
            f"unknown input defense {name!r}; choose from {names}.{nearest(name, INPUT_DEFENSES)}",
            slug="unknown-input-defense",
        )


def is_collection_name(model: str) -> bool:
    """Whether MODEL is written COLLECTION/NAME, such as `torchvision/resnet50`."""
    return model.startswith((*COLLECTIONS, "robustbench/"))


def is_own_name(model: str) -> bool:
    """Whether MODEL is an architecture of ours or a bundled classifier."""
    return model in ARCHITECTURES or model in bundled_names()


def check_model_name(model: str, arch: str | None = None) -> None:
    """Raise UserError for a MODEL or `--arch` that names nothing, before torch is imported.

    What only torch, torchvision, timm or the user's code can decide passes: loading checks it. A MODEL of weights or of
    a whole program must exist as a file.
    """
    if _is_file_name(model):
        if not Path(model).expanduser().exists():
            raise UserError(f"there is no file {model}: check the path", slug="no-such-file")
        if arch is not None and ":" not in arch and not is_collection_name(arch) and not _is_file_name(arch):
            require_own_name(arch)
    elif arch is None and not is_collection_name(model):
        require_own_name(model)


def require_own_name(model: str) -> None:
    """Raise UserError for a MODEL that has none of the known forms, with what it may have been meant as."""
    where, colon, _ = model.rpartition(":")
    if colon and is_own_name(where.partition(":")[0]):
        raise UserError(
            f"{model!r}: {where} takes no settings; give --num-classes and --checkpoint instead",
            slug="model-takes-no-settings",
        )
    if colon or is_own_name(model) or (Path(model) / "model.safetensors").is_file():
        return
    raise UserError(_unknown(model), slug="unknown-model")


def _is_file_name(model: str) -> bool:
    return not is_collection_name(model) and Path(model).suffix.lower() in (*WEIGHT_SUFFIXES, *PROGRAM_SUFFIXES)


def _unknown(model: str) -> str:
    """Why MODEL cannot be loaded, and what it may have been meant as."""
    if model.endswith(".py"):
        return f"{model!r} names a file of code but no function in it; write {model}:FACTORY"
    if Path(model).exists():
        kinds = ", ".join((*WEIGHT_SUFFIXES, *PROGRAM_SUFFIXES))
        return f"{model!r} is a file or directory of none of these kinds: {kinds}, or path/file.py:FACTORY"
    if model in torchvision_classifiers():
        return f"there is no model {model!r}, but there is torchvision/{model}"
    names = [*bundled_names(), *ARCHITECTURES, *(f"torchvision/{name}" for name in torchvision_classifiers())]
    return f"there is no model {model!r}; MODEL is {FORMS}.{nearest(model, names)}"
