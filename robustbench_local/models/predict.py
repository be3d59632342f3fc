"""What a classifier sees in image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS  # type: ignore[import-untyped]

from robustbench_local.data.imagefolder import FolderDataset
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.models import Classifier

BATCH = 32
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Guess:
    """One class and the probability that the classifier gives it; a name where the model names its classes."""

    label: int
    name: str | None
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one file, the likeliest first."""

    path: str
    guesses: list[Guess]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files as named; for a folder all pictures under it, by name.

    Raises UserError for a path that does not exist, and a folder without pictures.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
            if not inside:
                raise UserError(f"the folder {path} holds no pictures ({', '.join(IMG_EXTENSIONS)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"there is no image {path}: check the path")
    return found


def predict(
    classifier: Classifier, paths: Sequence[Path], *, top: int = 1, resize: Resize | None = None
) -> list[Prediction]:
    """The `top` likeliest classes of every file, in the files' order.

    The files are resized as given, else as the classifier says, else squeezed whole to the one size it takes, else left
    as they are. They become grey or colour as its input has 1 or 3 channels. Raises UserError for a file that cannot
    be read, and where the classifier does not take it.
    """
    channels = _channels(classifier)
    if channels not in (None, *MODES):
        raise UserError(f"{classifier.name} takes images of {channels} channels, but files have 1 or 3")
    if resize is None:
        resize = classifier.resize
    if resize is None and classifier.input_shape is not None:
        resize = Resize(classifier.input_shape[1:])
    predictions: list[Prediction] = []
    # Files that are left as they are differ in size, so each is a batch of its own.
    for some in _chunks(paths, BATCH if resize else 1):
        dataset = FolderDataset(
            some,
            torch.zeros(len(some), dtype=torch.int64),
            name="the images",
            resize=resize,
            mode=None if channels is None else MODES[channels],
        )
        likely, labels = _probabilities(classifier, dataset).sort(dim=1, descending=True, stable=True)
        predictions += [
            Prediction(
                str(path),
                [
                    Guess(label, _name(classifier, label), probability)
                    for label, probability in zip(labels[row, :top].tolist(), likely[row, :top].tolist(), strict=True)
                ],
            )
            for row, path in enumerate(some)
        ]
    return predictions


def _chunks(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    return (paths[start : start + size] for start in range(0, len(paths), size))


def _probabilities(classifier: Classifier, dataset: FolderDataset) -> Tensor:
    """float64 [N, K] on the CPU."""
    device = next(chain(classifier.parameters(), classifier.buffers()), torch.empty(0)).device
    images = dataset.images(range(len(dataset))).to(device)
    try:
        with torch.no_grad():
            logits = classifier(images)
    except UserError:
        raise
    except Exception as error:  # a network that is given what it does not take raises any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        shape = "×".join(map(str, dataset.image_shape))
        raise UserError(
            f"{classifier.name} cannot take images of {shape} ({reason}): bring them to its size with --resize"
        ) from None
    if not bool(torch.isfinite(logits).all()):
        raise UserError(f"{classifier.name} gives values that are not finite (NaN or infinite): check --normalize")
    return logits.cpu().double().softmax(1)


def _channels(classifier: Classifier) -> int | None:
    """How many channels the classifier's images have, as far as can be told without running it."""
    if classifier.input_shape is not None:
        return classifier.input_shape[0]
    first = next((layer for layer in classifier.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is not None:
        return first.in_channels
    scaling = classifier.normalization
    # A single value scales as many channels as there are.
    return len(scaling["mean"]) if scaling and len(scaling["mean"]) > 1 else None


def _name(classifier: Classifier, label: int) -> str | None:
    names = classifier.class_names
    return names[label] if names is not None and label < len(names) else None
