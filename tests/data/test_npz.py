"""`npz:PATH`: what it reads and what it refuses, each refusal naming the file."""

import io
import zipfile

import numpy as np
import pytest
import torch

from robustbench_local.data import load_dataset
from robustbench_local.errors import UserError

LABELS = np.array([1, 0, 2])
HWC = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)


def _save(folder, **arrays):
    path = folder / "set.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_8_bit_colour_is_nhwc(tmp_path):
    data = load_dataset(_save(tmp_path, images=HWC, labels=LABELS, extra=np.zeros(2)), class_names=["a", "b", "c"])
    assert (data.name, data.split, data.class_names) == ("npz:set.npz", "all", ["a", "b", "c"])
    assert data.image_shape == (3, 4, 5)
    assert data._images.dtype == torch.uint8
    assert torch.equal(data.images([2, 0]), torch.from_numpy(HWC[[2, 0]]).permute(0, 3, 1, 2).float() / 255)
    assert data.images([0]).is_contiguous()
    assert data.labels.tolist() == [1, 0, 2]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_floats_are_nchw_of_any_width_and_byte_order(tmp_path, dtype):
    images = (np.arange(3 * 2 * 4 * 5).reshape(3, 2, 4, 5) / 128).astype(dtype)
    data = load_dataset(_save(tmp_path, images=images, labels=LABELS.astype(">u2")))
    assert torch.equal(data.images([0, 1, 2]), torch.from_numpy(images.astype("=f4")))
    assert data.raw_range == (0.0, 119 / 128)


def test_floats_outside_the_box_are_refused_with_the_file(tmp_path):
    with pytest.raises(UserError, match=r"set\.npz.* 0 to 255") as error:
        load_dataset(_save(tmp_path, images=np.float32([[[[0, 255.0]]]]), labels=[0]))
    assert error.value.slug == "pixels-out-of-range"


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_grey_without_a_channel_gets_one(tmp_path, dtype):
    assert load_dataset(_save(tmp_path, images=np.zeros((3, 4, 5), dtype), labels=LABELS)).image_shape == (1, 4, 5)


def test_splits_are_ignored_because_the_file_is_taken_whole(tmp_path):
    spec = _save(tmp_path, images=HWC, labels=LABELS)
    assert load_dataset(spec, split="train").split == "all"


@pytest.mark.parametrize(
    ("arrays", "slug", "detail"),
    [
        ({"x_test": HWC, "y_test": LABELS}, "npz-array-missing", "`images`.*x_test, y_test"),
        ({"image": HWC, "labels": LABELS}, "npz-array-missing", "Did you mean 'image'"),
        ({"images": HWC}, "npz-array-missing", "`labels`.*images"),
        ({}, "npz-array-missing", "nothing"),
        ({"images": HWC.astype(np.int64), "labels": LABELS}, "images-wrong-dtype", "int64.*uint8"),
        ({"images": HWC > 3, "labels": LABELS}, "images-wrong-dtype", "bool"),
        ({"images": HWC[0, 0], "labels": LABELS}, "images-wrong-shape", r"\(5, 3\)"),
        ({"images": HWC[None], "labels": LABELS}, "images-wrong-shape", r"\(1, 3, 4, 5, 3\)"),
        ({"images": np.zeros((3, 3, 8, 8), np.uint8), "labels": LABELS}, "images-wrong-layout", r"\(0, 2, 3, 1\)"),
        ({"images": np.zeros((3, 8, 8, 3), "f4"), "labels": LABELS}, "images-wrong-layout", r"\(0, 3, 1, 2\)"),
        ({"images": HWC, "labels": LABELS[:2]}, "images-labels-mismatch", "3 images but 2 labels"),
        ({"images": HWC, "labels": LABELS / 1}, "labels-wrong-dtype", "float64.*integers"),
        ({"images": HWC, "labels": np.array(["a", "b", "c"])}, "labels-wrong-dtype", "<U1"),
        ({"images": HWC, "labels": np.eye(3, dtype=int)}, "labels-wrong-shape", r"npz:set.npz.*\(3, 3\)"),
        ({"images": HWC, "labels": np.array([0, -7, 1])}, "labels-negative", "-7 of sample 1"),
        ({"images": HWC, "labels": np.array([0, 2**64 - 1, 1], "u8")}, "labels-out-of-range", "18446744073709551615"),
        ({"images": HWC[:0], "labels": LABELS[:0]}, "dataset-empty", "npz:set.npz"),
        ({"images": np.array([None, 1, 2], object), "labels": LABELS}, "npz-not-numbers", "`images`.*pickled"),
        ({"images": HWC, "labels": LABELS.astype(object)}, "npz-not-numbers", "`labels`.*pickled"),
        ({"images": np.full((3, 1, 2, 2), np.nan), "labels": LABELS}, "pixels-not-finite", "image 0 of npz:set.npz"),
        ({"images": HWC, "labels": LABELS, "groups": LABELS[:2]}, "npz-wrong-groups", r"\(2,\)"),
    ],
)
def test_bad_contents_are_refused(tmp_path, arrays, slug, detail):
    with pytest.raises(UserError, match=detail) as caught:
        load_dataset(_save(tmp_path, **arrays))
    assert caught.value.slug == slug


def test_files_that_are_no_archive_are_refused(tmp_path):
    path = tmp_path / "set.npz"
    for missing, detail in ((path, "set.npz does not exist"), (tmp_path, "imagefolder:PATH")):
        with pytest.raises(UserError, match=detail) as caught:
            load_dataset(f"npz:{missing}")
        assert caught.value.slug == "npz-not-a-file"
    plain = io.BytesIO()
    np.save(plain, HWC)
    for content in (b"", b"<!DOCTYPE html>", b"\x80\x04N.", plain.getvalue()):
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            load_dataset(f"npz:{path}")
        assert caught.value.slug == "npz-no-archive"


def test_a_zip_of_other_things_is_refused(tmp_path):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"readme\.txt") as caught:
        load_dataset(f"npz:{path}")
    assert caught.value.slug == "npz-array-missing"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", "not an array")
        archive.writestr("labels", "not an array")
    with pytest.raises(UserError, match="`images`") as caught:
        load_dataset(f"npz:{path}")
    assert caught.value.slug == "npz-not-numbers"


def is_refused(path):
    """Whether the file is refused, by its name; anything but a UserError fails the test."""
    try:
        load_dataset(f"npz:{path}")
    except UserError as error:
        return "set.npz" in str(error)
    return False


def test_damage_anywhere_in_the_file_is_a_sentence_not_a_traceback(tmp_path):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=HWC, labels=LABELS)
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :])
        refused += is_refused(path)
    # Some bytes (times, unused flags) do not matter; pixels and headers do.
    assert refused > len(whole) / 7 / 2
    path.write_bytes(whole[: len(whole) // 2])
    assert is_refused(path)
