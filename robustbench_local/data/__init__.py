"""Everything that turns `--data SPEC` into labelled images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_local.data.catalog import DATASETS, DEFAULT_EPS, default_eps, list_datasets
from robustbench_local.errors import UserError, nearest

if TYPE_CHECKING:
    import torch

    from robustbench_local.data.dataset import Dataset
    from robustbench_local.data.resize import Resize

__all__ = [
    "DEFAULT_EPS",
    "default_eps",
    "list_datasets",
    "load_dataset",
    "require_files",
    "require_known",
    "stratified_subset",
]


def load_dataset(
    spec: str,
    *,
    split: str = "test",
    data_dir: str | Path | None = None,
    download: bool = False,
    resize: Resize | None = None,
    class_names: list[str] | None = None,
) -> Dataset:
    """The data set that `--data` calls `spec`: a name of `list_datasets()`, `imagefolder:PATH` or `npz:PATH`.

    split: `"test"` or `"train"` (ImageNet also `"val"`, the same as `"test"`); `imagefolder:` and `npz:` are taken
    whole. data_dir: where torchvision's sets lie, by default $ROBUST_DATA or `data`. resize: an object with `resize`,
    `crop` and `interpolation`, for sets that come as image files; arrays keep their size. class_names: the model's,
    by which class folders are put in its order. Raises UserError for whatever cannot be read.
    """
    kind, _, rest = spec.partition(":")
    if kind in ("npz", "imagefolder"):
        if not rest:
            raise UserError(f"--data {spec} names no path; write {kind}:PATH.")
        return _load_path(kind, Path(rest).expanduser(), resize, class_names)
    require_known(spec)
    allowed = ("test", "train", "val") if spec == "imagenet" else ("test", "train")
    if split not in allowed:
        listed = " or ".join(allowed)
        raise UserError(f"{spec} has no split {split!r}; --split takes {listed}.{nearest(split, allowed)}")
    if spec == "digits":
        from robustbench_local.data.digits import load_digits

        return load_digits(split)
    from robustbench_local.data.torchvision import load_torchvision

    root = Path(data_dir or os.environ.get("ROBUST_DATA") or "data").expanduser()
    return load_torchvision(spec, split=split, data_dir=root, download=download, resize=resize)


def require_known(spec: str) -> None:
    """Raises UserError where the text is neither a data set's name nor `npz:` or `imagefolder:`."""
    if spec not in DATASETS and not spec.startswith(("npz:", "imagefolder:")):
        raise UserError(f"There is no data set {spec!r}; known are {', '.join(DATASETS)}.{_hint(spec)}")


def require_files(spec: str) -> None:
    """Raises UserError where `--resize` has nothing to act on: arrays keep their size."""
    if spec not in ("gtsrb", "imagenet") and not spec.startswith("imagefolder:"):
        raise UserError(f"--resize is for images from files, and {spec} has none: leave it out")


def stratified_subset(labels: torch.Tensor, samples: int, seed: int) -> torch.Tensor:
    """Sorted positions of a seeded subset in the set's own class proportions; see `data.subset`."""
    from robustbench_local.data import stratified as subset

    return subset.stratified_subset(labels, samples, seed)


def _load_path(kind: str, path: Path, resize: Resize | None, class_names: list[str] | None) -> Dataset:
    if kind == "npz":
        from robustbench_local.data.npz import load_npz

        return load_npz(path, class_names)
    from robustbench_local.data.imagefolder import load_imagefolder

    return load_imagefolder(path, resize=resize, class_names=class_names)


def _hint(spec: str) -> str:
    path = Path(spec).expanduser()
    if path.is_dir():
        return f" For the folder of that name write imagefolder:{spec}."
    if path.suffix == ".npz":
        return f" For the file of that name write npz:{spec}."
    return nearest(spec.lower(), DATASETS)
