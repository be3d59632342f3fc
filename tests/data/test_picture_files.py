"""Which files of an image directory are samples: pictures of every readable kind, and what is left out is counted."""

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_local.data import load_dataset
from robustbench_local.data.picture_files import readable_formats
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError

GRAY = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
HEIC = b"\0\0\0\x18ftypheic" + bytes(100)
KINDS = {
    ".png": "PNG", ".jfif": "JPEG", ".JPG": "JPEG", ".gif": "GIF", ".webp": "WEBP", "": "PNG", ".avif": "AVIF"
}  # fmt: skip


def write(root, suffixes=(".png",), classes=("a", "b")):
    for name in classes:
        (root / name).mkdir(parents=True)
        for number, suffix in enumerate(suffixes):
            Image.fromarray(GRAY).save(root / name / f"{number}{suffix}", format=KINDS[suffix])
    return f"imagefolder:{root}"


def test_pictures_of_every_readable_kind_are_samples(tmp_path):
    kinds = [suffix for suffix, name in KINDS.items() if name in readable_formats()]
    data = load_dataset(write(tmp_path, kinds))
    assert len(data) == 2 * len(kinds)
    assert data.image_shape == (1, 8, 8)  # gray, though some formats have no gray mode
    assert data.lossy
    assert not data.notes
    assert (data.images(range(len(data))) - torch.from_numpy(GRAY) / 255).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("0.heic", HEIC, ".heic"),
        ("0.jxl", b"any", ".jxl"),
        ("0.NEF", b"II*\0", ".nef"),
        ("heic-without-a-name", HEIC, "without extension"),
        (".0.png", None, "hidden"),
        ("0.png.bak", None, ".bak"),
    ],
)
def test_what_is_left_out_is_counted_by_kind(tmp_path, name, content, kind):
    spec = write(tmp_path)
    (tmp_path / "a" / name).write_bytes(content or (tmp_path / "a" / "0.png").read_bytes())
    data = load_dataset(spec)
    assert len(data) == 2
    assert data.left_out.kinds == {kind: 1}
    assert data.notes == (f"1 of 3 pictures are left out (1 {kind})",)
    assert data.subset([0]).notes == data.notes


@pytest.mark.parametrize(
    "name", ["Thumbs.db", ".DS_Store", "labels.csv", "README", "._0.png", "clip.mp4", "notes.txt", "empty"]
)
def test_files_that_are_no_pictures_are_not_spoken_of(tmp_path, name):
    spec = write(tmp_path)
    (tmp_path / "a" / name).write_bytes(b"" if name == "empty" else b"Plain words")
    data = load_dataset(spec)
    assert len(data) == 2
    assert not data.notes


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".git", "__MACOSX", "a/.ipynb_checkpoints", "b/@eaDir"])
def test_hidden_directories_never_count(tmp_path, name):
    spec = write(tmp_path)
    (tmp_path / name).mkdir()
    Image.fromarray(GRAY).save(tmp_path / name / "0-checkpoint.png")
    data = load_dataset(spec)
    assert data.directories.names == ("a", "b")
    assert len(data) == 2
    assert not data.notes


def test_pictures_beside_the_class_directories_are_told(tmp_path):
    spec = write(tmp_path)
    Image.fromarray(GRAY).save(tmp_path / "montage.png")
    left_out = load_dataset(spec).left_out
    assert left_out.kinds == {"outside the class directories": 1}
    assert not left_out.labeled


def test_a_class_without_a_readable_picture_is_refused_with_the_kinds(tmp_path):
    spec = write(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0.heic").write_bytes(HEIC)
    with pytest.raises(UserError, match=r"no picture that can be read in c; 1 of 3 .*1 \.heic") as caught:
        load_dataset(spec)
    assert caught.value.slug == "imagefolder-incomplete"


def test_a_damaged_picture_of_a_new_kind_is_named(tmp_path):
    spec = write(tmp_path)
    (tmp_path / "a" / "x.jfif").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.jfif") as caught:
        load_dataset(spec)
    assert caught.value.slug == "image-damaged"


def test_an_animation_counts_by_its_first_frame(tmp_path):
    spec = write(tmp_path)
    frames = [Image.fromarray(GRAY), Image.fromarray(255 - GRAY)]
    frames[0].save(tmp_path / "a" / "1.gif", save_all=True, append_images=frames[1:])
    assert torch.equal(load_dataset(spec).images([1]), load_dataset(spec).images([0]))


def test_turned_and_transparent_pictures_are_found_and_read_otherwise(tmp_path):
    write(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GRAY).save(tmp_path / "a" / "1.png", exif=exif)
    see_through = np.stack([GRAY, np.zeros_like(GRAY)], -1)
    Image.fromarray(see_through, "LA").save(tmp_path / "a" / "2.png")
    data = load_dataset(f"imagefolder:{tmp_path}")
    positions = torch.arange(4)
    assert {trait: mask.tolist() for trait, mask in data.traits(positions).items()} == {
        "orientation": [False, True, False, False],
        "alpha": [False, False, True, False],
    }
    gray = torch.from_numpy(GRAY) / 255
    assert torch.equal(data.images([2])[0, 0], gray)
    assert torch.equal(data.images_as(torch.tensor([1]), "turned")[0, 0], gray.rot90(-1))
    assert data.images_as(torch.tensor([2]), "white").eq(1).all()
    assert data.images_as(torch.tensor([2]), "black").eq(0).all()


def test_a_transparent_color_of_a_palette_is_an_alpha_channel(tmp_path):
    write(tmp_path)
    Image.fromarray(GRAY).convert("P").save(tmp_path / "a" / "1.png", transparency=0)
    data = load_dataset(f"imagefolder:{tmp_path}")
    assert data.traits(torch.arange(3))["alpha"].tolist() == [False, True, False]


def test_a_turned_picture_of_another_size_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(GRAY[:5]).save(tmp_path / name / "0.png", exif=exif)
    data = load_dataset(f"imagefolder:{tmp_path}")
    with pytest.raises(UserError):
        data.images_as(torch.arange(2), "turned")
    resized = load_dataset(f"imagefolder:{tmp_path}", resize=Resize(4))
    assert resized.images_as(torch.arange(2), "turned").shape == (2, 1, 4, 4)
