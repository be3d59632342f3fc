"""Images decoded from disk only when they are asked for, and `imagefolder:PATH`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
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

_GREY = {"1", "L", "LA", "La"}
# Pillow clips these to 8 bits when it converts them, which would ruin the picture without a word.
_DEEP = {"I", "F"}
_LOSSY = {".jpg", ".jpeg", ".webp"}
_MOST_PIXELS = 100_000_000
# Pillow recognises a file by its content, whatever its name, and for some kinds (EPS) starts other programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class FolderDataset(Dataset):
    """Image files, decoded at every request and never kept, so memory does not grow with their number.

    paths: one file per sample; labels: int64 [N]; resize: a `Resize`, or None, which requires
    all files to have one size (their headers are read at once to make sure); mode: `"RGB"` or `"L"`, or None
    for the rule: grey when every file is grey, else RGB, to which grey files are widened and from which transparency
    is dropped, as torchvision's loader does. Raises UserError naming the file that cannot be used.
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
        resize: Resize | None = None,
        mode: str | None = None,
    ) -> None:
        if lossy is None:
            lossy = any(Path(path).suffix.lower() in _LOSSY for path in paths)
        super().__init__(labels, name=name, split=split, class_names=class_names, lossy=lossy)
        self._paths = list(paths)
        self.resize = resize
        self._mode = mode or _common_mode(self._paths)
        self._size = _common_size(self._paths, name) if resize is None else resize.output_size

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

        with _opened(path) as image:
            picture = image.convert(self._mode)
        if self.resize is not None:
            _require_bounded(picture, self.resize, path)
            picture = self.resize.apply(picture)
        elif (picture.height, picture.width) != self._size:
            raise UserError(f"The image {path} changed its size while the run read it; start the run again.")
        return functional.pil_to_tensor(picture)


def load_imagefolder(
    path: Path, *, resize: Resize | None = None, class_names: list[str] | None = None
) -> FolderDataset:
    """All pictures under `path`, one folder per class, in torchvision's ImageFolder order: folders by name, then files.

    Labels count the sorted folders (`"10"` sorts before `"2"`), unless `class_names`, the model's, are given: then
    every folder is looked up among them by name and the labels are the model's. Pictures keep the orientation of their
    pixels (EXIF is not applied), as in torchvision.
    """
    from torchvision.datasets import ImageFolder

    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(f"The image folder {path} {what}; imagefolder:PATH names a folder with one folder per class.")
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if folders and all(folder.lower() in _SPLIT_FOLDERS for folder in folders):
        raise UserError(
            f"{path} holds splits ({', '.join(folders)}), not classes; name one of them: "
            f"imagefolder:{path / folders[-1]}."
        )
    try:
        for folder in folders:
            reject_control_characters(folder)
    except ValueError as error:
        raise UserError(f"the name of a class folder in {path} cannot be shown: {error}; rename it") from None
    _refuse_loops(path)
    try:
        listing = ImageFolder(str(path))
    except OSError as error:
        raise UserError(
            f"{path} is no usable image folder ({reason(error).rstrip('. ')}); it needs one folder per class "
            "with at least one picture in each."
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
        resize=resize,
    )


def _refuse_loops(path: Path) -> None:
    """Links that lead back to a folder above them would be followed for ever, each time by more ways."""
    for folder, inside, _ in os.walk(path, followlinks=True):
        for link in (Path(folder, name) for name in inside if Path(folder, name).is_symlink()):
            if link.resolve() in (Path(folder).resolve(), *Path(folder).resolve().parents):
                raise UserError(
                    f"the link {printable(link)} leads back to a folder above it, which has no end; remove it"
                )


def _require_bounded(picture: Image.Image, resize: Resize, path: str | Path) -> None:
    """Refuse a picture so narrow that, scaled by its shorter side, it would fill the memory."""
    if isinstance(resize.resize, int) and resize.size_before_crop(*picture.size) > _MOST_PIXELS:
        raise UserError(
            f"The image {printable(path)} is refused as a possible decompression bomb: of "
            f"{picture.width}x{picture.height} pixels, it would have more than {_MOST_PIXELS:,} with "
            f"its shorter side resized to {resize.resize}; crop or remove it."
        )


def _common_mode(paths: Sequence[str | Path]) -> str:
    """`"L"` when every file is grey, else `"RGB"`; stops at the first colour file."""
    for path in paths:
        with _opened(path) as image:
            if image.mode not in _GREY:
                return "RGB"
    return "L"


def _common_size(paths: Sequence[str | Path], name: str) -> tuple[int, int]:
    """(height, width) of all files, from their headers alone."""
    sizes = (_header_size(path) for path in paths)
    first = next(sizes)
    for path, size in zip(paths[1:], sizes, strict=True):
        if size != first:
            raise UserError(
                f"The images of {name} differ in size: {paths[0]} is {first[1]}x{first[0]} pixels, "
                f"{path} is {size[1]}x{size[0]}; bring them to one size with --resize."
            )
    return first


def _header_size(path: str | Path) -> tuple[int, int]:
    with _opened(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: str | Path):
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
                        f"The image {path} has more than 8 bits per value (Pillow mode {image.mode}); "
                        "save it as an 8-bit picture."
                    )
                yield image
    except UserError:
        raise
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"The image {path} cannot be opened: {error.strerror}; mend or remove it.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"The image {path} is refused as a possible decompression bomb: it has more than "
            f"{Image.MAX_IMAGE_PIXELS:,} pixels; shrink or remove it."
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly any type on damaged bytes
        raise UserError(f"The image {path} is corrupt ({reason(error)}); mend or remove it.") from error
