"""What every data set promises the engine."""

import hashlib
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustbench_local.data import default_eps, list_datasets, load_dataset
from robustbench_local.data.dataset import ArrayDataset, sample_sha256
from robustbench_local.errors import UserError


def _bytes(count=6):
    return torch.arange(count * 12, dtype=torch.uint8).reshape(count, 3, 2, 2)


def test_8_bit_images_are_held_as_such_and_divided_once():
    data = ArrayDataset(_bytes(), torch.arange(6, dtype=torch.int16))
    images = data.images([4, 0])
    assert images.dtype == torch.float32
    assert torch.equal(images, _bytes()[[4, 0]].float() / 255)
    assert data._images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    assert data.images([]).shape == (0, 3, 2, 2)


def test_float_images_come_as_they_are_and_callers_cannot_change_them():
    source = torch.linspace(-3, 250, 24).reshape(2, 3, 2, 2)
    data = ArrayDataset(source.clone(), torch.tensor([0, 1]))
    assert data.raw_range == (-3.0, 250.0)
    data.images([0, 1]).zero_()
    assert torch.equal(data.images(torch.tensor([0, 1])), source)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_subsets_of_subsets_keep_identity_labels_and_pixels(first, data):
    whole = ArrayDataset(_bytes(), torch.tensor([5, 4, 3, 2, 1, 0]))
    second = data.draw(st.lists(st.integers(0, len(first) - 1), min_size=1, max_size=6))
    part = whole.subset(first).subset(second)
    rows = [first[i] for i in second]
    assert part.indices.tolist() == rows
    assert torch.equal(part.labels, whole.labels[rows])
    assert torch.equal(part.images(range(len(part))), whole.images(rows))
    assert len(whole) == 6
    assert whole.indices.tolist() == list(range(6))


def test_a_subset_shares_the_memory_of_the_whole():
    whole = ArrayDataset(_bytes(), torch.zeros(6, dtype=torch.int64))
    assert whole.subset([1, 2])._images.data_ptr() == whole._images.data_ptr()


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.zeros(4, 3, 2), torch.zeros(4).long(), r"shape \(4, 3, 2\)"),
        (torch.zeros(4, 3, 0, 2), torch.zeros(4).long(), r"shape \(4, 3, 0, 2\)"),
        (torch.zeros(4, 3, 2, 2).double(), torch.zeros(4).long(), "float64.*uint8 and torch.float32"),
        (torch.zeros(4, 3, 2, 2), torch.zeros(5).long(), "4 images but 5 labels"),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4), "labels of arrays are float32.*integers"),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4).bool(), "labels of arrays are bool"),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4, 10).long(), r"labels of arrays have shape \(4, 10\)"),
        (torch.zeros(4, 3, 2, 2), torch.tensor(1), r"labels of arrays have shape \(\)"),
        (torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, -1, -2]), "Label -1 of sample 2"),
        (torch.zeros(0, 3, 2, 2), torch.zeros(0).long(), "arrays is empty"),
    ],
)
def test_bad_arrays_are_refused_in_one_sentence(images, labels, said):
    with pytest.raises(UserError, match=said):
        ArrayDataset(images, labels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_its_image(value):
    images = torch.zeros(1500, 1, 2, 2)
    images[1300, 0, 1, 1] = value
    with pytest.raises(UserError, match="Image 1300 of arrays"):
        ArrayDataset(images, torch.zeros(1500).long())


def test_the_identity_of_a_sample_is_its_shape_and_its_bytes():
    image = torch.tensor([[[0.0, 0.25], [0.5, 1.0]]])
    expected = hashlib.sha256(b"1x2x2:" + struct.pack("<4f", 0, 0.25, 0.5, 1)).hexdigest()
    assert sample_sha256(image) == expected
    assert sample_sha256(image.reshape(1, 1, 4)) != expected
    assert sample_sha256(image.transpose(1, 2)) != expected
    # A channels-last view of the same picture is the same picture.
    colour = torch.rand(1, 3, 4, 5)
    assert sample_sha256(colour[0]) == sample_sha256(colour.to(memory_format=torch.channels_last)[0])


def test_names_and_default_budgets():
    names = [name for name, note in list_datasets() if note]
    assert names[0] == "digits"
    assert len(names) == 10
    assert default_eps("digits", "linf") == "0.1"
    assert default_eps("gtsrb", "linf") == "8/255"
    assert default_eps("cifar10", "l2") == "0.5"
    assert default_eps("imagenet", "linf") == "4/255"
    assert default_eps("digits", "l2") is None
    assert default_eps("npz:x.npz", "linf") is None


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("cifar-10", "no data set 'cifar-10'.*Did you mean 'cifar10'"),
        ("Digits", "Did you mean 'digits'"),
        ("mine.npz", "write npz:mine.npz"),
        ("npz:", "write npz:PATH"),
        ("imagefolder", "write imagefolder:PATH"),
        (".", "write imagefolder:."),
    ],
)
def test_unknown_specs_are_refused_with_the_mend(spec, said):
    with pytest.raises(UserError, match=said):
        load_dataset(spec)


def test_names_and_budgets_are_known_without_torch():
    code = (
        "import sys; from robustbench_local.data import list_datasets, default_eps; list_datasets(); "
        "default_eps('digits', 'linf'); sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60).returncode == 0
