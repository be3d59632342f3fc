"""Images decoded from disk only when they are requested, and `imagefolder:PATH`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from robustbench_local.data.class_names import match_class_names
from robustbench_local.data.dataset import Dataset
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import printable, reason, reject_control_characters, require_plain_file

if TYPE_CHECKING:
    from PIL import Image

_GRAYSCALE = {"1", "L", "LA", "La"}
# Pillow clips these to 8 bits when it converts them, which would ruin the image silently.
_DEEP = {"I", "F"}
_LOSSY = {".jpg", ".jpeg", ".webp"}
_MAX_PIXELS = 100_000_000
# Pillow recognizes a file by its content, whatever its name, and for some formats (EPS) starts other programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SPLIT_DIRECTORIES = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class Decoding:
    """How image files become arrays of one shape.

    resize: without one all files must have the same size. mode: `"RGB"` or `"L"`; by default grayscale if every file
    is, else RGB: grayscale files get three channels, and transparency is dropped, as torchvision's loader does.
    """

    resize: Resize | None = None
    mode: str | None = None


class FolderDataset(Dataset):
    """Image files, decoded at every request and never kept, so memory does not grow with their number.

    paths: one file per sample. labels: int64 [N]. lossy: by default judged by the files' suffixes. Without a size to
    resize to, the header of every file is read at once.
    Raises UserError that names the file that cannot be used.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        labels: torch.Tensor,
        *,
        name: str,
        split: str = "all",
        class_names: list[str] | None = None,
        lossy: bool | None = None,
        decoding: Decoding = Decoding(),
    ) -> None:
        if lossy is None:
            lossy = any(Path(path).suffix.lower() in _LOSSY for path in paths)
        super().__init__(labels, name=name, split=split, class_names=class_names, lossy=lossy)
        self._paths = list(paths)
        self.resize = decoding.resize
        self._mode = decoding.mode or _common_mode(self._paths)
        self._size = _common_size(self._paths, name) if self.resize is None else self.resize.output_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (1 if self._mode == "L" else 3, *self._size)

    def _stored(self, rows: torch.Tensor) -> torch.Tensor:
        batch = torch.empty((len(rows), *self.image_shape), dtype=torch.uint8)
        for place, row in enumerate(rows.tolist()):
            batch[place] = self._decode(self._paths[row])
        return batch

    def _decode(self, path: str | Path) -> torch.Tensor:
        """uint8 [C, H, W] of one file, resized and cropped."""
        from torchvision.transforms.v2 import functional

        with _open_image(path) as image:
            picture = image.convert(self._mode)
        if self.resize is not None:
            _require_bounded(picture, self.resize, path)
            picture = self.resize.apply(picture)
        elif (picture.height, picture.width) != self._size:
            raise UserError(
                f"the image {printable(path)} changed its size while the run read it: start the run again",
                slug="image-changed",
            )
        pixels: torch.Tensor = functional.pil_to_tensor(picture)
        return pixels


def load_imagefolder(
    path: Path, *, resize: Resize | None = None, class_names: list[str] | None = None
) -> FolderDataset:
    """All images under `path`, one directory per class, in torchvision's ImageFolder order: directories, then files.

    Labels count the sorted directories (`"10"` sorts before `"2"`). With `class_names`, the model's, each directory is
    matched with a class by its name, and the labels are the model's. Images keep the orientation of their pixels (EXIF
    is not applied), as in torchvision. Raises UserError for directories and images that cannot be used.
    """
    from torchvision.datasets import ImageFolder

    _check_directories(path)
    _reject_link_loops(path)
    try:
        listing = ImageFolder(str(path))
    except OSError as error:
        raise UserError(
            f"{printable(path)} cannot be used ({reason(error).rstrip('. ')}): it needs one directory per class with "
            "at least one image in each",
            slug="imagefolder-incomplete",
        ) from error
    labels = torch.tensor(listing.targets, dtype=torch.int64)
    names = listing.classes
    if class_names is not None:
        labels = torch.tensor(match_class_names(names, class_names, str(path)))[labels]
        names = list(class_names)
    return FolderDataset(
        [file for file, _ in listing.samples],
        labels,
        name=f"imagefolder:{path.resolve().name}",
        class_names=names,
        decoding=Decoding(resize),
    )


