"""The public datasets that torchvision reads. Its arrays and file lists are used, its transforms are not."""

from __future__ import annotations

import contextlib
import http.client
import os
import pickle
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustbench_local.data.catalog import LoadRequest
from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.data.imagefolder import Decoding, FolderDataset
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import printable

_DIGITS = [str(n) for n in range(10)]
_GTSRB_SIZE = Resize((32, 32))
# The customary evaluation of ImageNet classifiers, for models that do not say their own size.
_IMAGENET_SIZE = Resize(256, 224)
# torchvision has no names for the 43 signs.
_GTSRB_NAMES = [
    *(f"speed limit {n}" for n in (20, 30, 50, 60, 70, 80)), "end of speed limit 80", "speed limit 100",
    "speed limit 120", "no passing", "no passing for trucks", "right of way at next crossing", "priority road",
    "give way", "stop", "no vehicles", "no trucks", "no entry", "danger", "curve left", "curve right", "double curve",
    "bumpy road", "slippery road", "road narrows on the right", "road works", "traffic signals", "pedestrians",
    "children", "bicycles", "ice or snow", "wild animals", "end of all limits", "turn right ahead", "turn left ahead",
    "ahead only", "ahead or right", "ahead or left", "keep right", "keep left", "roundabout", "end of no passing",
    "end of no passing for trucks",
]  # fmt: skip


def load_mnist(name: str, request: LoadRequest) -> ArrayDataset:
    """MNIST or, for `name="fashion-mnist"`, Fashion-MNIST: uint8 [N, 1, 28, 28].

    Raises UserError where files are missing, damaged or cannot be downloaded, like every function here.
    """
    from torchvision import datasets

    published = datasets.MNIST if name == "mnist" else datasets.FashionMNIST
    train = request.split == "train"
    maker = _one_split(published, train)
    source = _read(
        name, request, [published.__name__], lambda: maker(request.data_dir, train=train, download=request.download)
    )
    class_names = _DIGITS if name == "mnist" else list(source.classes)
    return _array_dataset(source.data.numpy()[:, None], source.targets, name, request.split, class_names)


def load_cifar(name: str, request: LoadRequest) -> ArrayDataset:
    """CIFAR-10 or, for `name="cifar100"`, CIFAR-100: uint8 [N, 3, 32, 32]."""
    from torchvision import datasets

    maker = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    own = ["cifar-10-python.tar.gz", "cifar-10-batches-py"]
    if name == "cifar100":
        own = ["cifar-100-python.tar.gz", "cifar-100-python"]
    train = request.split == "train"
    source = _read(name, request, own, lambda: maker(request.data_dir, train=train, download=request.download))
    return _array_dataset(source.data.transpose(0, 3, 1, 2), source.targets, name, request.split, list(source.classes))


def load_svhn(request: LoadRequest) -> ArrayDataset:
    """SVHN: uint8 [N, 3, 32, 32]."""
    from torchvision.datasets import SVHN

    source = _read(
        "svhn",
        request,
        [f"{request.split}_32x32.mat"],
        lambda: SVHN(request.data_dir, split=request.split, download=request.download),
    )
    return _array_dataset(np.ascontiguousarray(source.data), source.labels, "svhn", request.split, _DIGITS)


def load_gtsrb(request: LoadRequest) -> FolderDataset:
    """GTSRB, decoded from its files and resized to 32x32 unless the request says otherwise.

    The training split has groups: up to 30 frames show one physical sign.
    """
    from torchvision.datasets import GTSRB

    source = _read(
        "gtsrb", request, ["gtsrb"], lambda: GTSRB(request.data_dir, split=request.split, download=request.download)
    )
    paths, labels = zip(*source._samples, strict=True) if source._samples else ((), ())
    dataset = FolderDataset(
        paths,
        torch.tensor(labels, dtype=torch.int64),
        name="gtsrb",
        split=request.split,
        class_names=_GTSRB_NAMES,
        decoding=Decoding(request.resize or _GTSRB_SIZE, "RGB"),
    )
    if request.split == "train":
        dataset.groups = torch.tensor([_track(Path(path), label) for path, label in source._samples])
    return dataset


