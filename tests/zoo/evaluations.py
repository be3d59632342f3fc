"""What an evaluation says of a member of the zoo."""

from __future__ import annotations

import honest
import members
from tasks import task

from robustbench_local import evaluate


def some(count: int = 60):
    """The first test digits and their labels."""
    test = task().test
    return test.images(range(count)), test.labels[:count]


def accuracy(standing) -> float:
    return float(standing.float().mean())


def evaluated(one: members.Member | honest.Honest, samples=None, suite="fast"):
    """The evaluation of the first images of its data, and these images."""
    test = one.dataset() if isinstance(one, honest.Honest) else task().test
    part = test.subset(range(min(samples or len(test), len(test))))
    return evaluate(one.build(), part, one.threat_model, suite=suite, device="cpu"), part


def troubled(result):
    """Slugs of the checks that warn or fail."""
    return {finding.slug for finding in result.diagnostics if finding.status in ("warn", "fail")}
