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
# A dimension with more values than this is not one of color channels.
_MAX_CHANNELS = 4


def load_npz(path: Path, class_names: list[str] | None = None) -> ArrayDataset:
    """All `images` and `labels` of a numpy archive, and its `groups` if it has them.

    images: uint8 NHWC or float NCHW; grayscale also NHW. labels: integers [N]. groups: integers [N], the same number
    for images that belong together, such as frames of one video. Other arrays are ignored. Raises UserError for damaged
    files, pickled arrays, and other shapes or types.
    """
    images, labels, groups = _read_arrays(path)
    dataset = ArrayDataset(
        _as_nchw(images, path), _as_labels(labels, path), name=f"npz:{path.name}", class_names=class_names
    )
    if groups is not None:
        if groups.shape != labels.shape or groups.dtype.kind not in "iu":
            raise UserError(
                f"`groups` in {path} has shape {groups.shape} and type {groups.dtype}, but must be integers, one for "
                "every label",
                slug="npz-wrong-groups",
            )
        dataset.groups = torch.from_numpy(groups.astype(np.int64))
    return dataset


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """images, labels and groups."""
    if not path.is_file():
        problem = "is a directory (for class directories write imagefolder:PATH)" if path.is_dir() else "does not exist"
        raise UserError(f"the data file {path} {problem}: npz:PATH needs an .npz file", slug="npz-not-a-file")
    if not is_archive(path):
        raise UserError(
            f"{path} is not a numpy archive: save it with numpy.savez(PATH, images=…, labels=…)", slug="npz-no-archive"
        )
    open_archive(path).close()
    try:
        with np.load(path, allow_pickle=False) as archive:
            groups = _entry(archive, "groups", path) if "groups" in archive.files else None
            return _entry(archive, "images", path), _entry(archive, "labels", path), groups
    except UserError:
        raise
    except Exception as error:  # damaged archives make numpy and zipfile raise many types
        raise UserError(f"{path} cannot be read ({reason(error)}): get it again", slug="npz-damaged") from error


def _entry(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    if key not in archive.files:
        names = printable(", ".join(archive.files[:20])) or "nothing"
        raise UserError(
            f"{path} has no array `{key}` (it has {names}): save it with {_LAYOUT}.{nearest(key, archive.files)}",
            slug="npz-array-missing",
        )
    _require_complete(archive, key, path)
    try:
        array = archive[key]
    except MemoryError as error:
        raise UserError(
            f"`{key}` in {path} does not fit in memory: split the file into smaller ones", slug="npz-too-large"
        ) from error
    except Exception as error:
        # numpy raises the same for object arrays and for damaged headers.
        raise UserError(
            f"`{key}` in {path} is not a plain array of numbers ({reason(error)}): save {_LAYOUT}; pickled objects are "
            "never loaded",
            slug="npz-not-numbers",
        ) from error
    if not isinstance(array, np.ndarray):
        raise UserError(
            f"`{key}` in {path} is not a numpy array: save the file with numpy.savez", slug="npz-not-numbers"
        )
    return array


def _require_complete(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> None:
    """Refuse an array whose header claims more bytes than there are, before memory is allocated for it."""
    stored = archive.zip
    assert stored is not None  # it is open
    name = key if key in stored.namelist() else f"{key}.npy"
    with stored.open(name) as member:
        if member.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            return  # not an array, which numpy reports by what it returns
    with stored.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            shape, _, dtype = read(member)
        except Exception as error:  # the header is evaluated as Python, and may be anything
            raise UserError(
                f"the header of `{key}` in {path} is damaged ({reason(error)}): save it again", slug="npz-damaged"
            ) from error
        claimed, stored_bytes = math.prod(shape) * dtype.itemsize, stored.getinfo(name).file_size - member.tell()
    if not dtype.hasobject and (claimed != stored_bytes or min(shape, default=0) < 0):
        raise UserError(
            f"`{key}` in {path} claims {claimed:,} bytes (shape {quoted(str(shape))}, {dtype}), but has "
            f"{stored_bytes:,}: the file is truncated or damaged, get or save it again",
            slug="npz-truncated",
        )


def _as_nchw(images: np.ndarray, path: Path) -> torch.Tensor:
    """uint8 or float32 [N, C, H, W]."""
    is_float = images.dtype.kind == "f"
    if not is_float and images.dtype != np.uint8:
        raise UserError(
            f"`images` in {path} are {images.dtype}, but must be uint8 (0 to 255) or floats in [0,1]: convert them "
            "before saving",
            slug="images-wrong-dtype",
        )
    if images.ndim not in (3, 4):
        raise UserError(
            f"`images` in {path} have shape {images.shape}, but must be uint8 NHWC, float NCHW or grayscale NHW (N is "
            "the number of samples)",
            slug="images-wrong-shape",
        )
    if images.ndim == 3:
        nchw = images[:, None]
    else:
        _refuse_swapped(images, is_float, path)
        nchw = images if is_float else images.transpose(0, 3, 1, 2)
    # A view of 8-bit data keeps the file's own memory. Other byte orders and widths become native float32.
    return torch.from_numpy(nchw.astype(np.float32, copy=False) if is_float else nchw)


def _refuse_swapped(images: np.ndarray, is_float: bool, path: Path) -> None:
    """Refuse images whose channels are where the other layout has them."""
    expected_axis, other_axis = (1, 3) if is_float else (3, 1)
    if images.shape[expected_axis] > _MAX_CHANNELS >= images.shape[other_axis]:
        expected, actual, axes = ("NCHW", "NHWC", "0, 3, 1, 2") if is_float else ("NHWC", "NCHW", "0, 2, 3, 1")
        raise UserError(
            f"`images` in {path} are {images.dtype} with shape {images.shape}, which looks like {actual}, but "
            f"{images.dtype} images must be {expected}: save images.transpose({axes})",
            slug="images-wrong-layout",
        )


def _as_labels(labels: np.ndarray, path: Path) -> torch.Tensor:
    if labels.dtype.kind not in "iu":
        raise UserError(
            f"`labels` in {path} are {labels.dtype}, but must be integers, the class of each sample counted from 0: "
            "convert them before saving",
            slug="labels-wrong-dtype",
        )
    if labels.dtype == np.uint64 and labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        raise UserError(
            f"`labels` in {path} reach {labels.max()}, but must be class numbers counted from 0",
            slug="labels-out-of-range",
        )
    return torch.from_numpy(labels.astype(np.int64))
