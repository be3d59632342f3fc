"""`npz:PATH`: images and labels in one numpy archive."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.errors import UserError, nearest
from robustbench_local.io.safe_read import is_archive, open_archive, printable, quoted, reason

_LAYOUT = "`images` (uint8 NHWC or float NCHW in [0,1]) and `labels` (integers)"
# More values than this in a dimension cannot be meant as colour channels.
_MOST_CHANNELS = 4


def load_npz(path: Path, class_names: list[str] | None = None) -> ArrayDataset:
    """The `images` and `labels` of a numpy archive, whole, and its `groups` if it has some: integers, alike for images
    that belong together, such as frames of one film. Other arrays are ignored; pickled ones are refused.
    """
    images, labels, groups = _read_arrays(path)
    dataset = ArrayDataset(
        _as_nchw(images, path), _as_labels(labels, path), name=f"npz:{path.name}", class_names=class_names
    )
    if groups is not None:
        if groups.shape != labels.shape or groups.dtype.kind not in "iu":
            raise UserError(
                f"`groups` in {path} has shape {groups.shape} and type {groups.dtype}; allowed are "
                "integers, one for every label."
            )
        dataset.groups = torch.from_numpy(groups.astype(np.int64))
    return dataset


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    if not path.is_file():
        what = "is a folder (for class folders write imagefolder:PATH)" if path.is_dir() else "does not exist"
        raise UserError(f"The data file {path} {what}; npz:PATH names one .npz file.")
    if not is_archive(path):
        raise UserError(f"{path} is not a numpy archive; save it with numpy.savez(PATH, images=…, labels=…).")
    open_archive(path).close()
    try:
        with np.load(path, allow_pickle=False) as archive:
            groups = _entry(archive, "groups", path) if "groups" in archive.files else None
            return _entry(archive, "images", path), _entry(archive, "labels", path), groups
    except UserError:
        raise
    except Exception as error:  # of damaged archives numpy and zipfile raise many types
        raise UserError(
            f"{path} cannot be read and may be damaged: {reason(error)}; fetch or save it again."
        ) from error


def _entry(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    if key not in archive.files:
        held = printable(", ".join(archive.files[:20])) or "nothing"
        raise UserError(
            f"{path} has no array `{key}`; it holds: {held}.{nearest(key, archive.files)} "
            f"Save it with {_LAYOUT} under these names."
        )
    _require_whole(archive, key, path)
    try:
        array = archive[key]
    except MemoryError as error:
        raise UserError(f"`{key}` in {path} does not fit in memory; split the file into smaller ones.") from error
    except Exception as error:
        # numpy says this of object arrays and of damaged headers alike.
        raise UserError(
            f"`{key}` in {path} is not a plain array of numbers ({reason(error)}); pickled objects are never "
            f"loaded, save {_LAYOUT} instead."
        ) from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"`{key}` in {path} is not a numpy array; save the file with numpy.savez.")
    return array


def _require_whole(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> None:
    """Refuse an array that says it is larger than the bytes that are there: memory for it would be taken first."""
    stored = archive.zip
    assert stored is not None  # it is open
    name = key if key in stored.namelist() else f"{key}.npy"
    with stored.open(name) as member:
        if member.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            return  # no array at all, which numpy says by what it gives
    with stored.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            shape, _, dtype = read(member)
        except Exception as error:  # the header is evaluated as Python, and may be anything
            raise UserError(f"the header of `{key}` in {path} is damaged ({reason(error)}); save it again.") from error
        claimed, left = math.prod(shape) * dtype.itemsize, stored.getinfo(name).file_size - member.tell()
    if not dtype.hasobject and (claimed != left or min(shape, default=0) < 0):
        raise UserError(
            f"`{key}` in {path} says it has {claimed:,} bytes (shape {quoted(str(shape))}, {dtype}), but {left:,} are "
            "there; the file is cut off or damaged, fetch or save it again."
        )


def _as_nchw(images: np.ndarray, path: Path) -> torch.Tensor:
    is_float = images.dtype.kind == "f"
    if not is_float and images.dtype != np.uint8:
        raise UserError(
            f"`images` in {path} are {images.dtype}; allowed are uint8 (0 to 255) and floats in [0,1], "
            "so convert them before saving."
        )
    if images.ndim not in (3, 4):
        raise UserError(
            f"`images` in {path} have shape {images.shape}; allowed are uint8 NHWC, float NCHW, "
            "and NHW for grey, N being the samples."
        )
    if images.ndim == 3:
        nchw = images[:, None]
    else:
        _refuse_swapped(images, is_float, path)
        nchw = images if is_float else images.transpose(0, 3, 1, 2)
    # An 8-bit view keeps the file's own memory; foreign byte orders and widths become native float32.
    return torch.from_numpy(nchw.astype(np.float32, copy=False) if is_float else nchw)


def _refuse_swapped(images: np.ndarray, is_float: bool, path: Path) -> None:
    here, there = (1, 3) if is_float else (3, 1)
    if images.shape[here] > _MOST_CHANNELS >= images.shape[there]:
        want, have, axes = ("NCHW", "NHWC", "0, 3, 1, 2") if is_float else ("NHWC", "NCHW", "0, 2, 3, 1")
        raise UserError(
            f"`images` in {path} are {images.dtype} with shape {images.shape}, which looks like {have}; "
            f"{images.dtype} images must be {want}: save images.transpose({axes})."
        )


def _as_labels(labels: np.ndarray, path: Path) -> torch.Tensor:
    if labels.dtype.kind not in "iu":
        raise UserError(
            f"`labels` in {path} are {labels.dtype}; allowed are integers, each sample's class counted from 0, "
            "so convert them before saving."
        )
    if labels.dtype == np.uint64 and labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        raise UserError(f"`labels` in {path} reach {labels.max()}, which is no class number; they count from 0.")
    return torch.from_numpy(labels.astype(np.int64))
