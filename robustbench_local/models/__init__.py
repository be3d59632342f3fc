"""Models: from a name or a file to a `Classifier`."""

from __future__ import annotations

from robustbench_local.models.architectures import build_architecture
from robustbench_local.models.classifier import Classifier, fingerprint
from robustbench_local.models.loaders.listing import list_models
from robustbench_local.models.loaders.load import load_classifier
from robustbench_local.models.normalization import parse_normalization

__all__ = ["Classifier", "build_architecture", "fingerprint", "list_models", "load_classifier", "parse_normalization"]
