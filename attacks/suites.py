"""Named cascades. The order is that of successes per cost: each attack sees only what the ones before it left standing.

A suite that has been published under a version never changes; a better one gets the next version.
"""
from __future__ import annotations

from robustbench_local.attacks.attack import Attack
from robustbench_local.attacks.fgsm import FGSM
from robustbench_local.attacks.pgd import PGD

SUITES: dict[str, dict[int, tuple[Attack, ...]]] = {
    "fast": {
        1: (
            FGSM(),
            PGD(steps=20, loss="ce"),
            PGD(steps=40, loss="scaled-ce", restarts=2),
        ),
    },
}
