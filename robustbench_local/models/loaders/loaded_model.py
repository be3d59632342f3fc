"""What every loader hands over, before it becomes a `Classifier`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from robustbench_local.data.resize import Resize
from robustbench_local.models.normalization import Normalization


@dataclass
class LoadedModel:
    """A module with what its source says about it."""

    module: nn.Module
    normalization: Normalization | None = None
    class_names: list[str] | None = None
    input_shape: tuple[int, int, int] | None = None
    resize: Resize | None = None
    probabilities: bool = False
