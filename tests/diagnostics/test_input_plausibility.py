"""Labels in another order, and pixels that were meant otherwise, are recognised – and only then spoken of."""

import pytest
import torch
from PIL import Image
from torch import nn

from robustbench_local import Classifier, ThreatModel, evaluate
from robustbench_local.data import load_dataset
from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.diagnostics.input_plausibility import check_inputs
from robustbench_local.diagnostics.pixel_readings import FIRST_LOOK
from robustbench_local.evaluation.doctor import doctor
from robustbench_local.models.metered import Metered

A, B = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
MEANS = torch.stack([A, A.flip(0), B, B.transpose(1, 2), 1 - A])
"""Each picture is another one read wrongly."""


class Nearest(nn.Module):
    """Knows five pictures and says which is nearest."""

    def __init__(self, means=MEANS):
        super().__init__()
        self.means = nn.Parameter(means)

    def forward(self, images):
        return -(images[:, None] - self.means).flatten(2).square().sum(2)


def pictures(change=lambda images: images, relabel=lambda labels: labels, n=200, means=MEANS, noise=0.1):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (n,), generator=generator)
    images = (means[labels] + noise * torch.randn((n, 3, 6, 6), generator=generator)).clamp(0, 1)
    return ArrayDataset(change(images).contiguous(), relabel(labels))


def finding(dataset, model=None):
    clean, found = doctor(Classifier(model or Nearest(), copy=False), dataset, device="cpu")
    return clean, next(each for each in found if each.slug == "clean-accuracy-plausible")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda images: images.flip(1), "reverse order"),
        (lambda images: images.transpose(2, 3), "transposed"),
        (lambda images: 1 - images, "negatives"),
    ],
)
def test_other_readings_of_the_pixels_are_recognised(change, word):
    clean, found = finding(pictures(change))
    assert clean.value < 0.9
    assert found.status == "warn"
    assert word in found.advice
    assert "images instead of" in found.advice


def test_a_missing_normalisation_is_recognised():
    means = torch.stack([A, 0.5 + 0.6 * (A - 0.5), 0.5 + 0.3 * (A - 0.5), B, 0.5 + 0.6 * (B - 0.5)])
    clean, found = finding(pictures(means=means, noise=0.02), Nearest((means - 0.5) / 0.5))
    assert clean.value < 0.9
    assert found.status == "warn"
    assert "--normalize 0.5:0.5" in found.advice


def test_permuted_labels_are_recognised_with_their_order():
    clean, found = finding(pictures(relabel=lambda labels: (labels + 1) % 5))
    assert clean.value < 0.1
    assert found.status == "warn"
    assert "0→4, 1→0, 2→1, 3→2, 4→3" in found.advice


def test_nothing_is_said_of_a_good_model_or_a_mediocre_one():
    clean, found = finding(pictures())
    assert clean.value == 1
    assert found.status == "pass"
    assert not found.advice
    clean, found = finding(pictures(relabel=lambda labels: torch.where(torch.arange(200) % 3 == 0, 0, labels)))
    assert 0.5 < clean.value < 0.9
    assert found.status == "pass", found.advice


GRAY = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(2))


def gray_pictures(change=lambda images: images, n=200, noise=0.1, means=GRAY):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (n,), generator=generator)
    images = (means[labels] + noise * torch.randn((n, 1, 6, 6), generator=generator)).clamp(0, 1)
    return ArrayDataset(change(images).contiguous(), labels)


class Front(nn.Module):
    """A network behind a function of its input."""

    def __init__(self, front, net):
        super().__init__()
        self.front, self.net = front, net

    def forward(self, images):
        return self.net(self.front(images))


def found_by(classifier, dataset, slug):
    _, found = doctor(classifier, dataset, device="cpu")
    return next(each for each in found if each.slug == slug)


@pytest.mark.parametrize(
    ("front", "word"),
    [
        (lambda images: images / 255, "--normalize 0:1/255"),
        (lambda images: (images + 1) / 2, "--normalize 0.5:0.5"),
        (lambda images: images * 0.3081 + 0.1307, "--normalize mnist"),
    ],
)
@pytest.mark.parametrize("n", [24, 200])
def test_models_that_expect_another_scale_are_recognised(front, word, n):
    levels = torch.tensor([0.05, 0.25, 0.45, 0.65, 0.85]).view(5, 1, 1, 1).expand(5, 1, 6, 6)
    classifier = Classifier(Front(front, Nearest(levels)), copy=False)
    found = found_by(classifier, gray_pictures(n=n, means=levels), "clean-accuracy-plausible")
    assert found.status == "warn"
    assert word in found.advice


