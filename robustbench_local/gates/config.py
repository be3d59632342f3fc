"""Gate files: the limits of each threat model, in YAML, beside the code that they are to guard.

    require: standard/1            # the weakest protocol that will do
    alpha: 0.05
    baseline: baselines/linf.json  # relative to this file; several as a list, one for each threat model
    min_clean: 0.80                # what stands here holds for every threat model that does not say otherwise
    threat_models:
      - norm: linf
        eps: 8/255
        min_robust: 0.40
        min_class_robust: {default: 0.20, stop: 0.60, 14: 0.60}    # a text is a class's name, a number its label
        max_drop: 2/100

Without `threat_models` the limits hold for whatever results are given.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Mapping
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


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return parse_number(value) if isinstance(value, str) else value


def _fraction(value: Any) -> Any:
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


def _text(value: Any) -> Any:
    """YAML reads 0.1 as a number, but eps keeps the way it was written."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _class_floors(value: Any) -> Any:
    """One fraction for every class is the same as a default."""
    return value if isinstance(value, dict) else {"default": value}


Fraction = Annotated[float, BeforeValidator(_fraction)]
Suite = Annotated[str, AfterValidator(_suite)]
Files = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Label = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Classes = Annotated[dict[Label | str, Fraction], BeforeValidator(_class_floors)]


class LimitsPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    min_robust: Fraction | None = None
    min_clean: Fraction | None = None
    min_class_robust: Classes | None = None
    min_class_clean: Classes | None = None
    max_drop: Fraction | None = None
    max_clean_drop: Fraction | None = None
    require: Suite | None = None
    baseline: Files | None = None


class ThreatPart(LimitsPart):
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
            raise ValueError("a source needs a target: the class that its images must be taken for")
        return self

    @property
    def threat(self) -> ThreatSelector:
        return ThreatSelector(self.norm, parse_number(self.eps), self.eps, self.target, self.source, self.reject)


class GateFile(LimitsPart):
    alpha: Annotated[float, BeforeValidator(_number), Field(ge=1e-6, lt=0.5)] = 0.05
    threat_models: list[ThreatPart] = []


def read_gate(name: str | None, flags: Mapping[str, Any] | None = None) -> Gate:
    """The gate of a file or of a shipped example, with the flags put over every part of it.

    name: a path, the name of a file in configs/gate/, or None for the flags alone. flags: alpha, require, baselines
    (paths) and limits; one that is None, or no baseline, was not given. Raises UserError that names everything wrong at
    once.
    """
    given = {key: value for key, value in (flags or {}).items() if value is not None and value != ()}
    if name is None:
        where, folder, source, content = "the command line", Path(), None, GateFile()
    else:
        where, folder, source, settings = _find(name)
        content = _checked(settings, where)
    shared = _limits(content, folder)
    parts = [
        dataclasses.replace(_over(shared, _limits(part, folder)), threat=part.threat) for part in content.threat_models
    ]
    alpha = given.pop("alpha", content.alpha)
    limits = tuple(dataclasses.replace(each, **given) for each in parts or [shared])
    _require_sense(limits, where)
    return Gate(limits, alpha, source)


def list_gates() -> list[tuple[str, str]]:
    """Every shipped gate with the command that runs it, which is the first line of its file."""
    files = [file for file in _shipped().iterdir() if file.name.endswith(".yaml")]
    texts = {file.name: file.read_text(encoding="utf-8") for file in files}
    return sorted((name.removesuffix(".yaml"), text.splitlines()[0].lstrip("# ")) for name, text in texts.items())


def _shipped() -> Any:
    return importlib.resources.files("robustbench_local.configs").joinpath("gate")


def _find(name: str) -> tuple[str, Path, Path | None, dict[str, Any]]:
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
            f"--gate {name!r} is neither a file nor a shipped gate (there are {', '.join(shipped)})."
            f"{nearest(name, shipped)}",
            slug="unknown-gate",
        )
    return name, path.parent, path, read_settings(path, name)


def _checked(content: dict[str, Any], where: str) -> GateFile:
    if content.get("schema") == SCHEMA:
        raise UserError(
            f"{where} is no gate file, this is a result file: give it as RESULT, and the limits as --gate",
            slug="result-file-as-gate",
        )
    threats = content.get("threat_models")
    if isinstance(threats, list):
        parts = [with_underscores(each, where) if isinstance(each, dict) else each for each in threats]
        content = {**content, "threat_models": parts}
    return validate_settings(GateFile, content, where, describe=_sentence)


def _sentence(problem: ErrorDetails) -> str:
    """One of pydantic's problems in the words of the file."""
    place = list(problem["loc"]) or ["it"]
    if place[0] == "threat_models" and len(place) > 1:
        place[:2] = [f"threat model {int(place[1]) + 1}"]
    # Further words of pydantic's say which form of a class's key was tried.
    *parents, key = [place[0], *(part for part in place[1:] if part not in ("[key]", "int", "str"))]
    where = "".join(f"{part}, " for part in parents)
    if problem["type"] == "extra_forbidden":
        return f"{where}{unknown_setting(str(key), ThreatPart.model_fields)}"
    if problem["type"] == "missing":
        return f"{where}{key} is missing"
    return f"{where}{key}{_shown(problem['input'])}: {plain_reason(problem)}"


def _shown(value: Any) -> str:
    """` is 'x'` for a plain short value. What is none may, through YAML's references, be endless when written out."""
    short = len(value) < 100 if isinstance(value, str) else isinstance(value, int | float) and abs(value) < 1e15
    return f" is {value!r}" if short else ""


def _limits(part: LimitsPart, folder: Path) -> Limits:
    return Limits(
        min_robust=part.min_robust,
        min_clean=part.min_clean,
        max_drop=part.max_drop,
        max_clean_drop=part.max_clean_drop,
        require=part.require,
        min_class_robust=_floors(part.min_class_robust),
        min_class_clean=_floors(part.min_class_clean),
        baselines=tuple(folder / each for each in part.baseline or []),
    )


def _floors(classes: Mapping[str | int, float] | None) -> ClassFloors:
    if classes is None:
        return ClassFloors()
    return ClassFloors(classes.get("default"), {key: limit for key, limit in classes.items() if key != "default"})


def _over(shared: Limits, own: Limits) -> Limits:
    """The shared limits, with a threat model's own put over them."""
    unset = Limits()
    said = {field.name: getattr(own, field.name) for field in dataclasses.fields(Limits)}
    return dataclasses.replace(shared, **{key: value for key, value in said.items() if value != getattr(unset, key)})


def _require_sense(limits: tuple[Limits, ...], where: str) -> None:
    for position, each in enumerate(limits):
        of = f" for {each.threat.name}" if each.threat is not None else ""
        if each.empty and not each.baselines:
            raise UserError(
                f"{where} gives no limit{of}: a gate needs one, such as --min-robust, --min-clean, or --max-drop with "
                "--baseline"
            )
        if each.drops and not each.baselines:
            raise UserError(f"{where} limits a drop{of} and names no baseline: --baseline says against what")
        if any(each.threat == other.threat for other in limits[:position]):
            raise UserError(f"{where} speaks of {of.removeprefix(' for ')} twice: give each threat model one set")
