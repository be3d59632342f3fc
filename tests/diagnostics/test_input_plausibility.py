"""Labels in another order, and pixels that were meant otherwise, are recognised – and only then spoken of."""

import pytest
import torch
from torch import nn

from robustbench_local import Classifier
from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.evaluation.doctor import doctor

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
