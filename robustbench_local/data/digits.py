"""scikit-learn's handwritten digits: real data that needs no download."""

from __future__ import annotations

import torch

from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.data.stratified import stratified_subset

TEST_SAMPLES = 360
SPLIT_SEED = 0


def load_digits(split: str) -> ArrayDataset:
    """`"train"` (1,437) or `"test"` (360) of the 1,797 real 8x8 grayscale digits, values 0 … 16 divided by 16.

    The splits never change: the test split is `stratified_subset(labels, 360, seed=0)` of scikit-learn's
    order, the training split is the rest, both in that order. Source: test part of the UCI set of handwritten digits
    (Alpaydin, Kaynak 1998), as scikit-learn ships it.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    pixels, targets = sklearn_digits(return_X_y=True)
    # Sixteenths are exact in float32, so nothing is lost against the source.
    images = torch.from_numpy(pixels).to(torch.float32).div_(16).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(targets).to(torch.int64)
    rows = digits_split(labels)[split]
    return ArrayDataset(images[rows], labels[rows], name="digits", split=split, class_names=[str(n) for n in range(10)])


def digits_split(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sorted rows of scikit-learn's array that make up `"train"` and `"test"`, given its labels (int64 [1797])."""
    test = stratified_subset(labels, TEST_SAMPLES, SPLIT_SEED)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[test] = False
    return {"train": rest.nonzero().flatten(), "test": test}
