"""Which files of an image directory are samples, and which pictures are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LOSSY = {".avif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".webp"}
"""Suffixes of codecs that change pixels."""
OUTSIDE = "outside the class directories"
HIDDEN = "hidden"
NO_SUFFIX = "without extension"
_FORMATS = {
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg"),
    "PNG": (".apng", ".png"),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
"""What is read, where the installed Pillow can. Other formats start other programs (EPS) or are rarely tested."""
_OTHER_PICTURES = {
    ".arw", ".cr2", ".cr3", ".dds", ".dng", ".eps", ".exr", ".hdr", ".ico", ".j2k", ".jp2", ".jpx", ".jxl", ".nef",
    ".orf", ".pcx", ".psd", ".qoi", ".raf", ".raw", ".rw2", ".sgi", ".svg", ".tga", ".wmf", ".xcf",
}  # fmt: skip
_NO_CLASSES = {"__macosx", "__pycache__", "@eadir"}
_BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}


@dataclass(frozen=True)
class LeftOut:
    """Pictures that are no samples, counted by kind. read: how many pictures are samples."""

    kinds: Mapping[str, int]
    read: int

    @property
    def labeled(self) -> int:
        """How many of them are in a class directory."""
        return sum(n for kind, n in self.kinds.items() if kind != OUTSIDE)

    @property
    def text(self) -> str:
        """`258 of 360 pictures are left out (172 .heic, 86 hidden)`; "" where none is."""
        total = sum(self.kinds.values())
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.kinds.items())
        return f"{total} of {self.read + total} pictures are left out ({kinds})" if total else ""


@dataclass(frozen=True)
class PictureListing:
    """The samples, directories in order, then files, and the pictures left out.

    directories: names of the class directories, sorted. paths and targets (positions in `directories`): per sample.
    """

    directories: list[str]
    paths: list[str]
    targets: list[int]
    left_out: LeftOut


def class_directories(root: Path) -> list[str]:
    """Sorted names of the directories in `root` that can be classes: neither hidden nor left by other programs."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not _never_counts(entry.name))


def list_pictures(root: Path) -> PictureListing:
    """All pictures in the class directories of `root`, at any depth."""
    directories, paths, targets, left_out = class_directories(root), [], [], Counter[str]()
    for target, directory in enumerate(directories):
        for path in _files(root / directory):
            kind = _left_out_kind(path)
            if kind is not None:
                left_out[kind] += 1
            elif _is_sample(path):
                paths.append(str(path))
                targets.append(target)
    outside = (path for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
    left_out[OUTSIDE] = sum(_left_out_kind(path) is not None or _is_sample(path) for path in outside)
    kinds = {kind: n for kind, n in sorted(left_out.items()) if n}
    return PictureListing(directories, paths, targets, LeftOut(kinds, len(paths)))


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats, by Pillow's names, that are read here and that the installed Pillow can decode."""
    from PIL import Image, features

    try:
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]  # optional: Pillow has no HEIF of its own

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    can = {name for name in _FORMATS if name in Image.OPEN}
    if "avif" not in features.get_supported():
        can -= {"AVIF"}
    return tuple(name for name in _FORMATS if name in can)


def is_lossy(path: str | Path) -> bool:
    """Whether the file's codec changes pixels, by its suffix, or by its content where it has none."""
    suffix = Path(path).suffix.lower()
    if suffix:
        return suffix in LOSSY
    content = _format_of_content(Path(path))
    return content is not None and _FORMATS[content][0] in LOSSY


def _never_counts(name: str) -> bool:
    return name.startswith(".") or name.lower() in _NO_CLASSES


def _files(directory: Path) -> list[Path]:
    """All files below the directory: directories in order, then files."""
    found = []
    for folder, inside, files in os.walk(directory, followlinks=True):
        inside[:] = [name for name in inside if not _never_counts(name)]
        found.append((folder, sorted(files)))
    return [Path(folder, name) for folder, files in sorted(found) for name in files]


def _is_sample(path: Path) -> bool:
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return False
    return any(suffix in _FORMATS[name] for name in readable_formats()) if suffix else _content_is_read(path)


def _content_is_read(path: Path) -> bool:
    return _format_of_content(path) in readable_formats()


def _left_out_kind(path: Path) -> str | None:
    """The kind of a picture that is left out; None for a sample and for what is no picture."""
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return HIDDEN if _format_of_content(path) else None
    if suffix in _OTHER_PICTURES:
        return suffix
    known = next((name for name, suffixes in _FORMATS.items() if suffix in suffixes), None)
    if known is None:
        content = _format_of_content(path)
        return (suffix or NO_SUFFIX) if content and (suffix or content not in readable_formats()) else None
    return None if known in readable_formats() else suffix


def _format_of_content(path: Path) -> str | None:
    """The format that the first bytes of a file announce, one of `_FORMATS`, or None."""
    try:
        if not path.is_file():  # to open a pipe would wait for its other end
            return None
        with path.open("rb") as file:
            head = file.read(32)
    except OSError:
        return None
    if head[4:8] == b"ftyp":
        brands = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIF", b"heix": "HEIF", b"mif1": "HEIF", b"msf1": "HEIF"}
        return brands.get(head[8:12])
    if head[:2] == b"BM":
        return "BMP" if int.from_bytes(head[14:18], "little") in _BMP_HEADERS else None
    if head[:4] == b"RIFF":
        return "WEBP" if head[8:12] == b"WEBP" else None
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    starts = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
    return next((name for start, name in starts.items() if head.startswith(start)), None)
