"""Augmentation against plain implementations, image by image from the image's own key."""

from __future__ import annotations

import pytest
import torch
from small_trainings import Training, parts, same

from robustbench_local.attacks.randomness import fold_in, sample_keys, uniform
from robustbench_local.data.augmentation import KINDS, Augmentation
from robustbench_local.errors import UserError

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = 0.01 + 0.98 * torch.rand(40, 3, 9, 7, generator=GENERATOR)
KEYS = sample_keys(0, torch.arange(40), "augment/1", 0)
WRITTEN = [name if kind.default is not None else f"{name}=3" for name, kind in KINDS.items()]


def drawn(shape, step=0):
    return uniform(fold_in(KEYS, torch.full_like(KEYS, step)), shape)


def test_crop_moves_by_whole_pixels_and_black_comes_in():
    moved = Augmentation.parse("crop=2")(IMAGES, KEYS)
    seen = set()
    for image, found, (down, right) in zip(IMAGES, moved, (drawn((2,)) * 5).long() - 2, strict=True):
        seen.add((int(down), int(right)))
        for line in range(9):
            for column in range(7):
                inside = 0 <= line + down < 9 and 0 <= column + right < 7
                expected = image[:, line + down, column + right] if inside else torch.zeros(3)
                assert torch.equal(found[:, line, column], expected)
    assert {down for down, _ in seen} == {right for _, right in seen} == {-2, -1, 0, 1, 2}


def test_flip_mirrors_its_share_of_the_images():
    found = Augmentation.parse("flip")(IMAGES, KEYS)
    mirrored = [torch.equal(each, image.flip(-1)) for each, image in zip(found, IMAGES, strict=True)]
    untouched = [torch.equal(each, image) for each, image in zip(found, IMAGES, strict=True)]
    assert all(one != other for one, other in zip(mirrored, untouched, strict=True))
    assert 10 <= sum(mirrored) <= 30
    assert mirrored == (drawn(()) < 0.5).tolist()
    assert torch.equal(Augmentation.parse("flip=1")(IMAGES, KEYS), IMAGES.flip(-1))


def test_cutout_hides_a_square_wherever_its_centre_falls():
    found = Augmentation.parse("cutout=3")(IMAGES, KEYS)
    sizes = set()
    for image, each, (down, right) in zip(IMAGES, found, drawn((2,)) * torch.tensor([9.0, 7.0]), strict=True):
        hidden = torch.zeros(9, 7, dtype=torch.bool)
        for line in range(9):
            for column in range(7):
                hidden[line, column] = abs(line + 0.5 - down) < 1.5 and abs(column + 0.5 - right) < 1.5
        assert torch.equal(each, torch.where(hidden, torch.full_like(image, 0.5), image))
        sizes.add(int(hidden.sum()))
    assert max(sizes) == 9, "whole in the middle"
    assert min(sizes) < 9, "cut at the edge"


@pytest.mark.parametrize("written", [*WRITTEN, "crop=2,flip,cutout=4", "resized-crop=0.5,flip,color-jitter"])
def test_an_image_meets_the_same_fate_in_any_batch_and_order(written):
    augment = Augmentation.parse(written)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    whole = augment(IMAGES, KEYS)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are left alone"
    assert whole.shape == IMAGES.shape
    assert whole.dtype == torch.float32
    assert not torch.equal(whole, IMAGES)
    assert whole.min() >= 0
    assert whole.max() <= 1
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    assert torch.equal(augment(IMAGES[order], KEYS[order]), whole[order])
    assert torch.equal(augment(IMAGES[7:8], KEYS[7:8]), whole[7:8])
    assert not torch.equal(augment(IMAGES, KEYS + 1), whole)


def test_steps_do_not_share_random_numbers():
    twice = Augmentation.parse("flip,flip")(IMAGES, KEYS)
    mirrored = [torch.equal(each, image.flip(-1)) for each, image in zip(twice, IMAGES, strict=True)]
    assert 8 <= sum(mirrored) <= 32, "or every second flip would undo the first"


@pytest.mark.parametrize("written", ["trivial-augment", "rand-augment", "color-jitter", "rotate", "resized-crop"])
def test_grey_images_can_be_augmented_too(written):
    grey = IMAGES[:, :1]
    assert Augmentation.parse(written)(grey, KEYS).shape == grey.shape


def test_training_sees_other_images_in_every_epoch():
    seen = []

    class Seen(Augmentation):
        def __call__(self, images, keys):
            seen.append((keys, super().__call__(images, keys)))
            return seen[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robustbench_local.training.step.Augmentation", Seen)
        one = Training(augment="crop=1", seed=3).run()
    keys = torch.cat([keys for keys, _ in seen])
    assert len(keys) == 320
    assert len(keys.unique()) == 320, "no image is augmented twice in the same way"
    expected = sample_keys(3, parts()[0].indices, "augment/1", 0)
    assert set(keys[:160].tolist()) == set(expected.tolist())
    assert same(one.model, Training(augment="crop=1", seed=3).run().model)
    assert not same(one.model, Training(seed=3).run().model)


def test_none_does_nothing():
    assert torch.equal(Augmentation.parse("none")(IMAGES, KEYS), IMAGES)


@pytest.mark.parametrize(
    ("text", "slug", "detail"),
    [
        ("flop", "unknown-augmentation", "'flop'.*crop, flip.*none.*Did you mean 'flip'"),
        ("", "unknown-augmentation", "''"),
        ("crop", "augmentation-without-number", "crop=4"),
        ("crop=four", "not-a-number", "crop: 'four'"),
        ("crop=-1", "augmentation-out-of-range", "crop is -1"),
        ("crop=1.5", "not-an-integer", "crop is 1.5"),
        ("flip=0", "augmentation-out-of-range", "flip is 0"),
        ("flip=1.5", "augmentation-out-of-range", "flip is 1.5 .* at most 1"),
        ("flip,,crop=2", "unknown-augmentation", "''"),
        ("flip=nan", "not-a-number", "flip: 'nan'"),
        ("flip=1e999999999", "not-a-number", "flip: '1e999999999'"),
        ("none,flip", "unknown-augmentation", "'none'"),
    ],
)
def test_what_cannot_be_is_one_sentence(text, slug, detail):
    with pytest.raises(UserError, match=detail) as caught:
        Augmentation.parse(text)
    assert caught.value.slug == slug
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--augment")
