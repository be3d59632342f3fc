"""Which adaptive attack answers which finding.

Tramèr et al., "On adaptive attacks to adversarial example defenses" (NeurIPS 2020); Carlini et al., "On evaluating
adversarial robustness" (arXiv:1902.06705).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace

from robustbench_local.attacks import BPDA, EOT, PGD, Attack, Descent, Quantized
from robustbench_local.attacks.attack import spec_text
from robustbench_local.attacks.suites import INSET, Stage
from robustbench_local.diagnostics.check import INSIDE
from robustbench_local.diagnostics.inner_classifier import inner_classifier
from robustbench_local.diagnostics.preflight import Preflight, first_images
from robustbench_local.diagnostics.transfer_attack import imitation, refitted, transfer_from
from robustbench_local.engine.cascade import Cascade
from robustbench_local.engine.protocol import Step, resolve_attack
from robustbench_local.results import checks

RANDOM = {checks.DETERMINISTIC}
MISSING_GRADIENTS = {
    checks.GRADIENTS,
    checks.LAYERS,
    checks.EVERY_PIXEL,
    checks.MODE_INDEPENDENT,
    checks.NO_TEST_TIME_OPTIMIZATION,
}
SATURATED = {checks.GRADIENTS, checks.EVERY_PIXEL, checks.CROSS_ENTROPY, checks.SCALE, checks.GRADIENT_PREDICTS_LOSS}
ROUGH_LOSS = {checks.STABLE, checks.GRADIENT_PREDICTS_LOSS, checks.ONE_STEP, checks.MANY_STEPS}
MISSED_BY_SUITE = {checks.PROBED, checks.PROBES_AGREE, checks.CONVERGED}
SUITE_FAILURE_SHARE = 0.05
"""The share of robust images that plain PGD may fool before the suite itself is in doubt."""
ATTACK_FAILS = {checks.GROWTH, checks.PLANTED, checks.PROBED}
ON_GRID = {checks.GRAY_LEVELS}
UNSTEADY = {checks.BATCH_INDEPENDENT, checks.STATELESS}
SEARCHES_WITHOUT_GRADIENTS = ("square:steps=3000,share=0.1", "square:steps=5000")
"""With small squares and with large ones: which are better depends on the size of the images."""
REASONS = UNSTEADY | RANDOM | MISSING_GRADIENTS | SATURATED | ROUGH_LOSS | MISSED_BY_SUITE | ATTACK_FAILS | ON_GRID
"""The checks that call for adaptive attacks."""


@dataclass(frozen=True)
class AdaptiveAttack:
    """An attack on every sample not yet fooled, and the slug of the check that calls for it."""

    step: Step
    because: str


def select_adaptive_attacks(
    cascade: Cascade, preflight: Preflight, problems: Set[str], missed_by_suite: float
) -> list[AdaptiveAttack]:
    """Return the attacks that a doubt calls for, the cheapest first.

    problems: slugs of the checks that raised it. missed_by_suite: the share of some robust images that plain PGD fools.
    Where it is above 0, plain PGD is added; where it is above `SUITE_FAILURE_SHARE`, the suite has failed, and all
    attacks for that case are.
    """
    problems = set(problems)
    if missed_by_suite > SUITE_FAILURE_SHARE:
        problems.add(checks.CROSS_ENTROPY)
    attacks = list(_attacks_for(cascade, preflight, problems))
    if missed_by_suite:
        attacks.insert(0, (PGD(steps=20, inset=INSIDE), {checks.CROSS_ENTROPY}))
    return [
        AdaptiveAttack(Step(attack, Stage(attack=spec_text(attack), role="adaptive")), _because(reasons, problems))
        for attack, reasons in attacks
    ]


def _attacks_for(cascade: Cascade, preflight: Preflight, problems: set[str]) -> Iterator[tuple[Attack, set[str]]]:
    """Attacks, each with the checks that call for it."""
    layers, context = "+".join(preflight.layers), cascade.context
    inside = inner_classifier(context.model, first_images(context.dataset, context.device)[: preflight.fits])
    if inside is not None:
        through_part = transfer_from(lambda: inside, "transfer-part")
        yield through_part, problems
        yield replace(through_part, targets=9, steps=50), problems
    if problems & (MISSING_GRADIENTS | ATTACK_FAILS):
        yield BPDA(layers=layers, inset=INSIDE), MISSING_GRADIENTS | ATTACK_FAILS
        yield BPDA(layers=layers, inset=INSIDE, loss="margin", targets=9, steps=50), MISSING_GRADIENTS | ATTACK_FAILS
    if problems & (SATURATED | ATTACK_FAILS):
        # Where the logits of all wrong classes are equally flat, only a target shows which class is near.
        for stretch in (0.1, 0.5):
            through = BPDA(
                layers=layers, inset=INSIDE, saturating=True, stretch=stretch, loss="margin", targets=9, steps=50
            )
            yield through, SATURATED | ATTACK_FAILS
    yield from _on_gray_levels(problems)
    if problems & RANDOM:
        yield EOT(draws=20, inset=INSIDE), RANDOM
    if problems & (ROUGH_LOSS | RANDOM | MISSED_BY_SUITE):
        yield EOT(draws=10, radius=0.3, inset=INSIDE), ROUGH_LOSS | RANDOM | MISSED_BY_SUITE
    yield PGD(steps=200, loss="margin", schedule="cosine", momentum=0.25, restarts=2, inset=INSIDE), problems
    yield resolve_attack(f"apgd:loss=dlr,targets=9,inset={INSET}"), problems
    if problems & (MISSED_BY_SUITE | SATURATED):
        yield Descent(inset=INSIDE), MISSED_BY_SUITE | SATURATED
    for name, train in (("transfer-readout", refitted), ("transfer", imitation)):
        surrogate = functools.partial(train, context.model, context.dataset, context.threat_model, context.device)
        yield transfer_from(surrogate, name), problems
    for text in SEARCHES_WITHOUT_GRADIENTS:
        yield resolve_attack(text), problems


def _on_gray_levels(problems: set[str]) -> Iterator[tuple[Attack, set[str]]]:
    """Attacks at points that an image file could hold."""
    if problems & ON_GRID:
        yield Quantized(), ON_GRID
        yield Quantized(targets=9, steps=50), ON_GRID


def _because(reasons: set[str], problems: set[str]) -> str:
    """The check that calls for the attack; the first by name where there are several."""
    return min(reasons & problems, default=min(reasons))
