"""The result file: `schema: "robustbench-local/result/1"`. Rates are fractions, each beside its n and its interval."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import (
    MOST_DESCRIPTION,
    parse_json,
    printable,
    quoted,
    read_text,
    reject_control_characters,
    require_plain_file,
)
from robustbench_local.numbers import parse_number
from robustbench_local.results.checks import CHECKS, slug_of
from robustbench_local.statistics.intervals import wilson
from robustbench_local.statistics.sequential import finite_bounds

SCHEMA: Literal["robustbench-local/result/1"] = "robustbench-local/result/1"
UnitInterval = Field(ge=0, le=1)
LONGEST_LINE = 16_384
"""Characters of a line of the per-sample record, which has about 400."""


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Confidence(StrictModel):
    level: float = Field(gt=0, lt=1)
    method: str
    low: float = UnitInterval
    high: float = UnitInterval


class Accuracy(StrictModel):
    value: float = UnitInterval
    correct: NonNegativeInt
    n: int = Field(ge=1, le=2**53)
    confidence: Confidence

    @model_validator(mode="after")
    def check_consistency(self) -> Accuracy:
        if self.correct > self.n or abs(self.value - self.correct / self.n) > 1e-9:
            raise ValueError(f"the value is {self.value}, but {self.correct} of {self.n} are correct")
        if not self.confidence.low - 1e-9 <= self.value <= self.confidence.high + 1e-9:
            raise ValueError(f"the value {self.value} is outside its own confidence interval")
        return self

    @classmethod
    def of(cls, correct: int, n: int, level: float = 0.95) -> Accuracy:
        low, high = wilson(correct, n, level)
        confidence = Confidence(level=level, method="wilson", low=low, high=high)
        return cls(value=correct / n, correct=correct, n=n, confidence=confidence)

    @classmethod
    def anytime(cls, correct: int, n: int, population: int, level: float = 0.95) -> Accuracy:
        """Of the first n of a random order of `population` samples, with an interval for the accuracy of all of them
        that holds at whatever moment one stops.
        """
        low, high = finite_bounds(correct, n, population, (1 - level) / 2)
        confidence = Confidence(level=level, method="prior-posterior-ratio", low=low, high=high)
        return cls(value=correct / n, correct=correct, n=n, confidence=confidence)


class ModelInfo(StrictModel):
    name: str
    sha256: str
    classes: int
    parameters: int
    normalization: dict[str, list[float]] | None


class DataInfo(StrictModel):
    name: str
    split: str
    n: int = Field(ge=1)
    available: int = Field(ge=1)
    sha256: str
    subset_seed: int | None = Field(description="seed of the stratified subset; null when the whole split was taken")
    lossy: bool = Field(description="pixels come from lossy files such as JPEG")


class TargetedGoal(StrictModel):
    source: int | None
    target: int


class ThreatModelInfo(StrictModel):
    norm: str
    eps: NonNegativeFloat
    eps_text: str
    box: tuple[float, float]
    goal: Literal["untargeted"] | TargetedGoal
    reject: int | None = Field(
        default=None, description="class that stands for a refusal: an image for which it is predicted is not fooled"
    )

    @model_validator(mode="after")
    def check_consistency(self) -> ThreatModelInfo:
        if not math.isclose(parse_number(self.eps_text), self.eps, rel_tol=1e-6):
            raise ValueError(f"eps is {self.eps:g}, but its text says {quoted(self.eps_text)}")
        return self


class Protocol(StrictModel):
    name: str
    version: int | None
    sha256: str


class AttackReport(StrictModel):
    name: str
    parameters: dict[str, Any]
    restarts: int
    attacked: NonNegativeInt
    fooled: NonNegativeInt
    role: Literal["search", "follow-up", "probe", "tail", "solver", "diagnostic", "adaptive"] = "search"
    because: Annotated[str | None, BeforeValidator(lambda name: slug_of(name) if isinstance(name, str) else name)] = (
        Field(default=None, description="the slug of the diagnostic that called for this adaptive attack")
    )
    share: float = Field(
        default=1.0, gt=0, le=1, description="of the samples that stood, those of smallest margin that were attacked"
    )
    unconfirmed: NonNegativeInt = Field(description="successes of the search that the float32 model did not confirm")
    low_precision_unconfirmed: NonNegativeInt = Field(
        default=0, description="successes in low precision that float32 did not confirm, and searched on"
    )
    robust_accuracy_after: float = UnitInterval
    forward_passes: NonNegativeInt
    backward_passes: NonNegativeInt
    seconds: NonNegativeFloat


class Diagnostic(StrictModel):
    """The outcome of one check. Results written before slugs name it by its sentence alone and stay readable."""

    slug: str = Field(description="the check's stable name, such as gradients-reach-input")
    check: str = Field(default="", description="what is so where the check passes")
    status: Literal["pass", "warn", "fail", "skipped"]
    value: float | str | None = None
    threshold: float | str | None = None
    n: NonNegativeInt | None = Field(default=None, description="how many images were looked at")
    advice: str = ""

    @model_validator(mode="before")
    @classmethod
    def _name_the_check(cls, values: Any) -> Any:
        """Fill in the slug from the sentence of an earlier result, and the sentence from the slug."""
        if not isinstance(values, dict) or not isinstance(values.get("slug", values.get("check")), str):
            return values
        slug = values.get("slug") or slug_of(values["check"])
        known = CHECKS.get(slug)
        return {**values, "slug": slug, "check": known.passes if known else values.get("check") or slug}

    @property
    def sentence(self) -> str:
        """How the check turned out, for people."""
        known = CHECKS.get(self.slug)
        return known.fails if known and self.status in ("warn", "fail") else self.check


class Verdict(StrictModel):
    status: Literal["trusted", "doubtful", "not-trusted", "not-assessed"]
    reasons: list[str]


class Cost(StrictModel):
    forward_passes: NonNegativeInt
    backward_passes: NonNegativeInt
    forward_passes_per_image: NonNegativeFloat
    backward_passes_per_image: NonNegativeFloat
    seconds: NonNegativeFloat
    image_steps_per_second: NonNegativeFloat
    peak_memory_bytes: NonNegativeInt


class Sequential(StrictModel):
    """The samples are the first n of a seeded random order of the whole split, and were evaluated until a gate was
    decided. Tests of a fixed number of samples do not hold for them; anytime-valid ones for the finite split do.
    """

    gate: str
    order_seed: NonNegativeInt
    looks: list[int] = Field(description="after how many samples the gate was looked at, the last being n")


class ClassReport(StrictModel):
    label: int
    name: str | None
    clean_accuracy: Accuracy
    robust_accuracy: Accuracy


class Result(BaseModel):
    """The outcome of one evaluation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal["robustbench-local/result/1"] = Field(default=SCHEMA, alias="schema")
    created: str
    model: ModelInfo
    data: DataInfo
    threat_model: ThreatModelInfo
    protocol: Protocol
    clean_accuracy: Accuracy
    robust_accuracy: Accuracy
    certified_accuracy: Accuracy | None = None
    per_class: list[ClassReport]
    attacks: list[AttackReport]
    diagnostics: list[Diagnostic]
    verdict: Verdict
    samples_file: str | None = Field(description="relative to this file")
    cost: Cost
    environment: dict[str, str]
    config: dict[str, Any]
    sequential: Sequential | None = None

    @model_validator(mode="after")
    def check_consistency(self) -> Result:
        if not self.clean_accuracy.n == self.robust_accuracy.n == self.data.n <= self.data.available:
            raise ValueError("its accuracies and its data speak of different numbers of samples")
        if self.robust_accuracy.correct > self.clean_accuracy.correct:
            raise ValueError("more samples are robust than correct")
        self._require_sums()
        statuses = {diagnostic.status for diagnostic in self.diagnostics}
        if "fail" in statuses and self.verdict.status != "not-trusted":
            raise ValueError(f"the verdict is {self.verdict.status}, but a diagnostic failed")
        if "warn" in statuses and self.verdict.status == "trusted":
            raise ValueError("the verdict is trusted, but a diagnostic warned")
        return self

    def _require_sums(self) -> None:
        """Raises ValueError where the attacks or the classes do not add up to the accuracies."""
        clean, robust = self.clean_accuracy, self.robust_accuracy
        fooled = sum(attack.fooled for attack in self.attacks)
        if clean.correct - fooled != robust.correct:
            raise ValueError(
                f"{clean.correct} samples are correct and its attacks fooled {fooled} of them, but "
                f"{robust.correct} are robust"
            )
        for name, whole, parts in (
            ("clean", clean, [each.clean_accuracy for each in self.per_class]),
            ("robust", robust, [each.robust_accuracy for each in self.per_class]),
        ):
            if (sum(part.correct for part in parts), sum(part.n for part in parts)) != (whole.correct, whole.n):
                raise ValueError(f"the {name} accuracies of its classes do not add up to that of the whole")

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


