"""The stopping rule of `robust attack --until-gate`: stop when a gate is decided.

The samples are drawn in seeded random order without replacement, so the bounds of `statistics.sequential` are valid for
the accuracy of the whole split at any stopping time.
"""

from __future__ import annotations

from dataclasses import dataclass

from robustbench_local.errors import UserError
from robustbench_local.gates.gate import Gate
from robustbench_local.gates.limits import Floor, failing
from robustbench_local.results.pairing import threat_name
from robustbench_local.results.schema import ThreatModelInfo


@dataclass(frozen=True)
class GateStoppingRule:
    """Floors on the accuracies of a whole split, as fractions. name: the gate, as the result names it."""

    name: str
    alpha: float
    min_clean: float | None
    min_robust: float | None

    def decided(self, correct: int, robust: int, n: int, population: int) -> bool:
        """Whether n samples, drawn at random without replacement, decide the gate: a floor fails, or all pass.

        correct, robust: how many of the n samples are correct and robust. population: the size of the split.
        """
        floors = [
            Floor(rule, rule, count, n, limit, population, finite=True)
            for rule, count, limit in (("min_robust", robust, self.min_robust), ("min_clean", correct, self.min_clean))
            if limit is not None
        ]
        return any(failing(floors, self.alpha)) or all(floor.passes(self.alpha) for floor in floors)


def stopping_rule(gate: Gate, name: str, threat_model: ThreatModelInfo) -> GateStoppingRule:
    """The floors of a gate for one threat model.

    name: how messages and the result name the gate. Raises UserError where the gate has no floor for the threat model,
    or limits that cannot be decided during the evaluation.
    """
    limits = gate.limits_for(threat_model)
    if limits is None or (limits.min_clean is None and limits.min_robust is None):
        raise UserError(
            f"{name} has no floor for {threat_name(threat_model)}: --until-gate stops when min_robust "
            "or min_clean is decided, so give one",
            slug="no-floor",
        )
    single = [limits.min_class_clean, limits.min_class_robust]
    if limits.has_drops or any(floors.default is not None or floors.single for floors in single):
        raise UserError(
            f"{name} limits drops or single classes, which --until-gate cannot decide during the evaluation: leave "
            "them out, or evaluate all samples and run robust gate on the result",
            slug="limits-need-all-samples",
        )
    return GateStoppingRule(name, gate.alpha, limits.min_clean, limits.min_robust)
