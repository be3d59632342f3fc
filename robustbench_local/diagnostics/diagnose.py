"""Whether an outcome can be trusted: cheap checks and probes; where they raise a doubt, adaptive attacks.

A doubt is no warning. It becomes one where the adaptive attacks show that the suite had missed something.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from robustbench_local.attacks import PGD, Attack
from robustbench_local.attacks.attack import spec_text
from robustbench_local.diagnostics import probes
from robustbench_local.diagnostics.adaptive_attacks import REASONS, select_adaptive_attacks
from robustbench_local.diagnostics.check import (
    GRADIENT_ATTACK,
    MOST_IN_WIDE_BALLS,
    MOST_PLANTED,
    PLANTED_ATTACK,
    WIDEST,
    Check,
    Outcome,
)
from robustbench_local.diagnostics.indicators import ProbeSet
from robustbench_local.diagnostics.preflight import Preflight
from robustbench_local.diagnostics.probes import Probing, probe_finding
from robustbench_local.diagnostics.transfer_attack import Transfer
from robustbench_local.diagnostics.verdict import finding_of
from robustbench_local.engine.cascade import Cascade
from robustbench_local.engine.protocol import Step
from robustbench_local.results.checks import ADAPTED, PROBED
from robustbench_local.results.schema import Diagnostic
from robustbench_local.runtime.distributed import broadcast, rank_and_world
from robustbench_local.statistics.sampling import most_remaining

CHECK_FILES = ("outcome_checks",)
"""Modules of this package whose `CHECKS` are run. A new check is one file and its name here."""
SAMPLED = ("fast", "custom")
"""Protocols after which adaptive attacks run on the samples that the probes asked, not on all robust ones."""
MOST_PROBED = 32
"""Images that the checks measure where a doubt has been raised."""
MOST_ADAPTED = 500
"""Robust samples that adaptive attacks run on where they do not run on all."""
SIGNIFICANCE, FEW = 0.05, 0.05
"""A doubt is confirmed where the suite has missed significantly more than `probes.LIMIT` of all samples, or more than
one and more than the share FEW of those that it left robust."""
MOST_PLANTED_STEPS = 200
"""Steps of an adaptive attack that searches for planted adversarial examples."""
FIRST_ADAPTIVE = 500
"""Number of the first adaptive attack's stage, after those of the probes."""
NOTHING_ROBUST = "no image is robust, so the robust accuracy cannot be an overestimate"
NO_DOUBT = "explains a doubt, and none was raised"


@dataclass(frozen=True)
class Diagnosis:
    """The findings, and what further blocks of samples go through.

    probing: what the probes found; None where nothing was robust. adaptive: number, step and slug of the check.
    """

    findings: list[Diagnostic]
    probing: Probing | None = None
    adaptive: tuple[tuple[int, Step, str], ...] = ()
    everything: bool = True


def outcome_checks() -> list[Check]:
    """Return every registered check, in order."""
    modules = [importlib.import_module(f"{__package__}.{name}") for name in CHECK_FILES]
    return [check for module in modules for check in module.CHECKS]


def diagnose(cascade: Cascade, preflight: Preflight, earlier: Sequence[Diagnostic], protocol: str) -> Diagnosis:
    """Check an outcome, and run adaptive attacks where a doubt is raised.

    cascade: a block of samples that has gone through its suite. earlier: the findings so far. protocol: the name of the
    suite, or "custom".
    """
    if cascade.context.threat_model.eps == 0 or not bool(cascade.context.states.correct.any()):
        return Diagnosis([])
    robust_before = len(cascade.robust_positions)
    if not robust_before:
        skipped = [_skipped(slug, NOTHING_ROBUST) for slug in [*(check.slug for check in outcome_checks()), PROBED]]
        return Diagnosis(skipped)
    cascade.use_full_precision()
    smells = _first_look(cascade, preflight)
    warned = {finding.slug for finding in earlier if finding.status in ("warn", "fail")} & REASONS
    problems = warned | set(preflight.doubts) | {finding.slug for finding in smells if finding.status == "warn"}
    everything = protocol not in SAMPLED
    probing = probes.run_probes(cascade, probes.OWN_PROBES if protocol == "custom" else probes.PROBES)
    if probing.suspicious:
        problems.add(PROBED)
    if not problems:
        explanations = [_skipped(check.slug, NO_DOUBT) for check in outcome_checks() if not check.always]
        return Diagnosis([*smells, *explanations, probe_finding(probing, warns=False)], probing, everything=everything)
    known = bool(warned) or probing.suspicious
    return _resolve_doubt(
        cascade, preflight, _Doubt(problems, known, smells, probing, robust_before), everything=everything
    )


