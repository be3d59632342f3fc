"""The embedded digits: facts about the set, and a cut that must never move."""

import hashlib

import pytest
import torch

from robustbench_local.data import load_dataset
from robustbench_local.data.digits import digits_split
from robustbench_local.errors import UserError


@pytest.fixture(scope="module")
def source():
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    return torch.from_numpy(pixels), torch.from_numpy(targets).to(torch.int64)


def test_the_two_splits_are_the_whole_set_once(source):
    pixels, labels = source
    rows = digits_split(labels)
    assert sorted(torch.cat([rows["train"], rows["test"]]).tolist()) == list(range(1797))
    for split, size in (("train", 1437), ("test", 360)):
        data = load_dataset("digits", split=split)
        assert (len(data), data.split, data.image_shape) == (size, split, (1, 8, 8))
        # Sixteenths are exact: multiplied back they are the source itself, bit for bit.
        assert torch.equal(data.images(range(size)).flatten(1).double() * 16, pixels[rows[split]])
        assert torch.equal(data.labels, labels[rows[split]])
        assert data.class_names == list("0123456789")
        assert data.raw_range == (0.0, 1.0)
        assert not data.lossy


def test_every_class_keeps_its_share_in_the_test_split(source):
    _, labels = source
    exact = torch.bincount(labels).double() * 360 / 1797
    share = torch.bincount(load_dataset("digits").labels).double()
    assert (share - exact).abs().max() < 1


def test_the_cut_is_the_one_that_published_results_were_made_with(source):
    test = digits_split(source[1])["test"]
    digest = hashlib.sha256(test.numpy().astype("<i8").tobytes()).hexdigest()
    assert digest == "98a04c8fb920a0914be4419bbc73b2fb22d049879c9e0f2e78ce95cae9cfcdf5"


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match=r"no split 'tset'.*test or train.*Did you mean 'test'"):
        load_dataset("digits", split="tset")
    with pytest.raises(UserError, match="no split 'val'"):
        load_dataset("digits", split="val")
