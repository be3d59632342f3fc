"""A classifier's predictions for image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS

from robustbench_local.data.imagefolder import Decoding, FolderDataset
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.models.classifier import Classifier

BATCH = 32
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Guess:
    """A class and its probability; `name` is None where the model has no class names."""

    label: int
    name: str | None
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one file, the most probable first."""

    path: str
    guesses: list[Guess]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files themselves; for a directory all images below it, sorted by name.

    Raises UserError for a path that does not exist and a directory without images.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
            if not inside:
                raise UserError(f"the directory {path} has no images ({', '.join(IMG_EXTENSIONS)})", slug="no-images")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"there is no image {path}: check the path", slug="image-missing")
    return files


def predict(
    classifier: Classifier, paths: Sequence[Path], *, top: int = 1, resize: Resize | None = None
) -> list[Prediction]:
    """The `top` most probable classes of every file, in the files' order.

    Files are resized as `resize` says, else as the classifier says, else to the one size it takes (without regard to
    the aspect ratio), else not at all. They become grayscale or color as its input has 1 or 3 channels. Raises
    UserError for a file that cannot be read or that the classifier does not take.
    """
    channels = _channels(classifier)
    if channels not in (None, *MODES):
        raise UserError(
            f"{classifier.name} takes images of {channels} channels, but files have 1 or 3", slug="image-channels"
        )
    if resize is None:
        resize = classifier.resize
    if resize is None and classifier.input_shape is not None:
        resize = Resize(classifier.input_shape[1:])
    predictions: list[Prediction] = []
    # Files that are not resized differ in size, so each is a batch of its own.
    for batch in _chunks(paths, BATCH if resize else 1):
        dataset = FolderDataset(
            batch,
            torch.zeros(len(batch), dtype=torch.int64),
            name="the images",
            decoding=Decoding(resize, None if channels is None else MODES[channels]),
        )
        probabilities, labels = _probabilities(classifier, dataset).sort(dim=1, descending=True, stable=True)
        predictions += [
            Prediction(
                str(path),
                [
                    Guess(label, _name(classifier, label), probability)
                    for label, probability in zip(
                        labels[row, :top].tolist(), probabilities[row, :top].tolist(), strict=True
                    )
                ],
            )
            for row, path in enumerate(batch)
        ]
    return predictions


def _chunks(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    return (paths[start : start + size] for start in range(0, len(paths), size))


def _probabilities(classifier: Classifier, dataset: FolderDataset) -> Tensor:
    """Probabilities, float64 [N, K] on the CPU."""
    device = next(chain(classifier.parameters(), classifier.buffers()), torch.empty(0)).device
    images = dataset.images(range(len(dataset))).to(device)
    try:
        with torch.no_grad():
            logits = classifier(images)
    except UserError:
        raise
    except Exception as error:  # a network raises any type for images that it does not take
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        shape = "×".join(map(str, dataset.image_shape))
        raise UserError(
            f"{classifier.name} cannot take images of {shape} ({reason}): resize them to its size with --resize",
            slug="image-shape",
        ) from None
    if not bool(torch.isfinite(logits).all()):
        raise UserError(
            f"{classifier.name} gives values that are not finite (NaN or infinite): check --normalize",
            slug="logits-not-finite",
        )
    probabilities: Tensor = logits.cpu().double().softmax(1)
    return probabilities


def _channels(classifier: Classifier) -> int | None:
    """The number of channels of the classifier's images, or None where it is unknown without running it."""
    if classifier.input_shape is not None:
        return classifier.input_shape[0]
    first = next((layer for layer in classifier.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is not None:
        return first.in_channels
    normalization = classifier.normalization
    # A single value normalizes any number of channels.
    return len(normalization["mean"]) if normalization and len(normalization["mean"]) > 1 else None


def _name(classifier: Classifier, label: int) -> str | None:
    names = classifier.class_names
    return names[label] if names is not None and label < len(names) else None