@pytest.mark.parametrize(
    ("change", "levels", "cure"),
    [
        (lambda images: (images > 0.5).to(torch.uint8), 1, "store them divided by 1,"),
        (lambda images: (images * 15).round().to(torch.uint8), 15, "store them divided by 15,"),
        (lambda images: images / 255, 1, "divided by 255 twice"),
    ],
)
def test_images_that_are_nearly_black_are_told_by_their_range(change, levels, cure):
    classifier = Classifier(Nearest(GRAY / 255 * levels), copy=False)  # right on them all, so no reading is better
    found = found_by(classifier, gray_pictures(change), "pixels-fit-model")
    assert found.status == "warn"
    assert cure in found.advice


def test_dark_and_plain_images_are_not_called_black():
    for change in (lambda images: images, lambda images: images * 0.1):
        found = found_by(Classifier(Nearest(GRAY), copy=False), gray_pictures(change), "pixels-fit-model")
        assert found.status == "pass"


class Normalize(nn.Module):
    """Normalizes by constants, as buffers, numbers or in place."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.register_buffer("center", torch.tensor([0.5]).view(1, 1, 1, 1))

    def forward(self, images):
        if self.how == "buffers":
            return (images - self.center) / 0.5
        return images * 2 - 1 if self.how == "numbers" else images.clone().sub_(0.5).div_(0.5)


@pytest.mark.parametrize("how", ["buffers", "numbers", "in place"])
def test_a_normalization_inside_and_before_the_model_is_told(how):
    net = nn.Sequential(Normalize(how), Nearest((GRAY - 0.5) / 0.5))
    found = found_by(Classifier(net, mean=[0.4], std=[0.9], copy=False), gray_pictures(), "pixels-fit-model")
    assert found.status == "warn"
    assert "after --normalize has" in found.advice
    assert found_by(Classifier(net, copy=False), gray_pictures(), "pixels-fit-model").status == "pass"


@pytest.mark.parametrize(
    "front",
    [
        lambda images: images,
        lambda images: images + 0.1 * images.sin(),
        lambda images: (images - images.mean((1, 2, 3), keepdim=True)) / images.std(),
        lambda images: (images - 0) / 1,
        lambda images: images.clamp(-1, 1),
    ],
)
def test_other_fronts_are_no_normalization(front):
    classifier = Classifier(Front(front, Nearest((GRAY - 0.5) / 0.5)), mean=[0.5], std=[0.5], copy=False)
    assert "scales its input" not in found_by(classifier, gray_pictures(), "pixels-fit-model").advice


def test_a_front_that_belongs_behind_the_normalization_is_no_warning():
    net = Front(lambda images: images * 10 - 5, Nearest(10 * (GRAY - 0.5) / 0.5 - 5))
    classifier = Classifier(net, mean=[0.5], std=[0.5], copy=False)
    assert found_by(classifier, gray_pictures(noise=0.2), "pixels-fit-model").status == "pass"


def test_a_needless_normalization_is_told_at_high_accuracy_too():
    classifier = Classifier(Nearest(GRAY), mean=[-0.2], std=[1.0], copy=False)
    dataset = gray_pictures(n=2000, noise=0.45)
    clean, _ = doctor(classifier, dataset, device="cpu")
    assert clean.value > 0.9
    found = found_by(classifier, dataset, "clean-accuracy-plausible")
    assert found.status == "warn"
    assert "without --normalize" in found.advice


@pytest.mark.parametrize("accuracy", [0.6, 0.8])
@pytest.mark.parametrize("n", [20, 100])
def test_honest_models_of_low_accuracy_are_not_suspected(accuracy, n):
    for seed in range(4):
        dataset = gray_pictures(n=n, noise=0.05)
        wrong = torch.rand(n, generator=torch.Generator().manual_seed(seed)) > accuracy
        dataset.labels[wrong] = (dataset.labels[wrong] + 1 + torch.arange(int(wrong.sum())) % 4) % 5
        _, found = doctor(Classifier(Nearest(GRAY), copy=False), dataset, device="cpu")
        assert not [each for each in found if each.status == "warn"], seed


def test_no_more_passes_than_three_for_each_image():
    for n in (20, 100, 400):
        dataset = gray_pictures(n=n)
        model = Metered(Classifier(Front(lambda images: images / 255, Nearest(GRAY)), copy=False))
        predictions = model(dataset.images(range(n))).argmax(1)
        before = model.passes.forward
        check_inputs(model, dataset, predictions, 5, torch.device("cpu"))
        assert model.passes.forward - before <= 3 * n + FIRST_LOOK


def folder(root, save, classes=5, per_class=16, skip=()):
    """Every picture of a class is its mean in gray; `save(picture, path, number)` writes it."""
    for label in sorted(set(range(classes)) - set(skip)):
        (root / str(label)).mkdir(parents=True)
        for number in range(per_class):
            picture = Image.fromarray((GRAY[label, 0] * 255).round().to(torch.uint8).numpy())
            save(picture, root / str(label) / f"{number}.png", number)
    return load_dataset(f"imagefolder:{root}")


def plainly(picture, path, number):
    picture.save(path)


def turned(picture, path, number):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif if number % 2 else None)


def see_through(picture, path, number):
    if number % 2:
        Image.merge("LA", [Image.new("L", picture.size), picture.point(lambda value: 255 - value)]).save(path)
    else:
        picture.save(path)


def test_tags_that_explain_the_errors_are_named(tmp_path):
    classifier = Classifier(Nearest(GRAY), copy=False)
    assert found_by(classifier, folder(tmp_path / "plain", plainly), "pixels-fit-model").status == "pass"
    transparent = found_by(classifier, folder(tmp_path / "alpha", see_through), "pixels-fit-model")
    assert "40 of 80 pictures have a transparency channel" in transparent.advice
    assert "on a white background the model is correct on 40 of 40" in transparent.advice
    tagged = found_by(Classifier(Nearest(GRAY), copy=False), folder(tmp_path / "exif", turned), "pixels-fit-model")
    assert "40 of 80 pictures have an EXIF orientation" in tagged.advice
    assert "turned as it says the model is correct on 40 of 40" in tagged.advice


def test_tags_that_do_no_harm_are_not_spoken_of(tmp_path):
    def upright(picture, path, number):
        exif = Image.Exif()
        exif[0x0112] = 6 if number % 2 else 1
        picture.save(path, exif=exif)

    data = folder(tmp_path, upright)
    assert data.traits(torch.arange(len(data)))["orientation"].any()
    assert found_by(Classifier(Nearest(GRAY), copy=False), data, "pixels-fit-model").status == "pass"


@pytest.mark.parametrize(("skip", "status"), [((), "pass"), ((3,), "warn"), ((1, 3), "pass")])
def test_a_missing_class_directory_is_told(tmp_path, skip, status):
    data = folder(tmp_path, plainly, skip=skip)
    clean, _ = doctor(Classifier(Nearest(GRAY), copy=False), data, device="cpu")
    assert clean.value == 1
    found = found_by(Classifier(Nearest(GRAY), copy=False), data, "class-directories-fit-model")
    assert found.status == status
    assert ("3 has no directory" in found.advice) is (status == "warn")


def test_directories_that_are_only_counted_are_doubted_where_one_is_missing(tmp_path):
    data = folder(tmp_path, plainly)
    for number, name in enumerate(["zebra", "ape", "bee", "cat", "dog"]):
        (tmp_path / str(number)).rename(tmp_path / name)
    classifier = Classifier(Nearest(GRAY[[1, 2, 3, 4, 0]]), copy=False)
    data = load_dataset(f"imagefolder:{tmp_path}")
    assert found_by(classifier, data, "class-directories-fit-model").status == "pass"
    (tmp_path / "bee").rename(tmp_path.parent / "bee")
    data = load_dataset(f"imagefolder:{tmp_path}")
    found = found_by(classifier, data, "class-directories-fit-model")
    assert found.status == "warn"
    assert "4 class directories, but the model has 5 outputs" in found.advice


def test_pictures_left_out_are_a_warning_with_their_kinds(tmp_path):
    folder(tmp_path, plainly)
    (tmp_path / "2" / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    data = load_dataset(f"imagefolder:{tmp_path}")
    result = evaluate(Classifier(Nearest(GRAY), copy=False), data, ThreatModel("linf", 0), attacks=["fgsm"]).result
    assert result.verdict.status == "doubtful"
    assert any("1 of 81 pictures are left out (1 .heic)" in reason for reason in result.verdict.reasons)
    assert "1 of 81 pictures are left out (1 .heic)" in result.config["loading"]


def test_numbers_from_one_follow_the_models_outputs(tmp_path):
    folder(tmp_path, plainly)
    (tmp_path / "0").rename(tmp_path / "5")
    (tmp_path / "3").rename(tmp_path.parent / "3")
    data = load_dataset(f"imagefolder:{tmp_path}")
    classifier = Classifier(Nearest(GRAY[[1, 2, 3, 4, 0]]), copy=False)
    assert data.class_names == ["0", "1", "2", "3", "4", "5"]  # open, while no model says how many classes there are
    result = evaluate(classifier, data, ThreatModel("linf", 0), attacks=["fgsm"]).result
    assert result.clean_accuracy.value == 1
    assert [each.name for each in result.per_class] == ["1", "2", "4", "5"]
