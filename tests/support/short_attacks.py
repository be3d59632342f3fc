"""Adaptive attacks with a fraction of their steps, for tests of what they are called for and what becomes of it."""

from __future__ import annotations

from typing import Any

import pytest

from robustbench_local.attacks import PGD
from robustbench_local.attacks.suites import INSET
from robustbench_local.diagnostics import adaptive_attacks, transfer_attack
from robustbench_local.engine.protocol import resolve_attack

SHORTER = {
    "square:steps=3000,share=0.1": "square:steps=50,share=0.1",
    "square:steps=5000": "square:steps=200",
    f"apgd:loss=dlr,targets=9,inset={INSET}": f"apgd:loss=dlr,targets=9,steps=20,inset={INSET}",
}


def shorten_adaptive_attacks(patch: pytest.MonkeyPatch) -> None:
    """Those that follow the ones made for a mask: PGD, APGD, the transfer and Square. `make soak` runs them whole."""

    def short_pgd(*, steps: int, **more: Any) -> PGD:
        return PGD(steps=min(steps, 40), **more)

    patch.setattr(adaptive_attacks, "resolve_attack", lambda text: resolve_attack(SHORTER[text]))
    patch.setattr(adaptive_attacks, "PGD", short_pgd)
    patch.setattr(transfer_attack, "EPOCHS", 5)
