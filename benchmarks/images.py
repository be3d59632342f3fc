"""Real images for benchmarks, laid out as `--data` reads them.

    python benchmarks/images.py [--folder runs/data]

makes, from the folder of shared files that $ROBUST_SHARED names (by default ../shared beside the checkout):
`cifar10-{train,test}.npz` (stored as JPEG there, so pixels differ a little from the canonical ones),
`gtsrb-{train,test}.npz` (every third frame of the training tracks, whose frames form groups),
`fashion-{train,test}.npz`, and the canonical Fashion-MNIST where `--data fashion-mnist --data-dir FOLDER` reads it.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SHARED = Path(os.environ.get("ROBUST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
FOLDER = Path("runs/data")
CIFAR_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION = {"train": "train", "test": "t10k"}


def missing() -> str | None:
    """Why there are no images, where there are none."""
    folder = SHARED / "data"
    return None if folder.is_dir() else f"there is no {folder}: set ROBUST_SHARED to the folder of shared files"


def fashion_mnist(folder: Path) -> Path:
    """The four IDX files as torchvision keeps them; gives the --data-dir."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for packed in sorted((SHARED / "data" / "fashion-mnist").glob("*.gz")):
        if not (raw / packed.stem).is_file():
            (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


def fashion(split: str, folder: Path) -> Path:
    """The same as an npz."""
    path = folder / f"fashion-{split}.npz"
    if not path.is_file():
        prefix = SHARED / "data" / "fashion-mnist" / FASHION[split]
        images, labels = (
            np.frombuffer(gzip.decompress(Path(f"{prefix}-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=header)
            for kind, header in (("images-idx3", 16), ("labels-idx1", 8))
        )
        _save(path, images=images.reshape(-1, 28, 28, 1), labels=labels)
    return path


def cifar10(split: str, folder: Path) -> Path:
    """CIFAR-10, decoded from JPEG, sorted by class and name."""
    path = folder / f"cifar10-{split}.npz"
    if not path.is_file():
        images, labels = [], []
        with tarfile.open(SHARED / "data" / "cifar10" / f"{split}.tar.gz") as archive:
            members = {entry.name: entry for entry in archive.getmembers() if entry.isfile()}
            for name in sorted(name for name in members if name.lower().endswith((".jpg", ".jpeg"))):
                with Image.open(io.BytesIO(archive.extractfile(members[name]).read())) as picture:  # type: ignore[union-attr]
                    images.append(np.asarray(picture.convert("RGB")))
                labels.append(CIFAR_NAMES.index(Path(name).parent.name))
        _save(path, images=np.stack(images), labels=np.array(labels))
    return path


def gtsrb(split: str, folder: Path) -> Path:
    """Traffic signs; in the training split the frames of one physical sign are a group."""
    path = folder / f"gtsrb-{split}.npz"
    if not path.is_file():
        with np.load(SHARED / "data" / "gtsrb" / {"train": "train_third.npz", "test": "test.npz"}[split]) as file:
            labels = file["labels"].astype(np.int64)
            more = {"groups": 10_000 * labels + file["track"]} if "track" in file.files else {}
            _save(path, images=file["images"], labels=labels, **more)
    return path


def _save(path: Path, **arrays: np.ndarray) -> None:
    """The whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished.npz")
    np.savez(unfinished, **arrays)
    shutil.move(unfinished, path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    if reason := missing():
        parser.error(reason)
    for split in ("train", "test"):
        for make in (cifar10, gtsrb, fashion):
            print(make(split, folder))
    print(fashion_mnist(folder))


if __name__ == "__main__":
    main()
