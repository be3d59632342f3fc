"""Options of the loaders, and what they return before it becomes a `Classifier`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from robustbench_local.data.resize import Resize
from robustbench_local.models.normalization import Normalization


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded, beside its name.

    checkpoint: file with its weights. key: where in that file they are. arch: architecture of a MODEL that is a file of
    weights. num_classes: its number of classes, where not inferred. normalization: the one that overrides what a source
    says (None in the tuple for no normalization), or None.
    """

    checkpoint: Path | None = None
    key: str | None = None
    arch: str | None = None
    num_classes: int | None = None
    normalization: tuple[Normalization | None] | None = None


@dataclass
class LoadedModel:
    """A module with what its source says about it.

    weights: the key in the checkpoint file that its weights come from; None without a checkpoint. notes: what the user
    should know of how it was loaded, one sentence each.
    """

    module: nn.Module
    normalization: Normalization | None = None
    class_names: list[str] | None = None
    input_shape: tuple[int, int, int] | None = None
    resize: Resize | None = None
    probabilities: bool = False
    weights: str | None = None
    notes: list[str] = field(default_factory=list)
