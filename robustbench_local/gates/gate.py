"""A gate: the limits that results of each threat model have to meet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from robustbench_local.results.pairing import threat_name
from robustbench_local.results.schema import ThreatModelInfo


@dataclass(frozen=True)
class ThreatSelector:
    """Which results a set of limits speaks of."""

    norm: str
    eps: float
    eps_text: str = field(compare=False)
    target: int | None = None
    source: int | None = None
    reject: int | None = None

    @property
    def name(self) -> str:
        goal = "untargeted" if self.target is None else {"source": self.source, "target": self.target}
        return threat_name(
            ThreatModelInfo.model_validate(
                {
                    "norm": self.norm,
                    "eps": self.eps,
                    "eps_text": self.eps_text,
                    "box": (0, 1),
                    "goal": goal,
                    "reject": self.reject,
                }
            )
        )

    def matches(self, threat: ThreatModelInfo) -> bool:
        goal = threat.goal
        aimed = (None, None) if goal == "untargeted" else (goal.source, goal.target)
        return (
            threat.norm == self.norm
            and math.isclose(threat.eps, self.eps, rel_tol=1e-9)
            and aimed == (self.source, self.target)
            and threat.reject == self.reject
        )


@dataclass(frozen=True)
class ClassFloors:
    """Least accuracies of classes: `default` for every class that is not among `single`, by name or label."""

    default: float | None = None
    single: Mapping[str | int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """What results of one threat model are held to; all are fractions.

    threat: None speaks of any result. max_drop and max_clean_drop: what may be lost since the baseline, sample by
    sample. require: the weakest protocol that will do, as `standard/1`. baselines: result files, of which that of the
    result's threat model is taken.
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

    @property
    def drops(self) -> bool:
        return self.max_drop is not None or self.max_clean_drop is not None

    @property
    def empty(self) -> bool:
        floors = (self.min_class_robust, self.min_class_clean)
        return (
            self.min_robust is None
            and self.min_clean is None
            and not self.drops
            and all(each.default is None and not each.single for each in floors)
        )


@dataclass(frozen=True)
class Gate:
    """Limits for each threat model. alpha: how often a single limit may wrongly pass, and any of all wrongly fail.
    source: the file that they were read from.
    """

    limits: tuple[Limits, ...]
    alpha: float = 0.05
    source: Path | None = None

    @property
    def baselines(self) -> list[Path]:
        return list(dict.fromkeys(path for limits in self.limits for path in limits.baselines))

    def of(self, threat: ThreatModelInfo) -> Limits | None:
        """The limits that speak of results of this threat model."""
        return next((each for each in self.limits if each.threat is None or each.threat.matches(threat)), None)
