"""Weights of our own making, with the description beside them: the bundled classifiers, and what `defend` wrote."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import MOST_DESCRIPTION, parse_json, read_text
from robustbench_local.models.architectures.registry import build_architecture
from robustbench_local.models.loaders.loaded_model import LoadedModel
from robustbench_local.models.loaders.state_dict import MOST_CLASSES, State, load_into

Side = Annotated[int, Field(ge=1, le=2**20)]


class Scaling(BaseModel):
    mean: list[float] = Field(min_length=1, max_length=64)
    std: list[float] = Field(min_length=1, max_length=64)


class Description(BaseModel):
    """The fields that decide how a model is used; what else a description holds is not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    normalization: Scaling | None = None
    class_names: list[str] | None = Field(default=None, max_length=MOST_CLASSES)
    input_shape: tuple[Side, Side, Side] | None = None
    resize: Resize | None = None


def bundled_folder() -> Traversable:
    return importlib.resources.files("robustbench_local.models.bundled")


def bundled_names() -> list[str]:
    """The names of the bundled classifiers."""
    files = {entry.name for entry in bundled_folder().iterdir()}
    return sorted(
        name.removesuffix(".json")
        for name in files
        if name.endswith(".json") and name.replace(".json", ".safetensors") in files
    )


def read_description(name: str) -> dict[str, Any]:
    """What NAME.json says: architecture, normalization, class_names, input_shape and whatever else its maker wrote."""
    return json.loads((bundled_folder() / f"{name}.json").read_text(encoding="utf-8"))


def description_beside(path: Path) -> dict[str, Any] | None:
    """What `defend` wrote into the .json beside its .safetensors; None where there is no such description."""
    beside = path.with_suffix(".json")
    if path.suffix.lower() != ".safetensors" or not beside.is_file():
        return None
    try:
        content = parse_json(read_text(beside, MOST_DESCRIPTION))
    except UserError:
        return None
    except ValueError as error:
        raise UserError(f"{beside} cannot be read ({error}): mend it, or move it away and name --arch") from None
    ours = isinstance(content, dict) and str(content.get("schema")).startswith("robustbench-local/checkpoint/")
    return content if ours else None


def apply_metadata(loaded: LoadedModel, description: Mapping[str, Any]) -> None:
    """Normalisation, class names, input shape and resize as the description states them.

    Raises UserError where one of them is not of its kind.
    """
    try:
        stated = Description.model_validate(description)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"the description beside the weights has a {first['loc'][0]} that is none "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}): mend it, or move it away and name "
            "--arch"
        ) from None
    scaling = stated.normalization
    loaded.normalization = (tuple(scaling.mean), tuple(scaling.std)) if scaling else None
    loaded.class_names, loaded.input_shape = stated.class_names, stated.input_shape
    if "resize" in description:
        loaded.resize = stated.resize


def load_bundled(name: str) -> LoadedModel:
    """A bundled classifier with its weights. Raises UserError when the installation is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    description = read_description(name)
    try:
        state: State = load((bundled_folder() / f"{name}.safetensors").read_bytes())
    except (SafetensorError, OSError) as error:
        raise UserError(f"the bundled model {name} is damaged ({error}); install robustbench-local again") from None
    shape = description["input_shape"]
    classes = len(description["class_names"])
    module = build_architecture(description["architecture"], num_classes=classes, in_channels=shape[0])
    load_into(module, state, f"the bundled {name}")
    loaded = LoadedModel(module)
    apply_metadata(loaded, description)
    return loaded
