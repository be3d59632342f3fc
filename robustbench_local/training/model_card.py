"""What training leaves behind: `model.safetensors`, and `model.json` that says what is in it and how it came about."""

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
    """The place of the last epoch's model.json or result.json, beside the chosen one's."""
    return path.with_name("last.json" if path.name == CARD else f"last-{path.name}")


class TrainingData(StrictModel):
    """sha256 is that of every image and label, in order; null for a set that is too large to be held in memory."""

    name: str
    split: str
    training: int = Field(description="images that were trained on")
    holdout: int = Field(description="images that chose the epoch")
    sha256: str | None


class EvaluationSummary(StrictModel):
    """The final evaluation, on images that neither training nor the choice of the epoch has seen."""

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
    resize: Resize | None = Field(default=None, description="how image files are brought to the size trained on")
    trained_by: str | None = Field(description="name of the shipped recipe; null for one's own")
    recipe: Recipe
    seed: int
    data: TrainingData
    chosen: EpochReport | None = Field(default=None, description="the epoch whose weights these are")
    evaluation: EvaluationSummary | None = None
    last_evaluation: EvaluationSummary | None = Field(
        default=None, description="of the last epoch's weights, where others"
    )
    versions: dict[str, str]
    commit: str | None = Field(default=None, description="of the checkout that this project ran from, if it was one")


def versions() -> dict[str, str]:
    """What the weights were made with."""
    names = ("torch", "torchvision", "numpy", "safetensors")
    return {"robustbench_local": __version__, "python": platform.python_version(), **{n: version(n) for n in names}}


def commit() -> str | None:
    """The commit of this project's own checkout, with a + where it was changed since."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    asked = [["git", "-C", str(root), *words] for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])]
    try:
        head, changes = (subprocess.run(words, capture_output=True, text=True, check=True).stdout for words in asked)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + "+" * bool(changes.strip())


def write_weights(path: Path, module: nn.Module, normalization: dict[str, list[float]] | None) -> None:
    """The module's own state dict, and beside it `mean` and `std` where there is a normalisation: without them the
    file would load and be wrong. Raises UserError when it cannot be written.
    """
    # Cloned, because tied weights share memory and the format refuses that.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    for name, values in (normalization or {}).items():
        state.setdefault(name, torch.tensor(values))
    write_atomically(path, safetensors.torch.save(state))


def read_weights(path: Path, module: nn.Module) -> None:
    """Put what `write_weights` wrote back into the module.

    Raises UserError for a file that is none of these.
    """
    device = next(module.parameters()).device
    require_plain_file(path)
    try:
        state = safetensors.torch.load(path.read_bytes())
        module.load_state_dict({name: state[name].to(device) for name in module.state_dict()})
    except Exception as error:  # a file of another kind or another network leads anywhere
        raise UserError(
            f"{path} does not hold the weights that were written there ({reason(error)}): begin again"
        ) from None


def write_card(path: Path, card: ModelCard) -> None:
    write_atomically(path, card.model_dump_json(by_alias=True, indent=2) + "\n")


def read_card(text: str | bytes) -> ModelCard:
    """The content of a `model.json`, checked against its types.

    Raises UserError for one that departs from them.
    """
    try:
        content = parse_json(text if isinstance(text, str) else text.decode())
        return ModelCard.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        told = str(error)
    raise UserError(f"the description of the model is damaged ({printable(told)}): make it again")
