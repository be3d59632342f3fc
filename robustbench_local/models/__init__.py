"""Models: from a name or a file to a `Classifier`. The public names are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustbench_local.models.architectures.registry import build_architecture
    from robustbench_local.models.classifier import Classifier, fingerprint
    from robustbench_local.models.loaders.listing import list_models
    from robustbench_local.models.loaders.load import load_classifier
    from robustbench_local.models.normalization import parse_normalization

__all__ = ["Classifier", "build_architecture", "fingerprint", "list_models", "load_classifier", "parse_normalization"]

_PUBLIC = {
    "Classifier": "classifier",
    "build_architecture": "architectures.registry",
    "fingerprint": "classifier",
    "list_models": "loaders.listing",
    "load_classifier": "loaders.load",
    "parse_normalization": "normalization",
}


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"robustbench_local.models.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
