"""Shared by the tests of gates: the decision of a gate that has one set of limits."""

from robustbench_local.gates.decide import decide
from robustbench_local.gates.gate import Gate, Limits


def decide_one(path, *more, baseline=None, alpha=0.05, create_baselines=False, **limits):
    """The decision on result files that have to meet the same limits."""
    baselines = () if baseline is None else (baseline,)
    gate = Gate((Limits(baselines=baselines, **limits),), alpha)
    return decide(gate, [path, *more], create_baselines=create_baselines)
