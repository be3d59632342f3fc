"""Which adaptive attack answers which finding (Tramèr et al., "On adaptive attacks to adversarial example defenses",
NeurIPS 2020; Carlini et al., arXiv:1902.06705).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustbench_local.attacks import BPDA, EOT, PGD, Attack, Descent
from robustbench_local.attacks.attack import spec_text
from robustbench_local.attacks.suites import Stage
from robustbench_local.diagnostics.preflight import Preflight
from robustbench_local.diagnostics.transfer_attack import imitation, refitted, transfer_from
from robustbench_local.engine.cascade import Cascade
from robustbench_local.engine.protocol import Step, resolve_attack
from robustbench_local.results import checks
from robustbench_local.results.schema import Diagnostic

RANDOM = {checks.DETERMINISTIC}
MISSING_GRADIENTS = {checks.GRADIENTS, checks.LAYERS, checks.NO_TEST_TIME_OPTIMIZATION}
SATURATED = {checks.GRADIENTS, checks.CROSS_ENTROPY, checks.SCALE, checks.GRADIENT_PREDICTS_LOSS}
ROUGH_LOSS = {checks.STABLE, checks.GRADIENT_PREDICTS_LOSS, checks.ONE_STEP, checks.MANY_STEPS}
MISSED_BY_SUITE = {
    checks.NOISE,
    checks.SQUARE,
    checks.MORE_STEPS,
    checks.DESCENT,
    checks.PROBES_AGREE,
    checks.CONVERGED,
}
SUITE_FAILURE_SHARE = 0.05
"""The share of some standing samples that plain PGD may fool before the suite itself is in doubt."""
ATTACK_FAILS = {checks.GROWTH, checks.PLANTED}
REASONS = RANDOM | MISSING_GRADIENTS | SATURATED | ROUGH_LOSS | MISSED_BY_SUITE | ATTACK_FAILS


@dataclass(frozen=True)
class AdaptiveAttack:
    """An attack on all that stands, and the check that calls for it."""

    step: Step
    because: str


def select_adaptive_attacks(
    cascade: Cascade, found: Preflight, findings: Sequence[Diagnostic], overlooked: float
) -> list[AdaptiveAttack]:
    """The attacks that the findings call for, the cheapest first; none where nothing was found.

    overlooked: the share of some standing samples that plain PGD fools: then it is run too, and where they are many the
    suite was led astray.
    """
    troubled = {finding.slug for finding in findings if finding.status in ("warn", "fail")} & REASONS
    if overlooked > SUITE_FAILURE_SHARE:
        troubled.add(checks.CROSS_ENTROPY)
    called = list(_called(cascade, found, troubled)) if troubled else []
    if overlooked:
        called.insert(0, (PGD(steps=20), {checks.CROSS_ENTROPY}))
    return [
        AdaptiveAttack(Step(attack, Stage(attack=spec_text(attack), role="adaptive")), _because(reasons, troubled))
        for attack, reasons in called
    ]


def _called(cascade: Cascade, found: Preflight, troubled: set[str]) -> Iterator[tuple[Attack, set[str]]]:
    layers = "+".join(found.layers)
    if troubled & (MISSING_GRADIENTS | ATTACK_FAILS):
        yield BPDA(layers=layers), MISSING_GRADIENTS | ATTACK_FAILS
        yield BPDA(layers=layers, loss="margin", targets=9, steps=50), MISSING_GRADIENTS | ATTACK_FAILS
    if troubled & (SATURATED | ATTACK_FAILS):
        # Where all wrong classes are equally flat, only a target says which of them is near.
        for stretch in (0.1, 0.5):
            through = BPDA(layers=layers, saturating=True, stretch=stretch, loss="margin", targets=9, steps=50)
            yield through, SATURATED | ATTACK_FAILS
    if troubled & RANDOM:
        yield EOT(draws=20), RANDOM
    if troubled & (ROUGH_LOSS | RANDOM | MISSED_BY_SUITE):
        yield EOT(draws=10, radius=0.3), ROUGH_LOSS | RANDOM | MISSED_BY_SUITE
    yield PGD(steps=200, loss="margin", schedule="cosine", momentum=0.25, restarts=2), troubled
    yield resolve_attack("apgd:loss=dlr,targets=9"), troubled
    if troubled & (MISSED_BY_SUITE | SATURATED):
        yield Descent(), MISSED_BY_SUITE | SATURATED
    context = cascade.context
    for name, teach in (("transfer-readout", refitted), ("transfer", imitation)):
        taught = functools.partial(teach, context.model, context.dataset, context.threat_model, context.device)
        yield transfer_from(taught, name), troubled
    yield resolve_attack("square:steps=5000"), troubled


def _because(reasons: set[str], troubled: set[str]) -> str:
    """The first check, in the order of their names, that calls for the attack."""
    return min(reasons & troubled, default=min(reasons))
