"""torchvision's sets: its own layouts on disk become arrays or file lists; missing files become sentences."""

import gzip
import os
import shutil
import urllib.error
from pathlib import Path

import pytest
import torch
from PIL import Image

from robustbench_local.data import load_dataset
from robustbench_local.errors import UserError

SHARED = Path(os.environ.get("ROBUST_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared datasets are not here (ROBUST_SHARED)")


def _unpack(source, target):
    target.mkdir(parents=True)
    for packed in source.glob("t10k-*.gz"):
        with gzip.open(packed) as compressed, (target / packed.stem).open("wb") as plain:
            shutil.copyfileobj(compressed, plain)


@needs_shared
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files_of_one_split_are_enough(tmp_path, name, folder):
    _unpack(SHARED / name, tmp_path / folder / "raw")
    data = load_dataset(name, data_dir=tmp_path)
    assert (data.name, data.split, len(data), data.image_shape) == (name, "test", 10_000, (1, 28, 28))
    assert data._images.dtype == torch.uint8
    assert torch.bincount(data.labels).min() > 890
    assert data.labels.max() == 9
    raw = (tmp_path / folder / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    last = torch.frombuffer(bytearray(raw[-784:]), dtype=torch.uint8).reshape(1, 28, 28)
    assert torch.equal(data.images([9_999])[0], last / 255)
    assert data.class_names[9] == ("9" if name == "mnist" else "Ankle boot")
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_dataset(name, data_dir=tmp_path, split="train")


@needs_shared
def test_damaged_idx_files_are_a_sentence(tmp_path, monkeypatch):
    raw = tmp_path / "FashionMNIST" / "raw"
    _unpack(SHARED / "fashion-mnist", raw)
    images = raw / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:5000])
    monkeypatch.setenv("ROBUST_DATA", str(tmp_path))
    with pytest.raises(UserError, match="fashion-mnist is missing or incomplete"):
        load_dataset("fashion-mnist")


@needs_shared
def test_the_traffic_signs_come_as_an_archive():
    data = load_dataset(f"npz:{SHARED / 'gtsrb' / 'test.npz'}")
    assert (len(data), data.image_shape, int(data.labels.max())) == (12_630, (3, 32, 32), 42)


def test_traffic_signs_are_read_lazily_and_squeezed_to_32(tmp_path):
    images = tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    images.mkdir(parents=True)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for i, (label, size) in enumerate([(14, (40, 50)), (0, (33, 31)), (42, (100, 90))]):
        Image.new("RGB", size, (10 * i, 255, 0)).save(images / f"{i:05d}.ppm")
        rows.append(f"{i:05d}.ppm;1;1;1;1;1;1;{label}")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("\n".join(rows))
    data = load_dataset("gtsrb", data_dir=tmp_path)
    assert data.labels.tolist() == [14, 0, 42]
    assert data.image_shape == (3, 32, 32)
    assert len(data.class_names) == 43
    assert data.class_names[14] == "stop"
    assert [data.class_names[i] for i in (0, 6, 8)] == ["speed limit 20", "end of speed limit 80", "speed limit 120"]
    assert torch.equal(data.images([2])[0, :, 5, 5], torch.tensor([20, 255, 0]) / 255)
    (tmp_path / "gtsrb" / "GT-final_test.csv").unlink()
    with pytest.raises(UserError, match="gtsrb is missing or incomplete"):
        load_dataset("gtsrb", data_dir=tmp_path)


