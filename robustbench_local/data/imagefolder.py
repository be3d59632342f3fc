"""Images decoded from disk only when they are requested, and `imagefolder:PATH`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from robustbench_local.data.class_directories import label_directories
from robustbench_local.data.dataset import Dataset
from robustbench_local.data.picture_files import (
    PictureListing,
    class_directories,
    is_lossy,
    list_pictures,
    readable_formats,
)
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import printable, reason, reject_control_characters, require_plain_file

if TYPE_CHECKING:
    from PIL import Image

_GRAYSCALE = {"1", "L", "LA", "La"}
_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
# Formats that store gray pictures as color ones, and by how many gray levels their channels then differ.
_ALWAYS_COLOR, _CHROMA_ROUNDING = {"AVIF", "GIF", "HEIF", "WEBP"}, 3
# Pillow clips these to 8 bits when it converts them, which would ruin the image silently.
_DEEP = {"I", "F"}
_MAX_PIXELS = 100_000_000
_ORIENTATION = 0x0112  # of EXIF; 1 is upright
_SPLIT_DIRECTORIES = {"train", "training", "val", "valid", "validation", "test", "testing"}


Trait = Literal["orientation", "alpha"]
Reading = Literal["turned", "white", "black"]
TRAITS: tuple[Trait, ...] = ("orientation", "alpha")


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

    paths: one file per sample. labels: int64 [N]. lossy: by default judged by the files' names. Without a size to
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
            lossy = any(map(is_lossy, paths))
        super().__init__(labels, name=name, split=split, class_names=class_names, lossy=lossy)
        self._paths = list(paths)
        self.resize = decoding.resize
        self._mode = decoding.mode or _common_mode(self._paths)
        self._size = _common_size(self._paths, name) if self.resize is None else self.resize.output_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (1 if self._mode == "L" else 3, *self._size)

    def traits(self, positions: torch.Tensor) -> dict[Trait, torch.Tensor]:
        """Which of the samples have a trait that is ignored, bool [n] each; only the files' headers are read.

        `"orientation"`: an EXIF tag says that the pixels are to be turned. `"alpha"`: there is a transparency channel.
        """
        found = [_traits(self._paths[row]) for row in self.indices[positions].tolist()]
        return {trait: torch.tensor([trait in each for each in found], dtype=torch.bool) for trait in TRAITS}

    def images_as(self, positions: torch.Tensor, reading: Reading) -> torch.Tensor:
        """`images`, read otherwise: `"turned"` as EXIF says, or laid over a background that is `"white"` or `"black"`.

        Raises UserError where a turned image has another size than the dataset's.
        """
        rows = self.indices[positions].tolist()
        return torch.stack([self._decode(self._paths[row], reading) for row in rows]).float() / 255

    def _stored(self, rows: torch.Tensor) -> torch.Tensor:
        batch = torch.empty((len(rows), *self.image_shape), dtype=torch.uint8)
        for place, row in enumerate(rows.tolist()):
            batch[place] = self._decode(self._paths[row])
        return batch

    def _decode(self, path: str | Path, reading: Reading | None = None) -> torch.Tensor:
        """uint8 [C, H, W] of one file, resized and cropped."""
        from torchvision.transforms.v2 import functional

        with _open_image(path) as image:
            picture = (image if reading is None else _read_as(image, reading)).convert(self._mode)
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

    Hidden files and directories never count. Directories become labels as `label_directories` says: by the names of the
    model's classes (`class_names`), as numbers, or in their order. Images keep the orientation of their pixels (EXIF is
    not applied), as in torchvision; of an animation the first frame counts. Raises UserError for directories and images
    that cannot be used.
    """
    _check_directories(path)
    _reject_link_loops(path)
    try:
        listing = list_pictures(path)
    except OSError as error:
        raise _incomplete(path, reason(error).rstrip(". ")) from error
    _require_pictures(listing, path)
    directories = label_directories(listing.directories, class_names, str(path))
    dataset = FolderDataset(
        listing.paths,
        torch.tensor(directories.labels)[listing.targets],
        name=f"imagefolder:{path.resolve().name}",
        class_names=list(directories.class_names),
        decoding=Decoding(resize),
    )
    dataset.directories, dataset.left_out = directories, listing.left_out
    return dataset


def _require_pictures(listing: PictureListing, path: Path) -> None:
    """Raises UserError where there is no class directory, or one without a picture that can be read."""
    if not listing.directories:
        raise _incomplete(path, "it has no directory")
    empty = sorted(set(range(len(listing.directories))) - set(listing.targets))
    if empty:
        names = ", ".join(listing.directories[number] for number in empty[:8])
        others = f"; {listing.left_out.text}" if listing.left_out.text else ""
        raise _incomplete(path, f"no picture that can be read in {names}{others}")


def _incomplete(path: Path, problem: str) -> UserError:
    return UserError(
        f"{printable(path)} cannot be used ({problem}): it needs one directory per class with at least one image in "
        "each",
        slug="imagefolder-incomplete",
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
    names = class_directories(path)
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


def _traits(path: str | Path) -> set[Trait]:
    with _open_image(path) as image:
        # Pillow turns TIFF images itself.
        turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) in range(2, 9)
        found: set[Trait] = {"orientation"} if turned else set()
        return found | {"alpha"} if image.mode in _ALPHA or "transparency" in image.info else found


def _read_as(image: Image.Image, reading: Reading) -> Image.Image:
    from PIL import Image, ImageOps

    if reading == "turned":
        return ImageOps.exif_transpose(image)
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, reading), picture)


def _common_mode(paths: Sequence[str | Path]) -> str:
    """`"L"` when every file is grayscale, else `"RGB"`; stops at the first color file."""
    for path in paths:
        with _open_image(path) as image:
            if not _is_gray(image):
                return "RGB"
    return "L"


def _is_gray(image: Image.Image) -> bool:
    """Whether a picture is gray: by its mode, or where its format has no such mode by all its pixels."""
    if image.mode in _GRAYSCALE or image.format not in _ALWAYS_COLOR:
        return image.mode in _GRAYSCALE
    from PIL import ImageChops

    red, green, blue = image.convert("RGB").split()
    differences = (ImageChops.difference(one, green).point(lambda n: n > _CHROMA_ROUNDING) for one in (red, blue))
    return not any(difference.getbbox() for difference in differences)


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
            # Pillow recognizes a file by its content, whatever its name.
            with Path(path).open("rb") as file, Image.open(file, formats=readable_formats()) as image:
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
