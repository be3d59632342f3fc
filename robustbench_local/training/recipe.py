"""The recipe of a training: defaults, then a recipe file, then the command line's options."""

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
    from importlib.resources.abc import Traversable

    from pydantic_core import ErrorDetails

    from robustbench_local.attacks import ThreatModel
    from robustbench_local.defenses import AddOn, Objective


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return parse_number(value) if isinstance(value, str) else value


def _whole(value: Any) -> Any:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)  # a seed may have more digits than a float
    number = _number(value)
    if isinstance(number, float) and not number.is_integer():
        raise ValueError("must be a whole number")
    if isinstance(number, int | float) and abs(number) >= 2**63:
        raise ValueError("must be less than 2^63")
    return number


def _text(value: Any) -> Any:
    """YAML reads 0.1 as a number, but eps keeps its spelling."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Real = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_whole)]


def setting(
    default: Any, help_text: str, *, metavar: str | None = None, shown: str | None = None, **limits: Any
) -> Any:
    """A field of a recipe, from which the command line generates its option.

    metavar: of the option's value. shown: the default as help shows it, where the value itself does not say it.
    limits: pydantic's, such as ge=0.
    """
    extra: dict[str, Any] = {key: text for key, text in (("metavar", metavar), ("shown", shown)) if text is not None}
    return Field(default, description=help_text, json_schema_extra=extra, **limits)


class Recipe(BaseModel):
    """Everything that decides the trained weights, and the protocol that evaluates them at the end.

    A description is the help of the option that the command line generates from the field.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = setting(
        "pgd-at",
        "Training method; 'robust list defenses' lists them. +awp adds adversarial weight perturbation.",
        metavar="NAME[:KEY=VALUE,…]",
    )
    model: str | None = setting(None, "Classifier to fine-tune.")
    checkpoint: str | None = setting(None, "File with MODEL's weights, or with --pretrained those of --arch.")
    checkpoint_key: str | None = setting(None, "Where in that file the weights are.", metavar="KEY")
    arch: str | None = setting(None, "Architecture to train from scratch, or that of MODEL's file.")
    normalize: str | None = setting(None, "Normalization that the model expects.", metavar="NAME|MEAN:STD")
    pretrained: bool = setting(False, "Start from --arch's published weights, with a new last layer.")
    resize: str | None = setting(None, "Resize and center-crop images from files.", metavar="SIZE[:CROP]")
    teacher: str | None = setting(None, "Classifier to learn from, for methods with a teacher.", metavar="MODEL")
    data: str = setting("digits", "Dataset; its train split is used.", metavar="SPEC")
    eval_data: str | None = setting(None, "Another dataset for the final evaluation.", metavar="SPEC")
    samples: Whole | None = setting(None, "Train on a seeded, stratified subset.", metavar="N", shown="all", ge=1)
    eval_samples: Whole | None = setting(
        None, "Evaluate on a seeded, stratified subset.", metavar="N", shown="all", ge=1
    )
    norm: Annotated[Literal["linf", "l2", "l1"], BeforeValidator(_lower)] = setting("linf", "Norm of the perturbation.")
    eps: Annotated[str | None, BeforeValidator(_text)] = setting(
        None, "Largest perturbation, for pixels in [0, 1], such as 8/255.", metavar="RADIUS", shown="by dataset"
    )
    epochs: Whole = setting(30, "Passes over the training images.", metavar="N", ge=1)
    freeze_epochs: Whole = setting(0, "First epochs, in which only the last layer is trained.", metavar="N", ge=0)
    batch_size: Whole = setting(128, "Images per optimizer step, over all processes.", metavar="N", ge=2)
    accumulate: Whole = setting(
        1, "Split every batch into N parts and accumulate their gradients, to save memory.", metavar="N", ge=1
    )
    optimizer: Literal["sgd", "adamw"] = setting("sgd", "Optimizer.")
    lr: Real = setting(
        0.1,
        "Highest learning rate.",
        metavar="RATE",
        shown="0.1, or 0.01 for trained weights",
        gt=0,
        allow_inf_nan=False,
    )
    momentum: Real = setting(0.9, "Nesterov momentum of sgd, first beta of adamw.", metavar="SHARE", ge=0, lt=1)
    weight_decay: Real = setting(5e-4, "Weight decay.", metavar="RATE", ge=0, allow_inf_nan=False)
    schedule: Literal["onecycle", "cosine", "piecewise", "constant"] = setting(
        "onecycle",
        "Learning-rate schedule; piecewise divides the rate by ten after 1/2 and 3/4 of training.",
        shown="onecycle, or cosine for trained weights",
    )
    warmup: Real = setting(
        0.0, "Share of training with a rising learning rate; onecycle has its own warmup.", metavar="SHARE", ge=0, lt=1
    )
    eps_warmup: Real = setting(0.0, "Share of training in which eps rises from 0.", metavar="SHARE", ge=0, le=1)
    clip_norm: Real = setting(
        0.0,
        "Clip the gradient to this norm; 0: no clipping.",
        shown="0, or 1 for trained weights and some methods",
        metavar="NORM",
        ge=0,
        allow_inf_nan=False,
    )
    label_smoothing: Real = setting(0.0, "Label smoothing.", metavar="SHARE", ge=0, lt=1)
    average: Real = setting(
        0.0,
        "Decay of the weight average (EMA), such as 0.999; the averaged weights are the result. 0: no averaging.",
        metavar="DECAY",
        ge=0,
        lt=1,
    )
    augment: str = setting("none", "Data augmentation, such as crop=4,flip,cutout=8.", metavar="LIST")
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "Precision of training.", shown="bf16 on GPUs that support it, else fp32"
    )
    holdout: Real = setting(
        0.1, "Share of the training images held out to choose the epoch.", metavar="SHARE", gt=0, lt=1
    )
    seed: Whole = setting(0, "Random seed.", metavar="N", ge=0)
    suite: str = setting("standard", "Protocol of the final evaluation.", metavar="NAME[/VERSION]")

    def objective(self) -> Objective:
        """The training method.

        Raises UserError for an unknown method or setting, with the nearest one.
        """
        from robustbench_local.defenses import ADD_ONS, OBJECTIVES

        name, settings = _methods(self.method)[0]
        if name in ADD_ONS:
            choices = ", ".join(OBJECTIVES)
            message = f"--method {name}: {name} is an add-on; write it behind a method, as in trades+{name} ({choices})"
            raise UserError(message, slug="add-on-without-method")
        if name not in OBJECTIVES:
            choices = f"choose one of {', '.join(OBJECTIVES)}"
            raise UserError(f"unknown method {name!r}: {choices}.{nearest(name, OBJECTIVES)}", slug="unknown-method")
        return build(OBJECTIVES[name], settings, f"--method {name}")

    def add_ons(self) -> tuple[AddOn, ...]:
        """The add-ons that follow the method, each after a `+`.

        Raises UserError for an unknown add-on, one that appears twice, or an unknown setting.
        """
        from robustbench_local.defenses import ADD_ONS

        add_ons: dict[str, AddOn] = {}
        for name, settings in _methods(self.method)[1:]:
            if name not in ADD_ONS:
                choices = f"choose from {', '.join(ADD_ONS)}"
                message = f"--method {self.method}: {name!r} is not an add-on: {choices}.{nearest(name, ADD_ONS)}"
                raise UserError(message, slug="unknown-add-on")
            if name in add_ons:
                raise UserError(f"--method {self.method}: {name} appears twice; write it once", slug="add-on-twice")
            add_ons[name] = build(ADD_ONS[name], settings, f"--method {name}")
        return tuple(add_ons.values())

    def threat_model(self) -> ThreatModel:
        """The threat model of training and of the final evaluation.

        Raises UserError where eps is missing, 0, or not a sensible radius.
        """
        from robustbench_local.attacks import ThreatModel
        from robustbench_local.data import default_eps, require_known

        eps = self.eps if self.eps is not None else default_eps(self.data, self.norm)
        if eps is None:
            require_known(self.data)
            example = "8/255" if self.norm == "linf" else "0.5"
            raise UserError(
                f"there is no usual {self.norm} eps for {self.data}: give --eps, such as {example}", slug="eps-missing"
            )
        try:
            threat_model = ThreatModel(self.norm, eps)  # type: ignore[arg-type]  # parsed from its text
        except ValueError as error:
            raise UserError(f"--norm and --eps: {error}", slug="bad-threat-model") from None
        if threat_model.eps == 0:
            raise UserError(
                "eps is 0, so there is nothing to defend against: give a radius above 0, such as 8/255",
                slug="eps-is-zero",
            )
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
"""Settings of the recipe that may be written with the method, as in `pgd-at:steps=7,epochs=20`."""


