"""`imagefolder:PATH`: order, class names, decoding on request, and files that cannot be used."""

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_local.data import load_dataset
from robustbench_local.data.class_names import match_class_names
from robustbench_local.data.imagefolder import FolderDataset
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError


def _picture(seed, size=(6, 5), mode="RGB"):
    width, height = size
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _tree(root, classes=("bird", "cat", "dog"), per_class=2, size=(6, 5), mode="RGB"):
    """PNG files and their pixels in the order torchvision's ImageFolder lists them."""
    pixels = []
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            pixels.append(_picture(10 * number + i, size, mode))
            Image.fromarray(pixels[-1]).save(root / name / f"{i}.png")
    return f"imagefolder:{root}", np.stack(pixels)


def test_pictures_labels_and_names_in_folder_order(tmp_path):
    spec, pixels = _tree(tmp_path / "pets")
    data = load_dataset(spec)
    assert (data.name, data.split, data.lossy) == ("imagefolder:pets", "all", False)
    assert data.class_names == ["bird", "cat", "dog"]
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.image_shape == (3, 5, 6)
    assert torch.equal(data.images([5, 1]), torch.from_numpy(pixels[[5, 1]]).permute(0, 3, 1, 2).float() / 255)
    part = data.subset([4, 2]).subset([1])
    assert part.indices.tolist() == [2]
    assert torch.equal(part.images([0]), data.images([2]))
    assert part.images([]).shape == (0, 3, 5, 6)


def test_grey_stays_grey_only_when_every_file_is(tmp_path):
    spec, pixels = _tree(tmp_path, mode="L")
    data = load_dataset(spec)
    assert data.image_shape == (1, 5, 6)
    assert torch.equal(data.images([3])[0, 0], torch.from_numpy(pixels[3]).float() / 255)
    Image.fromarray(_picture(99)).save(tmp_path / "dog" / "9.png")
    mixed = load_dataset(spec)
    assert mixed.image_shape == (3, 5, 6)
    assert torch.equal(mixed.images([3]), data.images([3]).expand(1, 3, 5, 6))


def test_jpeg_is_noted_as_lossy(tmp_path):
    spec, _ = _tree(tmp_path)
    Image.fromarray(_picture(1)).save(tmp_path / "dog" / "x.JPG")
    assert load_dataset(spec).lossy


def test_labels_are_the_models_when_its_class_names_are_known(tmp_path):
    spec, _ = _tree(tmp_path)
    names = ["truck", "Dog", "cat", "bird"]
    data = load_dataset(spec, class_names=names)
    assert data.labels.tolist() == [3, 3, 2, 2, 1, 1]
    assert data.class_names == names
    with pytest.raises(UserError, match=r"'dog'.*Did you mean 'dogs'") as caught:
        load_dataset(spec, class_names=["bird", "cat", "dogs"])
    assert caught.value.slug == "class-not-in-model"


def test_class_names_that_cannot_be_folders_match_without_punctuation():
    assert match_class_names(["T-shirt top", "ankle_boot"], ["Ankle boot", "T-shirt/top"], "x") == [1, 0]
    # An exact name wins over one that only looks alike.
    assert match_class_names(["a_b", "a b"], ["a b", "a_b"], "x") == [1, 0]


def test_ambiguous_and_double_class_names_are_refused():
    with pytest.raises(UserError, match=r"'crane'.*0, 2") as caught:
        match_class_names(["crane"], ["crane", "owl", "crane"], "x")
    assert caught.value.slug == "class-name-ambiguous"
    with pytest.raises(UserError, match=r"'Owl' and 'owl_'.*'owl'") as caught:
        match_class_names(["Owl", "owl_"], ["crane", "owl"], "x")
    assert caught.value.slug == "class-directories-overlap"


def test_sorted_wordnet_folders_are_imagenets_own_order():
    folders = [f"n{number:08d}" for number in range(1000)]
    assert match_class_names(folders, [f"name {i}" for i in range(1000)], "x") == list(range(1000))
    with pytest.raises(UserError, match="'n00000000'") as caught:
        match_class_names(folders[:10], [f"name {i}" for i in range(1000)], "x")
    assert caught.value.slug == "class-not-in-model"


