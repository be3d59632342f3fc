"""The stopping rule of an evaluation that ends when a gate is decided.

The samples come in seeded random order, without replacement, so the bounds of `statistics.sequential` hold for the
accuracy of the whole split at whatever moment the run stops.
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
    """Floors on the accuracies of a whole split. name: of the gate, for the result."""

    name: str
    alpha: float
    min_clean: float | None
    min_robust: float | None

    def decided(self, correct: int, robust: int, n: int, population: int) -> bool:
        """Whether n samples, drawn at random without replacement, decide the gate: a floor fails, or all pass.

        correct, robust: how many of them are right, and right under attack.
        """
        floors = [
            Floor(rule, rule, count, n, limit, population, finite=True)
            for rule, count, limit in (("min_robust", robust, self.min_robust), ("min_clean", correct, self.min_clean))
            if limit is not None
        ]
        return any(failing(floors, self.alpha)) or all(floor.passes(self.alpha) for floor in floors)


def stopping_rule(gate: Gate, name: str, threat_model: ThreatModelInfo) -> GateStoppingRule:
    """The floors of a gate for one threat model.

    Raises UserError where the gate has none for it, or limits that cannot be decided on the way.
    """
    limits = gate.of(threat_model)
    if limits is None or (limits.min_clean is None and limits.min_robust is None):
        raise UserError(
            f"{name} has no floor for {threat_name(threat_model)}: --until-gate stops when min_robust "
            "or min_clean is decided, so give one"
        )
    single = [limits.min_class_clean, limits.min_class_robust]
    if limits.drops or any(floors.default is not None or floors.single for floors in single):
        raise UserError(
            f"{name} limits drops or single classes, which --until-gate cannot decide on the way: leave them out, or "
            "evaluate all samples and hold the result against the gate afterwards"
        )
    return GateStoppingRule(name, gate.alpha, limits.min_clean, limits.min_robust)