def _methods(text: str) -> list[tuple[str, dict[str, str]]]:
    """`trades:beta=6+awp` -> name and settings of each part between the pluses."""
    return [parse_spec(part) for part in text.split("+")]


def resolve_recipe(config: str | None, options: Mapping[str, Any]) -> Recipe:
    """The recipe of that name or file, with the options over it; an option that is None is not set.

    Raises UserError that names every problem at once.
    """
    for key, value in options.items():
        if value == "":
            raise UserError(f"--{_dashed(key)} is empty: give it a value, or leave it out", slug="empty-option")
    here = "the command line"
    settings = _lift({key: value for key, value in options.items() if value is not None}, here)
    if config is None:
        return _validated(settings, here)
    where, base = read_config(config)
    base = _lift(base, where)
    start = ("model", "checkpoint", "checkpoint_key", "arch", "pretrained", "normalize", "resize")
    if any(key in settings for key in start):
        # The initial model is one choice: half of the file's would not fit half of the command line's.
        base = {key: value for key, value in base.items() if key not in start}
    return _validated({**base, **settings}, where)


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with other settings, as texts. Raises UserError as `resolve_recipe` does."""
    where = "the command line"
    return _validated({**recipe.model_dump(exclude_unset=True), **_lift(dict(settings), where)}, where)


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
    """Every bundled recipe with the command that runs it, which is the first line of its file."""
    texts = {file.name: file.read_text(encoding="utf-8") for file in _folder().iterdir() if file.name.endswith(".yaml")}
    return sorted((name.removesuffix(".yaml"), text.splitlines()[0].lstrip("# ")) for name, text in texts.items())


def _folder() -> Traversable:
    return importlib.resources.files("robustbench_local.configs")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _lift(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The same settings, with those of the loop taken out of the method's."""
    if not isinstance(values.get("method"), str):
        return values
    methods = _methods(values["method"])
    settings = methods[0][1]  # what is added to a method has settings of its own
    lifted = {key: settings.pop(key) for key in LOOP_SETTINGS if key in settings}
    for key in lifted:
        if key in values:
            raise UserError(
                f"{where} gives {_dashed(key)} twice: as a setting and with the method", slug="duplicate-setting"
            )
    return {**values, **lifted, "method": "+".join(_method_text(*method) for method in methods)}


def _method_text(name: str, settings: dict[str, str]) -> str:
    own = ",".join(f"{_dashed(key)}={value}" for key, value in settings.items())
    return f"{name}:{own}" if own else name


def _validated(values: dict[str, Any], where: str) -> Recipe:
    def describe(problem: ErrorDetails) -> str:
        key = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            return unknown_setting(_dashed(key), [_dashed(name) for name in Recipe.model_fields])
        return f"{_dashed(key)} is {quoted(values.get(key))}: {plain_reason(problem)}"

    return validate_settings(Recipe, values, where, describe=describe)