def test_resize_and_crop_are_those_of_torchvisions_weights(tmp_path):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    spec, pixels = _tree(tmp_path, size=(40, 31))

    data = load_dataset(spec, resize=Resize(20, 16, "bicubic"))
    assert data.image_shape == (3, 16, 16)
    preset = ImageClassification(
        crop_size=16, resize_size=20, interpolation=InterpolationMode.BICUBIC, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    assert torch.equal(data.images([2])[0], preset(Image.fromarray(pixels[2])))


def test_a_pair_squeezes_the_whole_picture(tmp_path):
    spec, pixels = _tree(tmp_path, size=(40, 31))
    data = load_dataset(spec, resize=Resize((8, 10)))
    expected = np.asarray(Image.fromarray(pixels[0]).resize((10, 8), Image.Resampling.BILINEAR))
    assert data.image_shape == (3, 8, 10)
    assert torch.equal(data.images([0])[0], torch.from_numpy(expected.copy()).permute(2, 0, 1).float() / 255)


def test_sizes_that_differ_need_a_resize(tmp_path):
    spec, _ = _tree(tmp_path)
    Image.fromarray(_picture(1, (7, 5))).save(tmp_path / "cat" / "z.png")
    with pytest.raises(UserError, match=r"0\.png.*6x5.*z\.png.*7x5.*--resize") as caught:
        load_dataset(spec)
    assert caught.value.slug == "images-differ-in-size"
    assert load_dataset(spec, resize=Resize(8, 8)).images(range(7)).shape == (7, 3, 8, 8)


def test_nothing_is_decoded_before_it_is_asked_for_and_nothing_is_kept(tmp_path, monkeypatch):
    spec, _ = _tree(tmp_path, per_class=5)
    decoded = []
    original = FolderDataset._decode
    monkeypatch.setattr(FolderDataset, "_decode", lambda self, path: decoded.append(path) or original(self, path))
    data = load_dataset(spec)
    assert data.image_shape == (3, 5, 6)
    assert not decoded
    data.images([3, 3, 7])
    data.images([3])
    assert len(decoded) == 4
    tensors = {key for key, value in vars(data).items() if isinstance(value, torch.Tensor)}
    assert tensors == {"labels", "indices"}


def test_transparency_and_palettes_become_plain_colour(tmp_path):
    spec, pixels = _tree(tmp_path, classes=("a",))
    Image.fromarray(pixels[0]).convert("RGBA").save(tmp_path / "a" / "2.png")
    Image.new("P", (6, 5), 3).save(tmp_path / "a" / "3.png")
    data = load_dataset(spec)
    assert torch.equal(data.images([0]), data.images([2]))
    assert data.images([3]).shape == (1, 3, 5, 6)


@pytest.mark.parametrize("resize", [None, Resize(4, 4)])
def test_a_corrupt_picture_is_named(tmp_path, resize):
    spec, _ = _tree(tmp_path, size=(40, 40))
    broken = tmp_path / "cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:900])
    data = load_dataset(spec, resize=resize)
    assert data.images([0, 1, 2, 4, 5]).shape[0] == 5
    with pytest.raises(UserError, match=r"cat.1\.png") as caught:
        data.images([2, 3])
    assert caught.value.slug == "image-damaged"


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_files_that_are_no_pictures_are_named_at_once(tmp_path, content):
    spec, _ = _tree(tmp_path)
    (tmp_path / "dog" / "0.png").write_bytes(content)
    with pytest.raises(UserError, match=r"dog.0\.png") as caught:
        load_dataset(spec)
    assert caught.value.slug == "image-damaged"


def test_a_picture_that_goes_away_or_changes_is_named(tmp_path):
    spec, _ = _tree(tmp_path)
    data = load_dataset(spec)
    Image.fromarray(_picture(1, (9, 9))).save(tmp_path / "bird" / "0.png")
    (tmp_path / "bird" / "1.png").unlink()
    with pytest.raises(UserError, match=r"bird.0\.png") as caught:
        data.images([0])
    assert caught.value.slug == "image-changed"
    with pytest.raises(UserError, match=r"bird.1\.png.*No such file") as caught:
        data.images([1])
    assert caught.value.slug == "image-unreadable"


def test_deep_pictures_are_refused_not_clipped(tmp_path):
    spec, _ = _tree(tmp_path)
    Image.fromarray(np.full((5, 6), 40000, np.uint16)).save(tmp_path / "bird" / "0.png")
    with pytest.raises(UserError, match=r"bird.0\.png") as caught:
        load_dataset(spec)
    assert caught.value.slug == "image-too-deep"


@pytest.mark.parametrize("limit", [10, 24])
def test_decompression_bombs_are_refused_by_name(tmp_path, monkeypatch, limit):
    # For these 30 pixels Pillow only warns at a limit of 24; above twice the limit it raises an error of its own.
    spec, _ = _tree(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"bird.0\.png") as caught:
        load_dataset(spec)
    assert caught.value.slug == "decompression-bomb"


def test_folders_that_are_no_image_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist") as caught:
        load_dataset(f"imagefolder:{tmp_path / 'nowhere'}")
    assert caught.value.slug == "imagefolder-not-a-directory"
    with pytest.raises(UserError) as caught:
        load_dataset(f"imagefolder:{tmp_path}")
    assert caught.value.slug == "imagefolder-incomplete"
    spec, _ = _tree(tmp_path / "set")
    (tmp_path / "set" / "emu").mkdir()
    with pytest.raises(UserError, match="emu") as caught:
        load_dataset(spec)
    assert caught.value.slug == "imagefolder-incomplete"
    with pytest.raises(UserError, match="is a file") as caught:
        load_dataset(f"imagefolder:{tmp_path / 'set' / 'dog' / '0.png'}")
    assert caught.value.slug == "imagefolder-not-a-directory"


def test_a_folder_of_splits_is_not_taken_for_classes(tmp_path):
    _tree(tmp_path, classes=("train/cat", "train/dog", "test/cat", "test/dog"))
    with pytest.raises(UserError, match=r"test, train.*imagefolder:.*train") as caught:
        load_dataset(f"imagefolder:{tmp_path}")
    assert caught.value.slug == "imagefolder-has-splits"
    assert len(load_dataset(f"imagefolder:{tmp_path / 'test'}")) == 4


def test_headers_alone_settle_mode_and_size(tmp_path, monkeypatch):
    spec, _ = _tree(tmp_path)
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: opened.append(file) or original(file, **options))
    load_dataset(spec, resize=Resize(4, 4))
    assert len(opened) == 1  # the first colour file settles the mode; a size is given
    opened.clear()
    load_dataset(spec)
    assert len(opened) == 1 + 6
