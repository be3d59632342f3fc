"""robust: measure how robust an image classifier is to adversarial examples, and train more robust ones."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustbench_local.attacks.threat_model import ThreatModel
    from robustbench_local.data import load_dataset
    from robustbench_local.evaluation.run import evaluate
    from robustbench_local.models.classifier import Classifier
    from robustbench_local.models.loaders.load import load_classifier

__version__ = "0.2.0"

# In a checkout, `attacks/`, `defenses/` and `configs/` are beside this package; in a wheel they are inside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "attacks").is_dir() and (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

_PUBLIC = {
    "Classifier": "robustbench_local.models.classifier",
    "ThreatModel": "robustbench_local.attacks.threat_model",
    "evaluate": "robustbench_local.evaluation.run",
    "load_classifier": "robustbench_local.models.loaders.load",
    "load_dataset": "robustbench_local.data",
}
__all__ = ["Classifier", "ThreatModel", "evaluate", "load_classifier", "load_dataset"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import robustbench_local` does not load torch."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