@dataclass(frozen=True)
class _Doubt:
    """problems: slugs of what raised it. known: whether it rests on more than a few images' measurements.

    smells: the findings of the first look. robust_before: how many samples were robust after the suite.
    """

    problems: set[str]
    known: bool
    smells: list[Diagnostic]
    probing: Probing
    robust_before: int


def _resolve_doubt(cascade: Cascade, preflight: Preflight, doubt: _Doubt, *, everything: bool) -> Diagnosis:
    """Explain a doubt by all checks, run adaptive attacks, and say what is left of it."""
    positions = _spread(cascade, MOST_PROBED)[: preflight.fits]
    findings = _explain(cascade, positions, doubt.smells)
    problems = doubt.problems | ({finding.slug for finding in findings if finding.status == "warn"} & REASONS)
    adaptive = select_adaptive_attacks(cascade, preflight, problems, _missed_by_suite(cascade, positions))
    stages = tuple((FIRST_ADAPTIVE + n, attack.step, attack.because) for n, attack in enumerate(adaptive))
    outcome = _attack_adaptively(cascade, stages, doubt, everything=everything)
    probing, limit = outcome.probing, doubt.probing.limit
    lost = doubt.robust_before - len(cascade.robust_positions)
    remaining = 0
    if not outcome.everything and len(probing.asked) < probing.population:
        remaining = most_remaining(lost, probing.population, probing.share, probes.ALPHA)
    significant = stats.binomtest(lost, probing.n, probes.LIMIT, alternative="greater").pvalue < SIGNIFICANCE
    many_of_few = lost > 1 and lost > FEW * doubt.robust_before
    confirmed = remaining > limit or bool(significant) or many_of_few
    findings = _recheck(cascade, positions, findings, confirmed=confirmed)
    summary = _adaptive_summary(cascade, doubt.robust_before, remaining, confirmed=confirmed)
    warns = probing.remaining > limit or (confirmed and probing.found > 0)
    return Diagnosis([*findings, probe_finding(probing, warns=warns), summary], probing, stages, outcome.everything)


class _Attacked(NamedTuple):
    """probing: what the probes have found by now. everything: whether the attacks ran on all robust samples."""

    probing: Probing
    everything: bool


def _attack_adaptively(
    cascade: Cascade, stages: Sequence[tuple[int, Step, str]], doubt: _Doubt, *, everything: bool
) -> _Attacked:
    """The rest of the probes, and the adaptive attacks.

    On everything where that is wanted, unless the doubt rests on a few measurements and the samples asked so far
    do not confirm it.
    """
    probing = doubt.probing
    if not everything and doubt.known:
        probing = probes.ask_more(cascade, probing, MOST_ADAPTED)
    if everything and doubt.known:
        probing = probes.ask_rest(cascade, probing)
    before = len(cascade.robust_positions)
    _run_adaptive(cascade, stages, probing.asked)
    if not everything or len(probing.asked) == probing.population:
        return _Attacked(probing, everything=everything)
    if not doubt.known and len(cascade.robust_positions) == before:
        return _Attacked(probing, everything=False)
    probing = probes.ask_rest(cascade, probing)
    rest = tuple((number + len(stages), step, because) for number, step, because in stages)
    _run_adaptive(cascade, rest, None)
    return _Attacked(probing, everything=True)


