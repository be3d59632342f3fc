"""The result file: `schema: "robustbench-local/result/1"`. Rates are fractions, each beside its n and its interval."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, model_validator

from robustbench_local.io.safe_read import quoted
from robustbench_local.numbers import parse_number
from robustbench_local.results.checks import CHECKS, slug_of
from robustbench_local.statistics.intervals import wilson
from robustbench_local.statistics.sequential import finite_bounds

SCHEMA: Literal["robustbench-local/result/1"] = "robustbench-local/result/1"
UnitInterval = Field(ge=0, le=1)


class StrictModel(BaseModel):
    """A frozen pydantic model that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Confidence(StrictModel):
    """A confidence interval of an accuracy; all values are fractions."""

    level: float = Field(gt=0, lt=1)
    method: str
    low: float = UnitInterval
    high: float = UnitInterval


class Accuracy(StrictModel):
    """The fraction of correct samples, with its count and confidence interval."""

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
        """The accuracy of `correct` out of n samples, with Wilson's interval."""
        low, high = wilson(correct, n, level)
        confidence = Confidence(level=level, method="wilson", low=low, high=high)
        return cls(value=correct / n, correct=correct, n=n, confidence=confidence)

    @classmethod
    def anytime(cls, correct: int, n: int, population: int, level: float = 0.95) -> Accuracy:
        """The accuracy on the first n samples of a random order of `population` samples.

        The interval is for the accuracy of all of them and is valid at any stopping time.
        """
        low, high = finite_bounds(correct, n, population, (1 - level) / 2)
        confidence = Confidence(level=level, method="prior-posterior-ratio", low=low, high=high)
        return cls(value=correct / n, correct=correct, n=n, confidence=confidence)


class ModelInfo(StrictModel):
    """The evaluated model."""

    name: str
    sha256: str
    classes: int
    parameters: int
    normalization: dict[str, list[float]] | None


class DataInfo(StrictModel):
    """The evaluated images."""

    name: str
    split: str
    n: int = Field(ge=1)
    available: int = Field(ge=1)
    sha256: str
    subset_seed: int | None = Field(description="seed of the stratified subset; null where all of it was evaluated")
    lossy: bool = Field(description="pixels come from lossy files such as JPEG")


class TargetedGoal(StrictModel):
    """A targeted attack: images of class source (null: every other class) count as fooled if classified as target."""

    source: int | None
    target: int


class ThreatModelInfo(StrictModel):
    """What the attacker may do."""

    norm: str
    eps: NonNegativeFloat
    eps_text: str
    box: tuple[float, float]
    goal: Literal["untargeted"] | TargetedGoal
    reject: int | None = Field(
        default=None, description="rejection class: an image that is classified as it does not count as fooled"
    )

    @model_validator(mode="after")
    def check_consistency(self) -> ThreatModelInfo:
        if not math.isclose(parse_number(self.eps_text), self.eps, rel_tol=1e-6):
            raise ValueError(f"eps is {self.eps:g}, but its text says {quoted(self.eps_text)}")
        return self


class Protocol(StrictModel):
    """The attacks and their settings, identified by a hash."""

    name: str
    version: int | None
    sha256: str


class AttackReport(StrictModel):
    """One attack of the evaluation: its settings, its successes and its cost."""

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
        default=1.0,
        gt=0,
        le=1,
        description="share of the samples not yet fooled that were attacked, those with the smallest margin first",
    )
    unconfirmed: NonNegativeInt = Field(description="successes of the search that the float32 model did not confirm")
    low_precision_unconfirmed: NonNegativeInt = Field(
        default=0, description="successes in low precision that float32 did not confirm; the search continued on them"
    )
    outside: NonNegativeInt = Field(
        default=0,
        description="images returned outside the ball or the pixel range, or not finite: never counted as successes",
    )
    robust_accuracy_after: float = UnitInterval
    forward_passes: NonNegativeInt
    backward_passes: NonNegativeInt
    seconds: NonNegativeFloat


