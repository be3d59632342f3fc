"""Weights files that torchvision published: recognized by the hash in their name, whatever directory they are in."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torchvision
from torch import nn
from torchvision.models import WeightsEnum

from robustbench_local.io.safe_read import quoted
from robustbench_local.models.loaders.loaded_model import LoadedModel


def published_weights(name: str, path: Path) -> WeightsEnum | None:
    """The torchvision weights of architecture `name` that the file holds, or None where it is not torchvision's own.

    torchvision writes the start of a file's SHA-256 into its name, as in `resnet50-0676ba61.pth`; both must agree.
    """
    for weights in torchvision.models.get_model_weights(name):
        published = re.search(r"-([0-9a-f]{8,})\.\w+$", weights.url)
        if published and published.group(1) in path.name:
            with path.expanduser().open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest.startswith(published.group(1)):
                return weights
    return None


def set_input_transform(
    loaded: LoadedModel, name: str, path: Path, *, weights: WeightsEnum | None, named: bool
) -> None:
    """Switch on torchvision's own input transform where the weights were trained with it, and note the decision.

    GoogLeNet and Inception v3 rescale their input inside (`transform_input`) with published weights. weights: the
    published weights that the file holds or that the user named. named: the user named them or `none`.
    """
    if weights is not None and not named:
        loaded.notes.append(
            f"{path} is torchvision's {weights.name} of {name}: its normalization, sizes and class names are applied"
        )
    if not has_input_transform(loaded.module):
        return
    loaded.module.transform_input = weights is not None  # type: ignore[assignment]
    if weights is not None and not named:
        loaded.notes.append(f"torchvision/{name}: transform_input is on, as these weights need it")
    elif weights is None and not named:
        first = next(iter(torchvision.models.get_model_weights(name))).name
        loaded.notes.append(
            f"torchvision/{name}: transform_input is off; if {quoted(path.name)} was trained from torchvision's "
            f"weights, name them: torchvision/{name}:weights={first}"
        )


def has_input_transform(module: nn.Module) -> bool:
    """Whether the network has torchvision's `transform_input` option."""
    return isinstance(getattr(module, "transform_input", None), bool)