def as_warnings(findings: Sequence[Diagnostic], doubts: Sequence[str], diagnosis: Diagnosis) -> list[Diagnostic]:
    """The findings before the attacks in the light of the diagnosis.

    A doubt that the adaptive attacks have confirmed becomes a warning.
    """
    confirmed = any(each.slug == ADAPTED and each.status == "warn" for each in diagnosis.findings)
    return [
        finding.model_copy(update={"status": "warn"})
        if confirmed and finding.slug in doubts and finding.status == "pass"
        else finding
        for finding in findings
    ]


def continue_diagnosis(cascade: Cascade, diagnosis: Diagnosis) -> Probing | None:
    """The probes and adaptive attacks of the first block's diagnosis on a further block."""
    if diagnosis.probing is None or not len(cascade.robust_positions):
        return None
    cascade.use_full_precision()
    probing = probes.probe_block(cascade, diagnosis.probing)
    if diagnosis.adaptive and diagnosis.everything:
        probing = probes.ask_rest(cascade, probing)
    if diagnosis.adaptive:
        _run_adaptive(cascade, diagnosis.adaptive, None if diagnosis.everything else probing.asked)
    return probing


def over_blocks(findings: Sequence[Diagnostic], probings: Sequence[Probing]) -> list[Diagnostic]:
    """The findings with that of the probes pooled over all blocks.

    probings: those of the blocks in which something was robust. Probes that are suspicious only because of a later
    block fail: adaptive attacks were chosen after the first block.
    """
    if not probings:
        return list(findings)
    together = probes.pooled(probings)
    first = finding_of(findings, PROBED)
    pooled = probe_finding(together, warns=together.suspicious or first.status == "warn")
    if pooled.status == "warn" and first.status == "pass":
        pooled = pooled.model_copy(update={"status": "fail"})
    return [pooled if each.slug == PROBED else each for each in findings]


def _skipped(slug: str, reason: str) -> Diagnostic:
    return Diagnostic(slug=slug, status="skipped", advice=reason)


