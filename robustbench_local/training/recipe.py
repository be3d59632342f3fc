"""What a training run is asked to do: defaults, then a recipe file, then the command line's flags."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from robustbench_local.errors import UserError, nearest
from robustbench_local.io.safe_read import quoted
from robustbench_local.io.settings import (
    parse_settings,
    plain_reason,
    read_settings,
    unknown_setting,
    validate_settings,
)
from robustbench_local.numbers import parse_number
from robustbench_local.specs import build, parse_spec

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from robustbench_local.attacks import ThreatModel
    from robustbench_local.defenses import AddOn, Objective


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return parse_number(value) if isinstance(value, str) else value


def _whole(value: Any) -> Any:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)  # a seed may have more digits than a float holds
    number = _number(value)
    if isinstance(number, float) and not number.is_integer():
        raise ValueError("must be a whole number")
    if isinstance(number, int | float) and abs(number) >= 2**63:
        raise ValueError("must be less than 2^63")
    return number


def _text(value: Any) -> Any:
    """YAML reads 0.1 as a number, but eps keeps the way it was written."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Real = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_whole)]


class Recipe(BaseModel):
    """Everything that decides the trained weights, and the suite that judges them at the end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field("pgd-at", description="a training method with its settings, such as pgd-at:steps=7")
    model: str | None = Field(None, description="the classifier whose weights are the start")
    checkpoint: str | None = Field(None, description="a file with that classifier's weights")
    arch: str | None = Field(None, description="the architecture to start from scratch with, or that of model's file")
    normalize: str | None = Field(None, description="what the model expects its input scaled by")
    pretrained: bool = Field(False, description="start from arch's published weights, with a new last layer")
    resize: str | None = Field(None, description="SIZE or SIZE:CROP, for images from files")
    teacher: str | None = Field(None, description="the classifier that methods with a teacher learn from")
    data: str = "digits"
    eval_data: str | None = Field(None, description="another data set for the final evaluation")
    samples: Whole | None = Field(None, ge=1, description="train on a seeded subset of so many images")
    eval_samples: Whole | None = Field(None, ge=1, description="evaluate on a seeded subset at the end; null: on all")
    norm: str = "linf"
    eps: Annotated[str | None, BeforeValidator(_text)] = Field(None, description="by default the data set's own")
    epochs: Whole = Field(30, ge=1)
    freeze_epochs: Whole = Field(0, ge=0, description="first epochs that train the last layer alone")
    batch_size: Whole = Field(128, ge=2, description="images of one step, over all processes")
    accumulate: Whole = Field(1, ge=1, description="parts that a batch is taken through the network in")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Real = Field(0.1, gt=0, allow_inf_nan=False, description="the highest learning rate")
    momentum: Real = Field(0.9, ge=0, lt=1, description="Nesterov's; with adamw the first beta")
    weight_decay: Real = Field(5e-4, ge=0, allow_inf_nan=False)
    schedule: Literal["onecycle", "cosine", "piecewise", "constant"] = Field(
        "onecycle", description="piecewise divides by ten after half and after three quarters"
    )
    warmup: Real = Field(0.0, ge=0, lt=1, description="share of all steps in which lr rises; onecycle has its own")
    eps_warmup: Real = Field(0.0, ge=0, le=1, description="share of all steps in which eps rises from 0")
    clip_norm: Real = Field(0.0, ge=0, allow_inf_nan=False, description="longest gradient that is followed; 0: any")
    label_smoothing: Real = Field(0.0, ge=0, lt=1)
    average: Real = Field(0.0, ge=0, lt=1, description="decay of averaged weights (EMA), which are kept then; 0: none")
    augment: str = Field("none", description="what images go through, such as crop=4,flip,cutout=8")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on GPUs that have it, else fp32")
    holdout: Real = Field(0.1, gt=0, lt=1, description="share of the training split that chooses the epoch")
    seed: Whole = Field(0, ge=0)
    suite: str = "standard"

    def objective(self) -> Objective:
        """The training method.

        Raises UserError for an unknown method or setting, with the nearest one.
        """
        from robustbench_local.defenses import ADD_ONS, OBJECTIVES

        name, settings = _methods(self.method)[0]
        if name in ADD_ONS:
            known = ", ".join(OBJECTIVES)
            message = f"--method {name}: {name} is an add-on; write it behind a method, as in trades+{name} ({known})"
            raise UserError(message, slug="add-on-without-method")
        if name not in OBJECTIVES:
            known = f"choose one of {', '.join(OBJECTIVES)}"
            raise UserError(f"unknown method {name!r}: {known}.{nearest(name, OBJECTIVES)}", slug="unknown-method")
        return build(OBJECTIVES[name], settings, f"--method {name}")

    def add_ons(self) -> tuple[AddOn, ...]:
        """The add-ons that follow the method, each after a `+`.

        Raises UserError for an unknown add-on, one that appears twice, or an unknown setting.
        """
        from robustbench_local.defenses import ADD_ONS

        add_ons: dict[str, AddOn] = {}
        for name, settings in _methods(self.method)[1:]:
            if name not in ADD_ONS:
                known = f"choose from {', '.join(ADD_ONS)}"
                message = f"--method {self.method}: {name!r} is not an add-on: {known}.{nearest(name, ADD_ONS)}"
                raise UserError(message, slug="unknown-add-on")
            if name in add_ons:
                raise UserError(f"--method {self.method}: {name} appears twice; write it once", slug="add-on-twice")
            add_ons[name] = build(ADD_ONS[name], settings, f"--method {name}")
        return tuple(add_ons.values())

    def threat_model(self) -> ThreatModel:
        """What the model is to be hardened against, and is evaluated with.

        Raises UserError where eps is missing, 0, or not a sensible radius.
        """
        from robustbench_local.attacks import ThreatModel
        from robustbench_local.data import default_eps, require_known

        eps = self.eps if self.eps is not None else default_eps(self.data, self.norm)
        if eps is None:
            require_known(self.data)
        try:
            threat_model = ThreatModel(self.norm, eps or "1")  # type: ignore[arg-type]  # parsed from its text
        except ValueError as error:
            raise UserError(f"--norm and --eps: {error}") from None
        if eps is None:
            such = "8/255" if self.norm == "linf" else "0.5"
            raise UserError(f"there is no usual {self.norm} eps for {self.data}: give --eps, such as {such}")
        if threat_model.eps == 0:
            raise UserError("eps is 0, so there is nothing to defend against: give a radius above 0, such as 8/255")
        return threat_model


LOOP_SETTINGS = (
    "epochs",
    "freeze_epochs",
    "batch_size",
    "accumulate",
    "optimizer",
    "lr",
    "momentum",
    "weight_decay",
    "schedule",
    "warmup",
    "eps_warmup",
    "clip_norm",
    "label_smoothing",
    "average",
    "precision",
    "holdout",
)
"""What may be written among a method's own settings, as in `pgd-at:steps=7,epochs=20`."""


