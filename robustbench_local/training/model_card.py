"""The checkpoint of a training: `model.safetensors`, and `model.json`, which describes its content and its training."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from pydantic import Field, ValidationError
from torch import nn

from robustbench_local import __version__
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.io.atomic_write import write_atomically
from robustbench_local.io.safe_read import parse_json, printable, reason, require_plain_file
from robustbench_local.results.schema import Accuracy, Protocol, StrictModel, ThreatModelInfo
from robustbench_local.training.metrics import EpochReport
from robustbench_local.training.recipe import Recipe

SCHEMA: Literal["robustbench-local/checkpoint/1"] = "robustbench-local/checkpoint/1"
WEIGHTS, CARD, METRICS, RESULT = "model.safetensors", "model.json", "metrics.jsonl", "result.json"
LAST = "last.safetensors"


def last_of(path: Path) -> Path:
    """The path of the last epoch's model.json or result.json, beside that of the chosen epoch."""
    return path.with_name("last.json" if path.name == CARD else f"last-{path.name}")


class TrainingData(StrictModel):
    """sha256: of every image and label, in order; null for a dataset that does not fit in memory."""

    name: str
    split: str
    training: int = Field(description="images that were trained on")
    holdout: int = Field(description="images that chose the epoch")
    sha256: str | None


class EvaluationSummary(StrictModel):
    """The final evaluation, on images that neither training nor the choice of the epoch has used."""

    data: str
    split: str
    threat_model: ThreatModelInfo
    protocol: Protocol
    clean_accuracy: Accuracy
    robust_accuracy: Accuracy


class ModelCard(StrictModel):
    """The content of `model.json`."""

    schema_: Literal["robustbench-local/checkpoint/1"] = Field(default=SCHEMA, alias="schema")
    architecture: str
    num_classes: int
    input_shape: tuple[int, int, int]
    class_names: list[str] | None
    normalization: dict[str, list[float]] | None
    resize: Resize | None = Field(default=None, description="how image files are resized for the network")
    trained_by: str | None = Field(description="name of the bundled recipe; null for another")
    recipe: Recipe
    seed: int
    data: TrainingData
    chosen: EpochReport | None = Field(default=None, description="the epoch whose weights these are")
    evaluation: EvaluationSummary | None = None
    last_evaluation: EvaluationSummary | None = Field(
        default=None, description="of the last epoch's weights, where another epoch was chosen"
    )
    versions: dict[str, str]
    commit: str | None = Field(default=None, description="of this project's checkout, where it ran from one")


def versions() -> dict[str, str]:
    """The versions of the packages that the weights depend on."""
    names = ("torch", "torchvision", "numpy", "safetensors")
    return {"robustbench_local": __version__, "python": platform.python_version(), **{n: version(n) for n in names}}


def commit() -> str | None:
    """The commit of this project's own checkout, with a + where files have changed since."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commands = [
        ["git", "-C", str(root), *words] for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
    ]
    try:
        head, changes = (subprocess.run(words, capture_output=True, text=True, check=True).stdout for words in commands)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + "+" * bool(changes.strip())


def write_weights(path: Path, module: nn.Module, normalization: dict[str, list[float]] | None) -> None:
    """Write the module's state dict, and `mean` and `std` where there is a normalization.

    Without them the file would load and predict wrongly. Raises UserError when it cannot be written.
    """
    # Cloned, because tied weights share memory and the format refuses that.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    for name, values in (normalization or {}).items():
        state.setdefault(name, torch.tensor(values))
    write_atomically(path, safetensors.torch.save(state))


def read_weights(path: Path, module: nn.Module) -> None:
    """Load what `write_weights` wrote into the module. Raises UserError for another file."""
    device = next(module.parameters()).device
    require_plain_file(path)
    try:
        state = safetensors.torch.load(path.read_bytes())
        module.load_state_dict({name: state[name].to(device) for name in module.state_dict()})
    except Exception as error:  # a file of another kind or another network leads anywhere
        raise UserError(
            f"{path} does not hold the weights that were written there ({reason(error)}): start the training again",
            slug="bad-weights-file",
        ) from None


def write_card(path: Path, card: ModelCard) -> None:
    """Write a `model.json`. Raises UserError when it cannot be written."""
    write_atomically(path, card.model_dump_json(by_alias=True, indent=2) + "\n")


def read_card(text: str | bytes) -> ModelCard:
    """The validated content of a `model.json`. Raises UserError for invalid content."""
    try:
        content = parse_json(text if isinstance(text, str) else text.decode())
        return ModelCard.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        problem = str(error)
    raise UserError(
        f"the model's description is damaged ({printable(problem)}): train the model again", slug="bad-model-card"
    )
