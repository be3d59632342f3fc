"""scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustbench_local.data.catalog import DatasetEntry, LoadRequest

if TYPE_CHECKING:
    from robustbench_local.data.dataset import Dataset


def load(request: LoadRequest) -> Dataset:
    """1,437 training or 360 test images."""
    from robustbench_local.data.digits import load_digits

    return load_digits(request.split)


DATASET = DatasetEntry(
    name="digits",
    description="1,797 real 8x8 grayscale digits inside scikit-learn, no download; 1,437 train, 360 test",
    load=load,
    default_eps={"linf": "0.1"},
)
