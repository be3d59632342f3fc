"""What every dataset promises the engine."""

import hashlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustbench_local import ThreatModel, evaluate, load_classifier
from robustbench_local.data import load_dataset
from robustbench_local.data.dataset import ArrayDataset, Dataset, dataset_sha256, sample_sha256
from robustbench_local.errors import UserError
from robustbench_local.training.recipe import resolve_recipe
from robustbench_local.training.run import run_training
from robustbench_local.training.settings import RuntimeSettings


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


def test_callers_cannot_change_the_images():
    source = torch.linspace(0, 1, 24).reshape(2, 3, 2, 2)
    data = ArrayDataset(source.clone(), torch.tensor([0, 1]))
    data.images([0, 1]).zero_()
    assert torch.equal(data.images(torch.tensor([0, 1])), source)


class Streamed(Dataset):
    """A dataset of a user's own, whose pixels nobody has seen before they are asked for."""

    def __init__(self, images):
        super().__init__(torch.zeros(len(images), dtype=torch.int64), name="streamed")
        self._pixels = images

    @property
    def image_shape(self):
        return tuple(self._pixels.shape[1:])

    def _stored(self, rows):
        return self._pixels[rows]


@pytest.mark.parametrize("kind", [Streamed, lambda images: ArrayDataset(images, torch.zeros(len(images)).long())])
def test_rounding_errors_are_clamped_in_one_place(kind):
    source = torch.tensor([-1e-6, 0.0, 0.5, 1 + 9e-7]).reshape(2, 1, 2, 1)
    data = kind(source.clone())
    assert torch.equal(data.images([0, 1]), source.clamp(0, 1))
    assert torch.equal(data.subset([1]).images([0]), source[1:].clamp(0, 1))
    assert torch.equal(source, torch.tensor([-1e-6, 0.0, 0.5, 1 + 9e-7]).reshape(2, 1, 2, 1)), "not in place"


@pytest.mark.parametrize("kind", [Streamed, lambda images: ArrayDataset(images, torch.zeros(len(images)).long())])
@pytest.mark.parametrize(
    ("low", "high", "advice"),
    [(-3e-6, 1, "clamp"), (0, 1 + 3e-6, "clamp"), (0, 255, "uint8"), (-2, 2, "--normalize"), (0.5, 300, "--normalize")],
)
def test_pixels_outside_the_box_are_refused_wherever_they_lie(kind, low, high, advice):
    images = torch.full((1500, 1, 2, 2), 0.5)
    images[1300, 0, 0], images[1301, 0, 1] = low, high
    with pytest.raises(UserError, match=f"{low:.4g}.*{high:.4g}.*{advice}") as error:
        kind(images).images(range(1500))
    assert error.value.slug == "pixels-out-of-range"


def test_a_data_set_has_one_hash_whatever_rounding_its_file_has():
    exact = torch.linspace(0, 1, 12).reshape(3, 1, 2, 2)
    labels = torch.tensor([2, 0, 1])
    data = ArrayDataset(exact, labels)
    rounded = exact.clone()
    rounded[0, 0, 0, 0], rounded[2, 0, 1, 1] = -5e-7, 1 + 5e-7
    assert data.sha256() == ArrayDataset(rounded, labels).sha256()
    assert data.sha256() == dataset_sha256(map(sample_sha256, exact), labels)
    content = "".join(f"{sample_sha256(image)} {label}\n" for image, label in zip(exact, labels, strict=True))
    assert data.sha256() == hashlib.sha256(content.encode()).hexdigest(), "hashes of results written earlier"
    assert data.sha256() != data.subset([0, 2, 1]).sha256()
    assert data.sha256() != ArrayDataset(exact, labels.flip(0)).sha256()


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
    ("images", "labels", "slug", "detail"),
    [
        (torch.zeros(4, 3, 2), torch.zeros(4).long(), "images-wrong-shape", r"\(4, 3, 2\)"),
        (torch.zeros(4, 3, 0, 2), torch.zeros(4).long(), "images-wrong-shape", r"\(4, 3, 0, 2\)"),
        (torch.zeros(4, 3, 2, 2).double(), torch.zeros(4).long(), "images-wrong-dtype", "float64.*uint8.*float32"),
        (torch.zeros(4, 3, 2, 2), torch.zeros(5).long(), "images-labels-mismatch", "4 images but 5 labels"),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4), "labels-wrong-dtype", "float32.*integers"),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4).bool(), "labels-wrong-dtype", "bool"),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4, 10).long(), "labels-wrong-shape", r"\(4, 10\)"),
        (torch.zeros(4, 3, 2, 2), torch.tensor(1), "labels-wrong-shape", r"\(\)"),
        (torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, -1, -2]), "labels-negative", "-1 of sample 2"),
        (torch.zeros(0, 3, 2, 2), torch.zeros(0).long(), "dataset-empty", "arrays"),
    ],
)
def test_bad_arrays_are_refused_in_one_sentence(images, labels, slug, detail):
    with pytest.raises(UserError, match=detail) as error:
        ArrayDataset(images, labels)
    assert error.value.slug == slug


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_its_image(value):
    images = torch.zeros(1500, 1, 2, 2)
    images[1300, 0, 1, 1] = value
    with pytest.raises(UserError, match="image 1300 of arrays") as error:
        ArrayDataset(images, torch.zeros(1500).long())
    assert error.value.slug == "pixels-not-finite"


def test_the_identity_of_a_sample_is_its_shape_and_its_bytes():
    image = torch.tensor([[[0.0, 0.25], [0.5, 1.0]]])
    expected = hashlib.sha256(b"1x2x2:" + struct.pack("<4f", 0, 0.25, 0.5, 1)).hexdigest()
    assert sample_sha256(image) == expected
    assert sample_sha256(image.reshape(1, 1, 4)) != expected
    assert sample_sha256(image.transpose(1, 2)) != expected
    # A channels-last view of the same picture is the same picture.
    colour = torch.rand(1, 3, 4, 5)
    assert sample_sha256(colour[0]) == sample_sha256(colour.to(memory_format=torch.channels_last)[0])


def test_training_and_evaluation_agree_on_the_hash_of_a_data_set_with_rounding_errors(tmp_path):
    digits = load_dataset("digits", split="train").subset(range(60))
    images = digits.images(range(60))
    images[images == 1] += 5e-7
    np.savez(tmp_path / "rounded.npz", images=images.numpy(), labels=digits.labels.numpy())
    settings = {"eps": "0.1", "epochs": "1", "batch_size": "16", "eval_samples": "2"}
    recipe = resolve_recipe(None, {"data": f"npz:{tmp_path / 'rounded.npz'}", **settings})
    card = run_training(recipe, tmp_path / "out", runtime=RuntimeSettings(device="cpu")).card
    data = load_dataset(recipe.data)
    result = evaluate(load_classifier("digits-cnn"), data, ThreatModel("linf", 0), suite="fast", device="cpu").result
    assert data.raw_range[1] > 1
    assert card.data.sha256 == result.data.sha256 == digits.sha256()
