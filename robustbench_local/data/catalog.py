"""The names `--data` knows and the eps that each is attacked with by default. Imports nothing heavy."""

from __future__ import annotations

# name -> what `robust list datasets` says about it
DATASETS: dict[str, str] = {
    "digits": "1,797 real 8x8 grey digits inside scikit-learn, no download; 1,437 train, 360 test",
    "mnist": "70,000 28x28 grey digits (torchvision)",
    "fashion-mnist": "70,000 28x28 grey pictures of clothes (torchvision)",
    "cifar10": "60,000 32x32 colour pictures, 10 classes (torchvision)",
    "cifar100": "60,000 32x32 colour pictures, 100 classes (torchvision)",
    "svhn": "99,289 32x32 colour house numbers (torchvision)",
    "gtsrb": "German traffic signs, 43 classes, resized whole to 32x32 (torchvision)",
    "imagenet": "ImageNet 2012, test means its validation set, not downloadable; resized to the model's size, "
    "else to 256 and cropped to 224 (torchvision)",
    "imagefolder:PATH": "one folder of pictures per class, taken whole, decoded as needed",
    "npz:PATH": "a numpy archive, taken whole: `images` uint8 NHWC or float NCHW in [0,1], `labels` integers",
}

_TINY_COLOUR = {"linf": "8/255", "l2": "0.5"}

# As text, so that reports print the budget the way the field writes it.
DEFAULT_EPS: dict[str, dict[str, str]] = {
    "digits": {"linf": "0.1"},
    "mnist": {"linf": "0.3"},
    "fashion-mnist": {"linf": "0.1"},
    "cifar10": _TINY_COLOUR,
    "cifar100": _TINY_COLOUR,
    "svhn": _TINY_COLOUR,
    "gtsrb": _TINY_COLOUR,
    "imagenet": {"linf": "4/255"},
}


def default_eps(spec: str, norm: str) -> str | None:
    """The customary eps for a data set and a norm as text (`"8/255"`), or None where `--eps` must be given."""
    return DEFAULT_EPS.get(spec, {}).get(norm.lower())


def list_datasets() -> list[tuple[str, str]]:
    """Every name that `--data` accepts, with a note."""
    return list(DATASETS.items())
