"""Weights of our own making, with the description beside them: the bundled classifiers, and what `defend` wrote."""
from __future__ import annotations

import importlib.resources
import json
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from robustbench_local.data.folder import Resize
from robustbench_local.errors import UserError
from robustbench_local.models.architectures import build_architecture
from robustbench_local.models.loaded import Loaded
from robustbench_local.models.state_dict import State, load_into

_RESIZE: TypeAdapter[Resize | None] = TypeAdapter(Resize | None)


def bundled_folder() -> Traversable:
    return importlib.resources.files("robustbench_local.models.bundled")


def bundled_names() -> list[str]:
    """The names of the bundled classifiers."""
    files = {entry.name for entry in bundled_folder().iterdir()}
    return sorted(name.removesuffix(".json") for name in files
                  if name.endswith(".json") and name.replace(".json", ".safetensors") in files)


def read_description(name: str) -> dict[str, Any]:
    """What NAME.json says: architecture, normalization, class_names, input_shape and whatever else its maker wrote."""
    return json.loads((bundled_folder() / f"{name}.json").read_text(encoding="utf-8"))


def description_beside(path: Path) -> dict[str, Any] | None:
    """What `defend` wrote into the .json beside its .safetensors; None where there is no such description."""
    beside = path.with_suffix(".json")
    if path.suffix.lower() != ".safetensors" or not beside.is_file():
        return None
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    ours = isinstance(content, dict) and str(content.get("schema")).startswith("robustbench-local/checkpoint/")
    return content if ours else None


def describe(loaded: Loaded, description: dict[str, Any]) -> None:
    """Normalisation, class names, input shape and resize as the description states them."""
    scaling, shape = description.get("normalization"), description.get("input_shape")
    loaded.normalization = (tuple(scaling["mean"]), tuple(scaling["std"])) if scaling else None
    loaded.class_names = description.get("class_names")
    loaded.input_shape = (shape[0], shape[1], shape[2]) if shape else None
    if "resize" in description:
        try:
            loaded.resize = _RESIZE.validate_python(description["resize"])
        except ValidationError:
            raise UserError(f"the description beside the weights has resize {description['resize']!r}, which is no "
                            "object of resize, crop and interpolation: mend it, or make it null") from None


def load_bundled(name: str) -> Loaded:
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
    loaded = Loaded(module)
    describe(loaded, description)
    return loaded
