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


def require_seen(name, suite):
    """A broken defense is not trusted and, under `standard`, its number is near that of the best adaptive attack."""
    member = members.member(name)
    evaluation, part = evaluated(member, suite=suite)
    assert evaluation.result.verdict.status != "trusted"
    if suite == "standard" and name not in members.UNBOUNDED:
        left = member.adaptive(member.build(), part.images(range(len(part))), part.labels, member.threat_model)
        assert evaluation.robust_accuracy.value <= accuracy(left) + 0.02


def troubled(result):
    """Slugs of the checks that warn or fail."""
    return {finding.slug for finding in result.diagnostics if finding.status in ("warn", "fail")}
