"""A gate: the limits that results of each threat model have to meet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from robustbench_local.results.pairing import threat_id, threat_name
from robustbench_local.results.schema import ThreatModelInfo


@dataclass(frozen=True)
class ThreatSelector:
    """The threat model whose results a set of limits applies to."""

    norm: str
    eps: float
    eps_text: str = field(compare=False)
    target: int | None = None
    source: int | None = None
    reject: int | None = None

    @property
    def name(self) -> str:
        """For people, as a result of this threat model has it."""
        return threat_name(self._info)

    @property
    def id(self) -> str:
        """For programs, as a result of this threat model has it."""
        return threat_id(self._info)

    @property
    def _info(self) -> ThreatModelInfo:
        goal = "untargeted" if self.target is None else {"source": self.source, "target": self.target}
        fields = {"norm": self.norm, "eps": self.eps, "eps_text": self.eps_text, "box": (0, 1), "reject": self.reject}
        return ThreatModelInfo.model_validate({**fields, "goal": goal})

    def matches(self, threat: ThreatModelInfo) -> bool:
        """Whether a result of this threat model is meant."""
        goal = threat.goal
        classes = (None, None) if goal == "untargeted" else (goal.source, goal.target)
        return (
            threat.norm == self.norm
            and math.isclose(threat.eps, self.eps, rel_tol=1e-9)
            and classes == (self.source, self.target)
            and threat.reject == self.reject
        )


@dataclass(frozen=True)
class ClassFloors:
    """Least accuracies of classes: `single` by name or label, and `default` for every other class."""

    default: float | None = None
    single: Mapping[str | int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """The limits for results of one threat model; all are fractions.

    threat: None applies to any result. max_drop, max_clean_drop: largest drop since the baseline, on the same samples.
    require: the weakest accepted protocol, as `standard/1`. baselines: result files; the one of the result's threat
    model is used. require_baseline: whether a missing baseline is an error; by default it is a warning.
    """

    threat: ThreatSelector | None = None
    min_robust: float | None = None
    min_clean: float | None = None
    min_class_robust: ClassFloors = ClassFloors()
    min_class_clean: ClassFloors = ClassFloors()
    max_drop: float | None = None
    max_clean_drop: float | None = None
    require: str | None = None
    baselines: tuple[Path, ...] = ()
    require_baseline: bool | None = None

    @property
    def has_drops(self) -> bool:
        """Whether a drop since a baseline is limited."""
        return self.max_drop is not None or self.max_clean_drop is not None

    @property
    def empty(self) -> bool:
        """Whether nothing is limited."""
        floors = (self.min_class_robust, self.min_class_clean)
        return (
            self.min_robust is None
            and self.min_clean is None
            and not self.has_drops
            and all(each.default is None and not each.single for each in floors)
        )


@dataclass(frozen=True)
class Gate:
    """Limits for each threat model.

    alpha: the probability with which a single limit may wrongly pass, and any limit wrongly fail. source: the file that
    the limits come from.
    """

    limits: tuple[Limits, ...]
    alpha: float = 0.05
    source: Path | None = None

    @property
    def baselines(self) -> list[Path]:
        """Every baseline that is named, once."""
        return list(dict.fromkeys(path for limits in self.limits for path in limits.baselines))

    def limits_for(self, threat: ThreatModelInfo) -> Limits | None:
        """The limits that apply to results of this threat model; None where there are none."""
        return next((each for each in self.limits if each.threat is None or each.threat.matches(threat)), None)
