"""The datasets that `--data` accepts by name. Imports torch only when a dataset is loaded.

A dataset is one file in `data/sets/` with a `DatasetEntry` called `DATASET`, and one line in `MODULES` below. Command
line, listing, default eps, help and the hints for misspelled names follow from the entry.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustbench_local.data.dataset import Dataset
    from robustbench_local.data.resize import Resize

MODULES = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "gtsrb", "imagenet", "imagefolder", "npz")
"""The files of `data/sets/`, in the order of `robust list datasets`."""
SMALL_COLOR_EPS = {"linf": "8/255", "l2": "0.5"}
"""Customary for color images of about 32x32 pixels."""


@dataclass(frozen=True)
class LoadRequest:
    """The arguments for loading a dataset.

    split: one of the entry's splits. path: what follows the colon of `--data NAME:PATH`, else None.
    data_dir: where downloaded sets are. download: fetch a set that is not there. resize: for image files, else None.
    class_names: the model's, to number class directories in the model's order, or None.
    """

    split: str = "test"
    path: Path | None = None
    data_dir: Path = Path("data")
    download: bool = False
    resize: Resize | None = None
    class_names: list[str] | None = None


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset of the catalog.

    name: what `--data` calls it. description: one line for `robust list datasets`. load: returns the dataset, and
    imports torch and other libraries only when it is called; raises UserError for what cannot be read.
    default_eps: the customary eps for each norm, as text, so that reports print it as the field writes it.
    splits: what `--split` takes; empty where a set has no splits. takes_path: written `NAME:PATH`.
    image_files: the images are files that `--resize` can bring to one size.
    """

    name: str
    description: str
    load: Callable[[LoadRequest], Dataset]
    default_eps: Mapping[str, str] = field(default_factory=dict)
    splits: tuple[str, ...] = ("test", "train")
    takes_path: bool = False
    image_files: bool = False

    @property
    def spec(self) -> str:
        """How `--data` is written for it."""
        return f"{self.name}:PATH" if self.takes_path else self.name


@cache
def registered_datasets() -> dict[str, DatasetEntry]:
    """Every dataset by its name."""
    modules = (importlib.import_module(f"robustbench_local.data.sets.{module}") for module in MODULES)
    return {module.DATASET.name: module.DATASET for module in modules}


def find_dataset(spec: str) -> DatasetEntry | None:
    """The entry for a `--data` text, or None where there is none."""
    name, colon, _ = spec.partition(":")
    entry = registered_datasets().get(name)
    return entry if entry is not None and (entry.takes_path or not colon) else None


def default_eps(spec: str, norm: str) -> str | None:
    """The customary eps for a dataset and a norm as text (`"8/255"`), or None where `--eps` must be given."""
    entry = find_dataset(spec)
    return None if entry is None else entry.default_eps.get(norm.lower())


def list_datasets() -> list[tuple[str, str]]:
    """Every text that `--data` accepts, with a description."""
    return [(entry.spec, entry.description) for entry in registered_datasets().values()]
