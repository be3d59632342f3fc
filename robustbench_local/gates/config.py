"""Gate files: the limits of each threat model, in YAML.

    require: standard/1            # the weakest accepted protocol
    alpha: 0.05
    baseline: baselines/linf.json  # relative to this file; a list of several, one for each threat model
    require-baseline: true         # a missing baseline is an error; by default it is a warning
    min_clean: 0.80                # limits here apply to every threat model that does not set its own
    threat_models:
      - norm: linf
        eps: 8/255
        min_robust: 0.40
        min_class_robust: {default: 0.20, stop: 0.60, 14: 0.60}    # a class by its name or by its label
        max_drop: 2/100

Without `threat_models` the limits apply to results of any threat model.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Collection, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from robustbench_local.errors import UserError, nearest
from robustbench_local.gates.gate import ClassFloors, Gate, Limits, ThreatSelector
from robustbench_local.io.settings import (
    parse_settings,
    plain_reason,
    read_settings,
    unknown_setting,
    validate_settings,
    with_underscores,
)
from robustbench_local.numbers import parse_number
from robustbench_local.results.protocol_order import require_known
from robustbench_local.results.schema import SCHEMA

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


OPTIONS = frozenset(
    [
        "arch",
        "attack",
        "attacks",
        "augment",
        "average",
        "batch_size",
        "checkpoint",
        "data",
        "device",
        "diagnostics",
        "download",
        "epochs",
        "eps",
        "holdout",
        "lr",
        "method",
        "model",
        "momentum",
        "norm",
        "normalize",
        "optimizer",
        "output",
        "precision",
        "samples",
        "seed",
        "split",
        "suite",
        "teacher",
    ]
)
"""Settings of attack configs and training recipes, by which a file that is no gate file is recognized."""


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return parse_number(value) if isinstance(value, str) else value


def _fraction(value: object) -> object:
    if isinstance(value, str) and value.strip().endswith("%"):
        raise ValueError("must be a fraction from 0 to 1: 0.40 for 40 %")
    number = _number(value)
    if isinstance(number, int | float) and not 0 <= number <= 1:
        raise ValueError("must be a fraction from 0 to 1: 0.40 for 40 %")
    return number


def _suite(value: str) -> str:
    try:
        require_known(value)
    except UserError as error:
        raise ValueError(str(error)) from None
    return value


def _text(value: object) -> object:
    """Eps as text, because YAML reads 0.1 as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _class_floors(value: object) -> object:
    """A single fraction is the default of every class."""
    return value if isinstance(value, dict) else {"default": value}


Fraction = Annotated[float, BeforeValidator(_fraction)]
Suite = Annotated[str, AfterValidator(_suite)]
Files = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Label = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Classes = Annotated[dict[Label | str, Fraction], BeforeValidator(_class_floors)]