def _spread(cascade: Cascade, most: int) -> Tensor:
    """Positions of correctly classified samples from all over the block."""
    correct = cascade.positions[cascade.context.states.correct[cascade.positions]]
    return correct[:: max(1, len(correct) // most)][:most]


def _probe_set(cascade: Cascade, positions: Tensor) -> ProbeSet:
    context = cascade.context
    images, labels = context.load(positions)
    indices = context.dataset.indices[positions].to(context.device)
    return ProbeSet(context.model, context.threat_model, images, labels, indices, context.seed)


def _outcome(cascade: Cascade, positions: Tensor) -> Outcome:
    states = cascade.context.states
    correct = cascade.positions[states.correct[cascade.positions]]
    fooled_share = float((~states.robust[correct]).float().mean())
    return Outcome(_probe_set(cascade, positions), states.robust[positions].to(cascade.context.device), fooled_share)


def _first_look(cascade: Cascade, preflight: Preflight) -> list[Diagnostic]:
    """The checks that follow every suite: on a few robust images of all strata, and on a few that are fooled."""
    robust = probes.draw(cascade).in_turn()
    count = min(MOST_IN_WIDE_BALLS // 2, max(2, len(robust) // 8))
    fooled = _spread(cascade, len(cascade.positions))
    fooled = fooled[~cascade.context.states.robust[fooled]]
    fooled = fooled[:: max(1, len(fooled) // preflight.fits)]
    outcome = replace(
        _outcome(cascade, torch.cat([robust[: preflight.fits], fooled[: preflight.fits]])),
        attack=replace(GRADIENT_ATTACK, steps=10),
        ball_factors=(WIDEST,),
        planted=min(MOST_PLANTED // 2, math.ceil(count / 2)),
        most_in_wide_balls=count,
    )
    return broadcast([check.finding(outcome) for check in outcome_checks() if check.always] if _first_rank() else [])


def _explain(cascade: Cascade, positions: Tensor, smells: Sequence[Diagnostic]) -> list[Diagnostic]:
    """All checks, on more images; what smelled in the first look stays a warning."""
    outcome, warned = _outcome(cascade, positions), {each.slug: each for each in smells if each.status == "warn"}
    findings = broadcast([check.finding(outcome) for check in outcome_checks()] if _first_rank() else [])
    return [finding if finding.status == "warn" else warned.get(finding.slug, finding) for finding in findings]


def _first_rank() -> bool:
    return rank_and_world()[0] == 0


def _missed_by_suite(cascade: Cascade, positions: Tensor) -> float:
    """The share of the probed robust images that plain PGD fools."""
    robust = cascade.context.states.robust[positions]
    if not robust.any():
        return 0.0
    if not _first_rank():
        return broadcast(0.0)
    fooled = _probe_set(cascade, positions[robust]).fooled_by(PGD(steps=20))
    return broadcast(float(fooled.float().mean()))


def _run_adaptive(cascade: Cascade, stages: Sequence[tuple[int, Step, str]], asked: Tensor | None) -> None:
    """Run the adaptive attacks while samples are robust.

    asked: positions, of which the robust ones are attacked; None for every robust sample.
    """
    for number, step, because in stages:
        robust = cascade.robust_positions if asked is None else asked[cascade.context.states.robust[asked]]
        if not len(robust):
            break
        cascade.run_stage(step, number, because, robust)


def _strongest(cascade: Cascade) -> Attack:
    """The attack along the model's own gradients that fooled the most of what the suite had left robust."""
    strongest: Attack = GRADIENT_ATTACK
    most_fooled = 0
    for run in cascade.stage_runs:
        attack = run.step.attack
        after_suite = run.step.stage.role in ("diagnostic", "adaptive")
        own = isinstance(attack, PGD) and not isinstance(attack, Transfer)
        if after_suite and own and run.fooled > most_fooled:
            strongest, most_fooled = attack, run.fooled
    return strongest


def _recheck(
    cascade: Cascade, positions: Tensor, findings: Sequence[Diagnostic], *, confirmed: bool
) -> list[Diagnostic]:
    """Settle the checks that warned, after the adaptive attacks.

    Those that can be repeated, with the strongest attack so far, and warn again fail; the others stay warnings only
    where the doubt is confirmed.
    """
    strongest = _strongest(cascade)
    outcome = replace(_outcome(cascade, positions), attack=strongest, planted_attack=_for_planted_examples(strongest))
    repeatable = {check.slug: check for check in outcome_checks() if check.remeasure}
    settled = []
    for finding in findings:
        again = finding
        if finding.status == "warn" and finding.slug in repeatable and outcome.robust.any():
            again = broadcast(repeatable[finding.slug].finding(outcome) if _first_rank() else finding)
        if again is not finding and again.status == "warn":
            advice = f"{again.advice}; this is still so after the adaptive attacks"
            settled.append(again.model_copy(update={"status": "fail", "advice": advice}))
        elif finding.status == "warn" and not confirmed:
            settled.append(finding.model_copy(update={"status": "pass", "advice": ""}))
        else:
            settled.append(finding)
    return settled


def _for_planted_examples(attack: Attack) -> Attack:
    """The attack with few enough steps to search for planted examples."""
    if isinstance(attack, PGD):
        return replace(attack, steps=min(attack.steps, MOST_PLANTED_STEPS))
    return PLANTED_ATTACK


def _adaptive_summary(cascade: Cascade, robust_before: int, remaining: int, *, confirmed: bool) -> Diagnostic:
    """What the adaptive attacks found beyond the suite.

    remaining: the bound on how many more they would fool among the samples on which they did not run.
    """
    lost = robust_before - len(cascade.robust_positions)
    names = [
        spec_text(run.step.attack)
        for run in cascade.stage_runs
        if run.step.stage.role in ("diagnostic", "adaptive") and run.fooled
    ]
    found = f"{lost} of {robust_before} samples that the suite left robust fell"
    found += f" to {', '.join(dict.fromkeys(names))}" if names else ""
    more = (
        f"; with 97.5 % confidence, at most {remaining} of the samples on which adaptive attacks did not run would: "
        "run --suite standard"
        if remaining
        else ""
    )
    return Diagnostic(
        slug=ADAPTED,
        status="warn" if confirmed else "pass",
        value=(lost + remaining) / len(cascade.positions),
        threshold=probes.LIMIT,
        n=robust_before,
        advice=found + more if confirmed else "",
    )