def test_imagenets_test_split_is_its_validation_set(tmp_path):
    wnids = {"n00000002": ("owl", "bird of night"), "n00000001": ("crane",)}
    torch.save((wnids, []), tmp_path / "meta.bin")
    for wnid in wnids:
        (tmp_path / "val" / wnid).mkdir(parents=True)
        Image.new("RGB", (300, 280), (9, 8, 7)).save(tmp_path / "val" / wnid / "0.JPEG")
    data = load_dataset("imagenet", data_dir=tmp_path)
    assert (data.split, data.lossy, data.class_names) == ("val", False, ["crane", "owl"])
    assert data.image_shape == (3, 224, 224) == tuple(data.images([1]).shape[1:])
    assert load_dataset("imagenet", data_dir=tmp_path, split="val").labels.tolist() == [0, 1]
    with pytest.raises(UserError, match="imagenet cannot be downloaded"):
        load_dataset("imagenet", data_dir=tmp_path, download=True)


def test_frames_of_one_sign_are_a_group(tmp_path):
    from PIL import Image

    root = tmp_path / "gtsrb" / "GTSRB" / "Training"
    for label, track, frame in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        (root / f"{label:05}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(root / f"{label:05}" / f"{track:05}_{frame:05}.ppm")
    groups = load_dataset("gtsrb", split="train", data_dir=tmp_path).groups.tolist()
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "gtsrb"])
def test_missing_sets_say_how_to_get_them(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} is missing or incomplete in .*--download.*--data-dir"):
        load_dataset(name, data_dir=tmp_path)


def test_missing_imagenet_says_what_to_put_where(tmp_path):
    with pytest.raises(UserError, match=r"imagenet is missing or incomplete in .*ILSVRC2012_devkit.*--data-dir"):
        load_dataset("imagenet", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn", "gtsrb"])
def test_a_download_without_network_is_a_sentence(tmp_path, monkeypatch, name):
    def offline(*_args, **_kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(UserError, match=f"{name} could not be downloaded to .*no network here.*check the network"):
        load_dataset(name, data_dir=tmp_path, download=True)


def test_stdout_is_left_to_the_result(tmp_path, monkeypatch, capsys):
    import torchvision.datasets

    def chatty(*_args, **_kwargs):
        print("Files already downloaded and verified")
        raise RuntimeError("Dataset not found. You can use download=True to download it")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", chatty)
    with pytest.raises(UserError) as caught:
        load_dataset("cifar10", data_dir=tmp_path)
    assert "download=True" not in str(caught.value)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "verified" in printed.err


def _fake_cifar(maker, count):
    """A stand-in for torchvision's class: the published files are too large for a test."""
    import numpy as np

    def make(_root, *, train, download):
        source = maker.__new__(maker)
        flat = np.random.default_rng(int(train)).integers(0, 256, (count, 3072), dtype=np.uint8)
        source.data = flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        source.targets, source.classes = [i % 10 for i in range(count)], [f"class {i}" for i in range(10)]
        assert not download
        return source

    return make


@pytest.mark.parametrize(("name", "maker"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_arrays_become_nchw_bytes(tmp_path, monkeypatch, name, maker):
    import torchvision.datasets

    fake = _fake_cifar(getattr(torchvision.datasets, maker), 12)
    monkeypatch.setattr(torchvision.datasets, maker, fake)
    data = load_dataset(name, data_dir=tmp_path, split="train")
    hwc = torch.from_numpy(fake(None, train=True, download=False).data[7].copy())
    assert (data.split, data.image_shape, data.class_names[3]) == ("train", (3, 32, 32), "class 3")
    assert torch.equal(data.images([7])[0], hwc.permute(2, 0, 1) / 255)
    assert data._images.dtype == torch.uint8


def test_svhn_is_read_from_its_mat_file(tmp_path, monkeypatch):
    import numpy as np
    import scipy.io
    import torchvision.datasets

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    scipy.io.savemat(tmp_path / "test_32x32.mat", {"X": pixels, "y": np.array([[10], [1], [2], [9]], np.uint8)})
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda _self: True)
    data = load_dataset("svhn", data_dir=tmp_path)
    assert data.labels.tolist() == [0, 1, 2, 9]
    assert torch.equal(data.images([3])[0], torch.from_numpy(pixels[..., 3].copy()).permute(2, 0, 1) / 255)