class Distance(StrictModel):
    linf: NonNegativeFloat
    l2: NonNegativeFloat
    l1: NonNegativeFloat


class SampleRecord(StrictModel):
    """One line of the per-sample record."""

    index: int
    input_sha256: str
    label: int
    clean_prediction: int
    adversarial_prediction: int | None = Field(description="what the verified adversarial example is taken for")
    robust: bool
    broken_by: str | None
    restart: int | None
    step: int | None
    distance: Distance | None
    clean_margin: float
    margin: float = Field(
        description="the smallest margin seen, in logits: how far the attacker was from success, below 0 where it "
        "succeeded; -3.4e38 where logits were not numbers"
    )


def json_schema() -> str:
    """The JSON Schema of the result file, as committed in docs/result.schema.json."""
    return json.dumps(Result.model_json_schema(by_alias=True), indent=2) + "\n"


def read_result(path: Path) -> Result:
    """A result file as a typed value.

    Raises UserError when it is missing, is no JSON, or departs from the schema.
    """
    text = read_text(path, MOST_DESCRIPTION)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): give the result file that 'robust attack' wrote") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise UserError(f"{path} is not a result file: its schema is {quoted(found)}, expected {SCHEMA!r}")
    try:
        return Result.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        told = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path} is not a valid result file: {where + ': ' if where else ''}{told}") from None


