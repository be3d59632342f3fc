"""Pictures and folders of pictures that fill the memory, never end, or start other programs."""

from __future__ import annotations

import os
import struct
import zlib

import pytest
import torch
from PIL import Image

from robustbench_local.data import load_dataset
from robustbench_local.data.imagefolder import Decoding, FolderDataset
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import printable
from robustbench_local.models.predict import find_images


def png(width: int, height: int, *more: tuple[bytes, bytes], rows: int = 1) -> bytes:
    """A grey picture that claims a size, with a few rows of it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * rows) if width < 10**6 else b"")
    parts = [(b"IHDR", header), *more, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def decoded(path, resize=None):
    return FolderDataset([path], torch.zeros(1, dtype=torch.int64), name="it", decoding=Decoding(resize)).images([0])


def refused(path, slugs, resize=None):
    with pytest.raises(UserError) as caught:
        decoded(path, resize)
    assert caught.value.slug in slugs.split("|")
    message = str(caught.value)
    assert len(message) < 1000
    assert message == printable(message)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(executed) (w) file\n"


@pytest.mark.parametrize(
    ("content", "slugs"),
    [
        (png(60_000, 60_000), "decompression-bomb"),
        (png(2**31 - 1, 2**31 - 1), "decompression-bomb|image-damaged"),
        (png(65_535, 1), "decompression-bomb"),
        (png(1, 65_535, rows=65_535), "decompression-bomb"),
        (png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27)))), "image-damaged"),
        (png(8, 8, (b"iCCP", b"a\0\0" + zlib.compress(bytes(2**27)))), "image-damaged"),
        (png(0, 8), "image-damaged"),
        (png(8, 8)[:45], "image-damaged"),
        (POSTSCRIPT, "image-damaged"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "image-damaged"),
        (b"P6 99999 99999 255\n", "decompression-bomb"),
        (b"P6 " + b"9" * 5000 + b" 1 255\n", "image-damaged"),
        (b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x00" * 9, "decompression-bomb|image-damaged"),
        (
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
            "decompression-bomb|image-damaged",
        ),
        (b"II*\x00" + struct.pack("<I", 8) + b"\xff\xff" * 50, "image-damaged"),
        (b"", "image-damaged"),
    ],
    ids=range(16),
)
def test_pictures(tmp_path, content, slugs):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    refused(path, slugs, Resize(256, 224))


def test_a_flat_picture_left_as_it_is_takes_what_it_says(tmp_path):
    (tmp_path / "a.png").write_bytes(png(65_535, 1))
    assert decoded(tmp_path / "a.png").shape == (1, 1, 1, 65_535)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "ICO"])
def test_kinds_of_files_that_are_not_among_those_read(tmp_path, kind):
    """Pillow goes by the content, whatever the name, and has Ghostscript draw EPS."""
    Image.new("RGB", (16, 16)).save(tmp_path / "a", kind)
    refused((tmp_path / "a").rename(tmp_path / "a.png"), "image-damaged", Resize(8, 8))


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pictures_that_never_end_or_never_answer(tmp_path, kind):
    path = tmp_path / "cat" / "a.png"
    path.parent.mkdir()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    refused(path, "not-a-plain-file")
    with pytest.raises(UserError) as caught:
        load_dataset(f"imagefolder:{tmp_path}")
    assert caught.value.slug in ("not-a-plain-file", "imagefolder-incomplete")
    assert find_images([path.parent]) == [path]


@pytest.mark.parametrize("name", [b"\xff", b"\x1b[2J", b"a\nb\x07", "\u202ecat".encode()])
def test_class_folders_that_no_terminal_shows(tmp_path, name):
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    with pytest.raises(UserError) as caught:
        load_dataset(f"imagefolder:{tmp_path}")
    assert caught.value.slug == "class-name-not-printable"
    assert str(caught.value) == printable(caught.value)


@pytest.mark.parametrize("target", [".", "..", "/"])
def test_links_in_circles(tmp_path, target):
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "set" / name / "a.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set" / "cat" / "fine").symlink_to(tmp_path / "elsewhere")
    assert len(load_dataset(f"imagefolder:{tmp_path / 'set'}")) == 2
    for link in ("one", "two"):
        (tmp_path / "set" / "cat" / link).symlink_to(target)
    with pytest.raises(UserError) as caught:
        load_dataset(f"imagefolder:{tmp_path / 'set'}")
    assert caught.value.slug == "link-loop"