def _check_directories(path: Path) -> None:
    """Raises UserError where the path is no directory of class directories."""
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise UserError(
            f"the image directory {printable(path)} {problem}: imagefolder:PATH needs a directory with one directory "
            "per class",
            slug="imagefolder-not-a-directory",
        )
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if names and all(name.lower() in _SPLIT_DIRECTORIES for name in names):
        raise UserError(
            f"{printable(path)} has splits ({', '.join(names)}), not classes: name one of them, "
            f"imagefolder:{printable(path / names[-1])}",
            slug="imagefolder-has-splits",
        )
    try:
        for name in names:
            reject_control_characters(name)
    except ValueError as error:
        raise UserError(
            f"the name of a class directory in {printable(path)} cannot be shown ({error}): rename it",
            slug="class-name-not-printable",
        ) from None


def _reject_link_loops(path: Path) -> None:
    """Links to a parent directory would be followed forever, by ever more ways."""
    for directory, inside, _ in os.walk(path, followlinks=True):
        for link in (Path(directory, name) for name in inside if Path(directory, name).is_symlink()):
            if link.resolve() in (Path(directory).resolve(), *Path(directory).resolve().parents):
                raise UserError(
                    f"the link {printable(link)} leads back to a directory above it: remove it", slug="link-loop"
                )


def _require_bounded(picture: Image.Image, resize: Resize, path: str | Path) -> None:
    """Refuse an image so narrow that, scaled by its shorter side, it would fill the memory."""
    if isinstance(resize.resize, int) and resize.size_before_crop(*picture.size) > _MAX_PIXELS:
        raise UserError(
            f"the image {printable(path)} is refused as a possible decompression bomb: of "
            f"{picture.width}x{picture.height} pixels, it would have more than {_MAX_PIXELS:,} with its shorter side "
            f"resized to {resize.resize}; crop or remove it",
            slug="decompression-bomb",
        )


def _common_mode(paths: Sequence[str | Path]) -> str:
    """`"L"` when every file is grayscale, else `"RGB"`; stops at the first color file."""
    for path in paths:
        with _open_image(path) as image:
            if image.mode not in _GRAYSCALE:
                return "RGB"
    return "L"


def _common_size(paths: Sequence[str | Path], name: str) -> tuple[int, int]:
    """(height, width) of all files, from their headers alone."""
    sizes = (_header_size(path) for path in paths)
    first = next(sizes)
    for path, size in zip(paths[1:], sizes, strict=True):
        if size != first:
            raise UserError(
                f"the images of {name} differ in size: {printable(paths[0])} has {first[1]}x{first[0]} pixels, "
                f"{printable(path)} has {size[1]}x{size[0]}: bring them to one size with --resize",
                slug="images-differ-in-size",
            )
    return first


def _header_size(path: str | Path) -> tuple[int, int]:
    with _open_image(path) as image:
        return image.height, image.width


@contextmanager
def _open_image(path: str | Path) -> Iterator[Image.Image]:
    """A Pillow image whose every failure, at opening or decoding, is a UserError that names the file."""
    from PIL import Image

    if Path(path).exists():
        require_plain_file(Path(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Path(path).open("rb") as file, Image.open(file, formats=_FORMATS) as image:
                if image.mode in _DEEP or image.mode.startswith("I;"):
                    raise UserError(
                        f"the image {printable(path)} has more than 8 bits per value (Pillow mode {image.mode}): save "
                        "it as an 8-bit image",
                        slug="image-too-deep",
                    )
                yield image
    except UserError:
        raise
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(
            f"the image {printable(path)} cannot be opened ({error.strerror}): check or remove it",
            slug="image-unreadable",
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"the image {printable(path)} is refused as a possible decompression bomb: it has more than "
            f"{Image.MAX_IMAGE_PIXELS:,} pixels; shrink or remove it",
            slug="decompression-bomb",
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly any type on damaged bytes
        raise UserError(
            f"the image {printable(path)} is damaged ({reason(error)}): replace or remove it", slug="image-damaged"
        ) from error
