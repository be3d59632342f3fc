"""Weights that this project wrote, with their description beside them: bundled classifiers and those of `defend`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import MOST_DESCRIPTION, parse_json, read_text
from robustbench_local.models import catalog
from robustbench_local.models.architectures.registry import build_architecture
from robustbench_local.models.loaders.checkpoint import Checkpoint
from robustbench_local.models.loaders.loaded_model import LoadedModel
from robustbench_local.models.loaders.state_dict import load_weights
from robustbench_local.models.loaders.tensors import MOST_CLASSES

Side = Annotated[int, Field(ge=1, le=2**20)]


class StoredNormalization(BaseModel):
    """A mean and a standard deviation for each channel."""

    mean: list[float] = Field(min_length=1, max_length=64)
    std: list[float] = Field(min_length=1, max_length=64)


class Description(BaseModel):
    """The fields that decide how a model is used; others are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    normalization: StoredNormalization | None = None
    class_names: list[str] | None = Field(default=None, max_length=MOST_CLASSES)
    input_shape: tuple[Side, Side, Side] | None = None
    resize: Resize | None = None


def read_description(name: str) -> dict[str, Any]:
    """The content of a bundled NAME.json: architecture, normalization, class_names, input_shape and more."""
    content: dict[str, Any] = json.loads((catalog.bundled_directory() / f"{name}.json").read_text(encoding="utf-8"))
    return content


def description_beside(path: Path) -> dict[str, Any] | None:
    """The content of the .json that `defend` wrote beside its .safetensors; None where there is none."""
    beside = path.with_suffix(".json")
    if path.suffix.lower() != ".safetensors" or not beside.is_file():
        return None
    try:
        content = parse_json(read_text(beside, MOST_DESCRIPTION))
    except UserError:
        return None
    except ValueError as error:
        raise UserError(
            f"{beside} cannot be read ({error}): fix it, or move it away and name --arch", slug="description-unreadable"
        ) from None
    ours = isinstance(content, dict) and str(content.get("schema")).startswith("robustbench-local/checkpoint/")
    return content if ours else None


def apply_metadata(loaded: LoadedModel, description: Mapping[str, Any]) -> None:
    """Set normalization, class names, input shape and resize as the description states them.

    Raises UserError where one of them has the wrong form.
    """
    try:
        stated = Description.model_validate(description)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"the description beside the weights has an invalid {first['loc'][0]} "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}): fix it, or move it away and name --arch",
            slug="description-invalid",
        ) from None
    values = stated.normalization
    loaded.normalization = (tuple(values.mean), tuple(values.std)) if values else None
    loaded.class_names, loaded.input_shape = stated.class_names, stated.input_shape
    if "resize" in description:
        loaded.resize = stated.resize


def load_bundled(name: str) -> LoadedModel:
    """A bundled classifier with its weights. Raises UserError when the installation is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    description = read_description(name)
    try:
        state = load((catalog.bundled_directory() / f"{name}.safetensors").read_bytes())
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the bundled model {name} is damaged ({error}); install robustbench-local again",
            slug="bundled-model-damaged",
        ) from None
    shape = description["input_shape"]
    classes = len(description["class_names"])
    module = build_architecture(description["architecture"], num_classes=classes, in_channels=shape[0])
    load_weights(module, Checkpoint.from_content(state, f"the bundled {name}"))
    loaded = LoadedModel(module)
    apply_metadata(loaded, description)
    return loaded