def _methods(text: str) -> list[tuple[str, dict[str, str]]]:
    """`trades:beta=6+awp` -> what stands between the pluses."""
    return [parse_spec(part) for part in text.split("+")]


def resolve_recipe(config: str | None, flags: Mapping[str, Any]) -> Recipe:
    """The recipe of that name or file, with the flags put over it; a flag that is None was not given.

    Raises UserError that names everything wrong at once.
    """
    for key, value in flags.items():
        if value == "":
            raise UserError(f"--{key.replace('_', '-')} is empty: give it a value, or leave it out")
    given = _lifted({key: value for key, value in flags.items() if value is not None}, "the command line")
    if config is None:
        return _checked(given, "the command line")
    where, written = read_config(config)
    written = _lifted(written, where)
    start = ("model", "checkpoint", "arch", "pretrained", "normalize", "resize")
    if any(key in given for key in start):
        # Where to start from is one choice: half of the file's would not go with half of the command line's.
        written = {key: value for key, value in written.items() if key not in start}
    return _checked({**written, **given}, where)


def read_config(config: str) -> tuple[str, dict[str, Any]]:
    """How messages name a recipe, and its settings. config: a bundled recipe's name or a YAML file.

    Raises UserError where there is none, and for what `read_settings` refuses.
    """
    bundled = dict(list_recipes())
    if config in bundled:
        where = f"recipe {config}"
        return where, parse_settings(_folder().joinpath(f"{config}.yaml").read_text(encoding="utf-8"), where)
    if not Path(config).is_file():
        raise UserError(
            f"--config {config!r} is neither a file nor a bundled recipe "
            f"(there are {', '.join(bundled)}).{nearest(config, bundled)}",
            slug="unknown-recipe",
        )
    return config, read_settings(Path(config))


def list_recipes() -> list[tuple[str, str]]:
    """Every shipped recipe with the command that runs it, which is the first line of its file."""
    texts = {file.name: file.read_text(encoding="utf-8") for file in _folder().iterdir() if file.name.endswith(".yaml")}
    return sorted((name.removesuffix(".yaml"), text.splitlines()[0].lstrip("# ")) for name, text in texts.items())


def _folder() -> Any:
    return importlib.resources.files("robustbench_local.configs")


def _lifted(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The same with the loop's settings taken out of the method's."""
    if not isinstance(values.get("method"), str):
        return values
    methods = _methods(values["method"])
    settings = methods[0][1]  # what is added to a method has settings of its own
    lifted = {key: settings.pop(key) for key in LOOP_SETTINGS if key in settings}
    for key in lifted:
        if key in values:
            raise UserError(f"{where} gives {key.replace('_', '-')} twice: once by itself and once with the method")
    return {**values, **lifted, "method": "+".join(_written(*method) for method in methods)}


def _written(name: str, settings: dict[str, str]) -> str:
    own = ",".join(f"{key.replace('_', '-')}={value}" for key, value in settings.items())
    return f"{name}:{own}" if own else name


def _checked(values: dict[str, Any], where: str) -> Recipe:
    def describe(problem: ErrorDetails) -> str:
        key = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            return unknown_setting(key.replace("_", "-"), [name.replace("_", "-") for name in Recipe.model_fields])
        return f"{key.replace('_', '-')} is {quoted(values.get(key))}: {plain_reason(problem)}"

    return validate_settings(Recipe, values, where, describe=describe)