class LimitsPart(BaseModel):
    """The limits as a gate file spells them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_robust: Fraction | None = None
    min_clean: Fraction | None = None
    min_class_robust: Classes | None = None
    min_class_clean: Classes | None = None
    max_drop: Fraction | None = None
    max_clean_drop: Fraction | None = None
    require: Suite | None = None
    baseline: Files | None = None
    require_baseline: Annotated[bool, Field(strict=True)] | None = None


class ThreatPart(LimitsPart):
    """The limits of one threat model."""

    norm: Literal["linf", "l2", "l1"]
    eps: Annotated[str, BeforeValidator(_text)]
    target: Label | None = None
    source: Label | None = None
    reject: Label | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> ThreatPart:
        if not 0 <= parse_number(self.eps) < float("inf"):
            raise ValueError("eps must be a number of at least 0, such as 8/255")
        if self.source is not None and self.target is None:
            raise ValueError("a source needs a target: the class that the attack aims at")
        return self

    @property
    def threat(self) -> ThreatSelector:
        """The threat model."""
        return ThreatSelector(self.norm, parse_number(self.eps), self.eps, self.target, self.source, self.reject)


class GateFile(LimitsPart):
    """A gate file."""

    alpha: Annotated[float, BeforeValidator(_number), Field(ge=1e-6, lt=0.5)] = 0.05
    threat_models: list[ThreatPart] = []


def read_gate(name: str | None, options: Mapping[str, Any] | None = None, *, option: str = "--gate") -> Gate:
    """Read a gate file or a bundled gate; options of the command line override its settings.

    name: a path, the name of a file in configs/gate/, or None for the options alone. options: alpha and fields of
    `Limits`; those that are None or empty are ignored. option: what messages call the option that names the gate.
    Raises UserError that names every problem at once.
    """
    overrides = {key: value for key, value in (options or {}).items() if value is not None and value != ()}
    if name is None:
        where, directory, source, content = "the command line", Path(), None, GateFile()
    else:
        where, directory, source, settings = _find(name, option)
        content = _validated(settings, where)
    shared = _limits(content, directory)
    parts = [
        dataclasses.replace(_merged(shared, _limits(part, directory)), threat=part.threat)
        for part in content.threat_models
    ]
    alpha = overrides.pop("alpha", content.alpha)
    limits = tuple(dataclasses.replace(each, **overrides) for each in parts or [shared])
    _check_limits(limits, where)
    return Gate(limits, alpha, source)


def is_gate_file(settings: Collection[str]) -> bool:
    """Whether names of settings are those of a gate file; `min-robust` and `min_robust` are the same name."""
    return bool({name.replace("-", "_") for name in settings} & set(LimitsPart.model_fields | {"threat_models": None}))


def list_gates() -> list[tuple[str, str]]:
    """Every bundled gate with the command that runs it: the first line of its file."""
    files = [file for file in _shipped().iterdir() if file.name.endswith(".yaml")]
    texts = {file.name: file.read_text(encoding="utf-8") for file in files}
    return sorted((name.removesuffix(".yaml"), text.splitlines()[0].lstrip("# ")) for name, text in texts.items())


def _shipped() -> Traversable:
    return importlib.resources.files("robustbench_local.configs").joinpath("gate")


def _find(name: str, option: str) -> tuple[str, Path, Path | None, dict[str, object]]:
    """How messages name a gate, the directory its paths are relative to, its file, and its settings."""
    shipped = dict(list_gates())
    if name in shipped:
        where = f"gate {name}"
        text = _shipped().joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        return where, Path(), None, parse_settings(text, where)
    path = Path(name)
    try:
        exists = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        exists = False
    if not exists:
        raise UserError(
            f"{option} {name!r} is neither a file nor a bundled gate (there are {', '.join(shipped)})."
            f"{nearest(name, shipped)}",
            slug="unknown-gate",
        )
    return name, path.parent, path, read_settings(path, name)


def _validated(content: dict[str, object], where: str) -> GateFile:
    if content.get("schema") == SCHEMA:
        raise UserError(
            f"{where} is a result file, not a gate file: give it as RESULT, and the limits as --gate",
            slug="result-file-as-gate",
        )
    if not is_gate_file(content) and OPTIONS.intersection(content):
        raise UserError(
            f"{where} is a config of robust attack or robust defend, not a gate file: give it to them as --config, and "
            "give --gate a file of limits such as 'min_robust: 0.40'",
            slug="config-as-gate",
        )
    threats = content.get("threat_models")
    if isinstance(threats, list):
        parts = [with_underscores(each, where) if isinstance(each, dict) else each for each in threats]
        content = {**content, "threat_models": parts}
    return validate_settings(GateFile, content, where, describe=_sentence)


def _sentence(problem: ErrorDetails) -> str:
    """A validation problem in the words of the file."""
    place = list(problem["loc"]) or ["it"]
    if place[0] == "threat_models" and len(place) > 1:
        place[:2] = [f"threat model {int(place[1]) + 1}"]
    # The other parts of pydantic's place name the type that a key was tried as.
    *parents, key = [place[0], *(part for part in place[1:] if part not in ("[key]", "int", "str"))]
    where = "".join(f"{part}, " for part in parents)
    if problem["type"] == "extra_forbidden":
        return f"{where}{unknown_setting(str(key), ThreatPart.model_fields)}"
    if problem["type"] == "missing":
        return f"{where}{key} is missing"
    return f"{where}{key}{_shown(problem['input'])}: {plain_reason(problem)}"


def _shown(value: object) -> str:
    """` is 'x'` for a short text or number. Other values may be huge when YAML references are expanded."""
    short = len(value) < 100 if isinstance(value, str) else isinstance(value, int | float) and abs(value) < 1e15
    return f" is {value!r}" if short else ""


def _limits(part: LimitsPart, directory: Path) -> Limits:
    return Limits(
        min_robust=part.min_robust,
        min_clean=part.min_clean,
        max_drop=part.max_drop,
        max_clean_drop=part.max_clean_drop,
        require=part.require,
        min_class_robust=_floors(part.min_class_robust),
        min_class_clean=_floors(part.min_class_clean),
        baselines=tuple(directory / each for each in part.baseline or []),
        require_baseline=part.require_baseline,
    )


def _floors(classes: Mapping[str | int, float] | None) -> ClassFloors:
    if classes is None:
        return ClassFloors()
    return ClassFloors(classes.get("default"), {key: limit for key, limit in classes.items() if key != "default"})


def _merged(shared: Limits, own: Limits) -> Limits:
    """The shared limits, overridden by those that a threat model sets itself."""
    unset = Limits()
    values = {field.name: getattr(own, field.name) for field in dataclasses.fields(Limits)}
    return dataclasses.replace(shared, **{key: value for key, value in values.items() if value != getattr(unset, key)})


def _check_limits(limits: tuple[Limits, ...], where: str) -> None:
    """Raise UserError where a gate limits nothing, lacks a baseline, or has two sets of limits for a threat model."""
    for position, each in enumerate(limits):
        of = f" for {each.threat.name}" if each.threat is not None else ""
        if each.empty and not each.baselines:
            raise UserError(
                f"{where} gives no limit{of}: a gate needs one, such as --min-robust, --min-clean, or --max-drop with "
                "--baseline",
                slug="no-limit",
            )
        if (each.has_drops or each.require_baseline) and not each.baselines:
            setting = "limits a drop" if each.has_drops else "sets require_baseline"
            raise UserError(
                f"{where} {setting}{of} but names no baseline: name the result to compare with as --baseline",
                slug="baseline-not-named",
            )
        if any(each.threat == other.threat for other in limits[:position]):
            raise UserError(
                f"{where} has limits{of} twice: give one set for each threat model", slug="duplicate-threat-model"
            )
