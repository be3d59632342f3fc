"""The public sets that torchvision downloads and reads; its arrays and file lists are taken, its transforms are not."""

from __future__ import annotations

import contextlib
import http.client
import pickle
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustbench_local.data.dataset import ArrayDataset, Dataset
from robustbench_local.data.imagefolder import FolderDataset
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError

_DIGITS = [str(n) for n in range(10)]
_GTSRB_SIZE = Resize((32, 32))
# How ImageNet classifiers are customarily evaluated; a model that knows better brings its own.
_IMAGENET_SIZE = Resize(256, 224)
# torchvision ships no names for the 43 signs.
_GTSRB_NAMES = [
    *(f"speed limit {n}" for n in (20, 30, 50, 60, 70, 80)), "end of speed limit 80", "speed limit 100",
    "speed limit 120", "no passing", "no passing for trucks", "right of way at next crossing", "priority road",
    "give way", "stop", "no vehicles", "no trucks", "no entry", "danger", "curve left", "curve right", "double curve",
    "bumpy road", "slippery road", "road narrows on the right", "road works", "traffic signals", "pedestrians",
    "children", "bicycles", "ice or snow", "wild animals", "end of all limits", "turn right ahead", "turn left ahead",
    "ahead only", "ahead or right", "ahead or left", "keep right", "keep left", "roundabout", "end of no passing",
    "end of no passing for trucks",
]  # fmt: skip


def load_torchvision(name: str, *, split: str, data_dir: Path, download: bool, resize: Resize | None) -> Dataset:
    """One split (`"train"` or `"test"`; ImageNet's `"test"` is its validation set) of the set called `name`.

    MNIST, Fashion-MNIST, CIFAR and SVHN are arrays of fixed size and ignore `resize`; GTSRB (default: whole picture
    to 32x32) and ImageNet (default: 256, crop 224) are decoded from their files when asked for. Raises UserError where
    files are missing, damaged or cannot be downloaded.
    """
    if name == "imagenet":
        return _imagenet(split, data_dir, download, resize)
    if name == "gtsrb":
        return _gtsrb(split, data_dir, download, resize)
    return _arrays(name, split, data_dir, download)


def _arrays(name: str, split: str, data_dir: Path, download: bool) -> ArrayDataset:
    from torchvision import datasets

    train = split == "train"
    if name == "svhn":
        source = _read(name, data_dir, download, lambda: datasets.SVHN(data_dir, split=split, download=download))
        return _array_dataset(np.ascontiguousarray(source.data), source.labels, name, split, _DIGITS)
    if name in ("cifar10", "cifar100"):
        maker = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        source = _read(name, data_dir, download, lambda: maker(data_dir, train=train, download=download))
        return _array_dataset(source.data.transpose(0, 3, 1, 2), source.targets, name, split, list(source.classes))
    maker = _one_split(datasets.MNIST if name == "mnist" else datasets.FashionMNIST, train)
    source = _read(name, data_dir, download, lambda: maker(data_dir, train=train, download=download))
    class_names = _DIGITS if name == "mnist" else list(source.classes)
    return _array_dataset(source.data.numpy()[:, None], source.targets, name, split, class_names)


def _one_split(maker: type, train: bool) -> type:
    """Torchvision's class asking only for the two files of one split: it wants all four even to read two.

    The name must stay, because torchvision makes the folder's name of it.
    """
    prefix = "train" if train else "t10k"
    wanted = [entry for entry in maker.resources if entry[0].startswith(prefix)]  # type: ignore[attr-defined]
    return type(maker.__name__, (maker,), {"resources": wanted})


def _array_dataset(images: np.ndarray, labels: Any, name: str, split: str, class_names: list[str]) -> ArrayDataset:
    targets = torch.as_tensor(labels, dtype=torch.int64)
    return ArrayDataset(torch.from_numpy(images), targets, name=name, split=split, class_names=class_names)


def _gtsrb(split: str, data_dir: Path, download: bool, resize: Resize | None) -> FolderDataset:
    from torchvision.datasets import GTSRB

    source = _read("gtsrb", data_dir, download, lambda: GTSRB(data_dir, split=split, download=download))
    paths, labels = zip(*source._samples, strict=True) if source._samples else ((), ())
    dataset = FolderDataset(
        paths,
        torch.tensor(labels, dtype=torch.int64),
        name="gtsrb",
        split=split,
        class_names=_GTSRB_NAMES,
        resize=resize or _GTSRB_SIZE,
        mode="RGB",
    )
    if split == "train":
        dataset.groups = torch.tensor([_track(Path(path), label) for path, label in source._samples])
    return dataset


def _track(path: Path, label: int) -> int:
    """Training pictures are called 00012_00029.ppm: frame 29 of the 13th sign of the class, 30 frames a sign."""
    track = path.stem.partition("_")[0]
    return label * 100_000 + (int(track) if track.isdecimal() else 0)


def _imagenet(split: str, data_dir: Path, download: bool, resize: Resize | None) -> FolderDataset:
    from torchvision.datasets import ImageNet

    if download:
        raise UserError(
            "imagenet cannot be downloaded without an account; put ILSVRC2012_devkit_t12.tar.gz and "
            f"ILSVRC2012_img_val.tar from image-net.org into {data_dir} and leave --download out."
        )
    part = "train" if split == "train" else "val"
    source = _read("imagenet", data_dir, download, lambda: ImageNet(data_dir, split=part))
    return FolderDataset(
        [path for path, _ in source.imgs],
        torch.tensor(source.targets, dtype=torch.int64),
        name="imagenet",
        split=part,
        class_names=[synonyms[0] for synonyms in source.classes],
        lossy=False,  # JPEG files are the original here
        resize=resize or _IMAGENET_SIZE,
        mode="RGB",
    )


def _read(name: str, data_dir: Path, download: bool, make: Callable[[], Any]) -> Any:
    """Torchvision's data set, or a UserError that says where it looked and how to get the files."""
    try:
        # Some versions of torchvision print progress; stdout belongs to --json.
        with contextlib.redirect_stdout(sys.stderr):
            return make()
    except (
        # no network, no permission, missing files; then what damaged files make the readers raise
        OSError, http.client.HTTPException, RuntimeError, ValueError, AssertionError, EOFError, KeyError,
        pickle.UnpicklingError, tarfile.TarError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()).replace("You can use download=True to download it", "").rstrip(". ")
        reason = reason or type(error).__name__
        if download:
            raise UserError(
                f"{name} could not be downloaded to {data_dir} ({reason}); check the network and that the folder "
                "is writable, or put the files there and leave --download out."
            ) from error
        remedy = "" if name == "imagenet" else "fetch it with --download or "
        raise UserError(
            f"{name} was not found whole under {data_dir} ({reason}); {remedy}name the folder that holds it "
            "with --data-dir."
        ) from error