class Diagnostic(StrictModel):
    """The outcome of one check. Results written before slugs name it by its sentence alone and stay readable."""

    slug: str = Field(description="the stable name of the check, such as gradients-reach-input")
    check: str = Field(default="", description="what is true where the check passes")
    status: Literal["pass", "warn", "fail", "skipped"]
    value: float | str | None = None
    threshold: float | str | None = None
    n: NonNegativeInt | None = Field(default=None, description="how many images were checked")
    advice: str = ""

    @model_validator(mode="before")
    @classmethod
    def _name_the_check(cls, values: object) -> object:
        """Derive the slug from the sentence of a result without slugs, and the sentence from the slug."""
        if not isinstance(values, dict) or not isinstance(values.get("slug", values.get("check")), str):
            return values
        slug = values.get("slug") or slug_of(values["check"])
        sentences = CHECKS.get(slug)
        return {**values, "slug": slug, "check": sentences.passes if sentences else values.get("check") or slug}

    @property
    def sentence(self) -> str:
        """The outcome of the check, for people."""
        sentences = CHECKS.get(self.slug)
        return sentences.fails if sentences and self.status in ("warn", "fail") else self.check


class Verdict(StrictModel):
    """Whether the robust accuracy can be trusted, and the reasons where it cannot."""

    status: Literal["trusted", "doubtful", "not-trusted", "not-assessed"]
    reasons: list[str]


CostPartName = Literal["clean pass", "suite", "checks", "probes", "adaptive attacks"]


class CostPart(StrictModel):
    """What one part of the evaluation cost; the parts add up to the whole."""

    name: CostPartName = Field(
        description="checks: everything that is neither the clean pass nor an attack in the list of attacks"
    )
    forward_passes: NonNegativeInt
    backward_passes: NonNegativeInt
    seconds: NonNegativeFloat

    @property
    def passes(self) -> int:
        return self.forward_passes + self.backward_passes


class Cost(StrictModel):
    """What the evaluation cost. A pass is one image through the network."""

    forward_passes: NonNegativeInt
    backward_passes: NonNegativeInt
    forward_passes_per_image: NonNegativeFloat
    backward_passes_per_image: NonNegativeFloat
    seconds: NonNegativeFloat
    image_steps_per_second: NonNegativeFloat
    peak_memory_bytes: NonNegativeInt
    parts: list[CostPart] | None = Field(
        default=None, description="where the passes and the time went; null in results of earlier versions"
    )

    @model_validator(mode="after")
    def check_consistency(self) -> Cost:
        if self.parts is None:
            return self
        if len({part.name for part in self.parts}) < len(self.parts):
            raise ValueError("two parts of its cost have the same name")
        for field in ("forward_passes", "backward_passes", "seconds"):
            whole, total = getattr(self, field), sum(getattr(part, field) for part in self.parts)
            if not (whole == total if isinstance(whole, int) else math.isclose(whole, total, abs_tol=1e-6)):
                raise ValueError(f"the {field} of the parts of its cost add up to {total}, but it has {whole}")
        return self

    def part(self, name: CostPartName) -> CostPart | None:
        """The part of that name; None where there is none."""
        return next((part for part in self.parts or () if part.name == name), None)


class Sequential(StrictModel):
    """An evaluation that stopped when a gate was decided.

    Its samples are the first n of a seeded random order of the whole split. Tests for a fixed number of samples are not
    valid for them; anytime-valid tests for a finite population are.
    """

    gate: str
    order_seed: NonNegativeInt
    looks: list[int] = Field(description="the numbers of samples after which the gate was evaluated; the last is n")


class ClassReport(StrictModel):
    """The accuracies of one class."""

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
            raise ValueError("its accuracies and its data have different numbers of samples")
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
        """Raise ValueError where the attacks or the classes do not add up to the accuracies."""
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
                raise ValueError(f"the {name} accuracies of its classes do not add up to the overall accuracy")

    def to_json(self) -> str:
        """The text of the result file."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


class Distance(StrictModel):
    """The size of a perturbation in three norms."""

    linf: NonNegativeFloat
    l2: NonNegativeFloat
    l1: NonNegativeFloat


class SampleRecord(StrictModel):
    """One line of the per-sample record."""

    index: int
    input_sha256: str
    label: int
    clean_prediction: int
    adversarial_prediction: int | None = Field(description="the class predicted for the verified adversarial example")
    robust: bool
    broken_by: str | None
    restart: int | None
    step: int | None
    distance: Distance | None
    clean_margin: float
    margin: float = Field(
        description="the smallest margin under attack, in logits; below 0 where an attack succeeded, -3.4e38 where "
        "logits were not finite"
    )


def json_schema() -> str:
    """The JSON Schema of the result file, as committed in docs/result.schema.json."""
    return json.dumps(Result.model_json_schema(by_alias=True), indent=2) + "\n"


if __name__ == "__main__":
    Path("docs/result.schema.json").write_text(json_schema(), encoding="utf-8")