def read_samples(result: Result, path: Path) -> list[SampleRecord]:
    """The per-sample record that lies beside a result file.

    Raises UserError when it is missing, damaged, or outside the result's own folder.
    """
    name = result.samples_file
    record = path.parent / (name or ".")
    if name is None or record.resolve().parent != path.parent.resolve():
        raise UserError(f"{path} names no per-sample record in its own folder (samples_file: {quoted(name)})")
    if not record.exists():
        raise UserError(f"there is no {record}, the per-sample record of {path}: put it there, or evaluate again")
    samples = []
    for number, line in enumerate(_lines(record), start=1):
        try:
            samples.append(SampleRecord.model_validate_json(line))
            reject_control_characters(samples[-1].broken_by or "")
        except ValidationError as error:
            first = error.errors()[0]
            told = printable(f"{'.'.join(map(str, first['loc']))} {first['msg']}")
            raise UserError(f"{record}, line {number} is not a sample record: {told}") from None
        except ValueError as error:
            raise UserError(f"{record}, line {number} is not a sample record: broken_by: {error}") from None
        if number > result.data.n:
            raise UserError(f"{record} has more lines than the {result.data.n} samples that {path} speaks of")
    robust = sum(sample.robust for sample in samples)
    if len({sample.index for sample in samples}) != result.data.n or len(samples) != result.data.n:
        raise UserError(f"{record} has {len(samples)} lines, but {path} speaks of {result.data.n} different samples")
    if robust != result.robust_accuracy.correct:
        raise UserError(
            f"{record} has {robust} robust samples and {path} {result.robust_accuracy.correct}: they are of two runs"
        )
    return samples


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, one at a time and none without end."""
    require_plain_file(path)
    try:
        with path.open(encoding="utf-8") as file:
            while line := file.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    raise UserError(
                        f"{path} has a line of more than {LONGEST_LINE:,} characters: it is not the record "
                        "that 'robust attack' wrote"
                    )
                yield line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise UserError(f"cannot read {path}: {reason}") from None


if __name__ == "__main__":
    Path("docs/result.schema.json").write_text(json_schema(), encoding="utf-8")