def load_imagenet(request: LoadRequest) -> FolderDataset:
    """ImageNet 2012, decoded from its files: resized to 256 and cropped to 224 unless the request says otherwise."""
    from torchvision.datasets import ImageNet

    if request.download:
        raise UserError(
            "imagenet cannot be downloaded without an account: put ILSVRC2012_devkit_t12.tar.gz and "
            f"ILSVRC2012_img_val.tar from image-net.org into {request.data_dir} and leave --download out",
            slug="dataset-not-downloadable",
        )
    part = "train" if request.split == "train" else "val"
    source = _read("imagenet", request, [], lambda: ImageNet(request.data_dir, split=part))
    return FolderDataset(
        [path for path, _ in source.imgs],
        torch.tensor(source.targets, dtype=torch.int64),
        name="imagenet",
        split=part,
        class_names=[synonyms[0] for synonyms in source.classes],
        lossy=False,  # these JPEG files are the originals
        decoding=Decoding(request.resize or _IMAGENET_SIZE, "RGB"),
    )


def _one_split(maker: type, train: bool) -> type:
    """A torchvision dataset that needs only the two files of one split; torchvision's own class needs all four.

    The name must stay, because torchvision derives the directory from it.
    """
    prefix = "train" if train else "t10k"
    resources = [entry for entry in maker.resources if entry[0].startswith(prefix)]  # type: ignore[attr-defined]
    return type(maker.__name__, (maker,), {"resources": resources})


def _array_dataset(images: np.ndarray, labels: Any, name: str, split: str, class_names: list[str]) -> ArrayDataset:
    targets = torch.as_tensor(labels, dtype=torch.int64)
    return ArrayDataset(torch.from_numpy(images), targets, name=name, split=split, class_names=class_names)


def _track(path: Path, label: int) -> int:
    """Training images are called 00012_00029.ppm: frame 29 of the 13th sign of the class, 30 frames a sign."""
    track = path.stem.partition("_")[0]
    return label * 100_000 + (int(track) if track.isdecimal() else 0)


def _read(name: str, request: LoadRequest, own_paths: Sequence[str], make: Callable[[], Any]) -> Any:
    """Torchvision's dataset, or a UserError that says where it looked and how to get the files.

    own_paths: the files and directories in `data_dir` that belong to this set.
    """
    data_dir = request.data_dir
    cleanup = _remove_failed_download(data_dir, own_paths) if request.download else contextlib.nullcontext()
    try:
        # Some versions of torchvision print progress; stdout belongs to --json.
        with cleanup, contextlib.redirect_stdout(sys.stderr):
            return make()
    except (
        # no network, no permission, missing files; then what damaged files make the readers raise
        OSError, http.client.HTTPException, RuntimeError, ValueError, AssertionError, EOFError, KeyError,
        pickle.UnpicklingError, tarfile.TarError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()).replace("You can use download=True to download it", "").rstrip(". ")
        reason = printable(reason or type(error).__name__)
        if request.download:
            raise UserError(
                f"{name} could not be downloaded to {data_dir} ({reason}): check the network and that the directory "
                "is writable, or put the files there and leave --download out",
                slug="download-failed",
            ) from error
        remedy = "" if name == "imagenet" else "fetch it with --download or "
        raise UserError(
            f"{name} is missing or incomplete in {data_dir} ({reason}): {remedy}name its directory with --data-dir",
            slug="dataset-not-found",
        ) from error


@contextlib.contextmanager
def _remove_failed_download(data_dir: Path, own_paths: Sequence[str]) -> Iterator[None]:
    """Remove what a download leaves behind when it fails, and nothing that was there before or is another set's."""
    missing = [directory for directory in (data_dir, *data_dir.parents) if not directory.exists()]
    before = set(_contents(data_dir, own_paths))
    try:
        yield
    except BaseException:
        for path in _contents(data_dir, own_paths):
            if path not in before:
                with contextlib.suppress(OSError):  # not empty, or gone
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        for directory in missing:
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise


def _contents(data_dir: Path, own_paths: Sequence[str]) -> Iterator[Path]:
    """All files and directories under these paths, what is inside a directory before the directory."""
    for path in (data_dir / name for name in own_paths):
        for parent, directories, files in os.walk(path, topdown=False):
            yield from (Path(parent, name) for name in (*files, *directories))
        if path.exists():
            yield path
