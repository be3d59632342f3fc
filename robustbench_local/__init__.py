"""robust: how well an image classifier stands up to an adversary, and how to make it stand better."""

from __future__ import annotations

import importlib
from pathlib import Path

__version__ = "0.2.0"

# `attacks/`, `defenses/` and `configs/` stand beside this package in a checkout and inside it in a wheel.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "attacks").is_dir() and (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

_PUBLIC = {
    "Classifier": "robustbench_local.models.classifier",
    "ThreatModel": "robustbench_local.attacks.threat_model",
    "evaluate": "robustbench_local.evaluation.run",
    "load_classifier": "robustbench_local.models",
    "load_dataset": "robustbench_local.data",
}
__all__ = ["Classifier", "ThreatModel", "evaluate", "load_classifier", "load_dataset"]


def __getattr__(name: str):
    """Import the public names when they are first asked for: `robust --help` must not wait for torch."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'robustbench_local' has no attribute {name!r}")
