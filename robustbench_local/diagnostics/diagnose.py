"""What the outcome of an evaluation says about itself: checks, the adaptive attacks that they call for, the verdict.

A check that warns or fails on a model that hides nothing would be as bad as one that is silent on one that does, so
every threshold lies where networks trained in every honest way tried here keep clear of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from scipy import stats
from torch import Tensor

from robustbench_local.attacks import FGSM, PGD, Attack
from robustbench_local.attacks.attack import spec_text
from robustbench_local.attacks.suites import MASKED, Stage
from robustbench_local.diagnostics import indicators as measurements
from robustbench_local.diagnostics.active_test import active_test
from robustbench_local.diagnostics.adaptive_attacks import select_adaptive_attacks
from robustbench_local.diagnostics.indicators import ProbeSet
from robustbench_local.diagnostics.preflight import Preflight
from robustbench_local.engine.cascade import Cascade, StageRun
from robustbench_local.engine.protocol import Step, resolve_attack
from robustbench_local.results.checks import (
    ADAPTED,
    BEST_ITERATE_KEPT,
    CONFIRMED,
    CONVERGED,
    CROSS_ENTROPY,
    DESCENT,
    FINITE_LOGITS,
    GRADIENT_PREDICTS_LOSS,
    GROWTH,
    MANY_STEPS,
    MORE_STEPS,
    NOISE,
    ONE_STEP,
    PLANTED,
    SCALE,
    SQUARE,
    STABLE,
)
from robustbench_local.results.schema import AttackReport, Diagnostic, Verdict
from robustbench_local.runtime.distributed import broadcast, rank_and_world
from robustbench_local.statistics.intervals import mcnemar

LOOKED_AT, GROWN, PLANTS = 32, 16, 8
"""How many correctly classified images are looked at; of those, in how many ever wider balls are searched, and how many
points are planted."""
PROBES = {
    NOISE: Stage(attack="noise:steps=50", most=LOOKED_AT, role="diagnostic"),
    SQUARE: Stage(attack="square:steps=200", most=LOOKED_AT, role="diagnostic"),
    DESCENT: Stage(attack="descent:steps=20", most=LOOKED_AT, role="diagnostic"),
    MORE_STEPS: Stage(
        attack="pgd:steps=100,loss=scaled-ce,schedule=cosine,momentum=0.25", most=LOOKED_AT, role="diagnostic"
    ),
}
"""Run on the standing samples that are nearest to falling; whom they fool no longer counts as robust."""
GRADIENT_ATTACK = PGD(steps=20, loss="scaled-ce", schedule="cosine", momentum=0.25, random_start=False)
"""What the checks measure with: the search with which every suite begins."""
PLANTED_ATTACK = PGD(steps=50, loss="margin", schedule="cosine", momentum=0.25, restarts=2)
FACTORS = (2.0, 4.0, 1e6)
"""How many times as wide as the ball the wider ones are; the last holds the whole box."""
SURE = 0.01
"""The p-value below which a difference is more than chance."""
FIRST_PROBE, FIRST_REMEDY, SECOND_PROBE = 100, 200, 300
"""Stage numbers, which must not meet those of a suite."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and the stages that further blocks of samples go through as well: number, step and check."""

    findings: list[Diagnostic]
    extra_stages: list[tuple[int, Step, str]]


def diagnose(cascade: Cascade, found: Preflight, earlier: Sequence[Diagnostic]) -> Diagnosis:
    """Look at an outcome, attack adaptively where there is a reason to, and look again.

    cascade: a block of samples that has gone through its suite. earlier: what is known already, from before the first
    attack on.
    """
    if cascade.context.threat_model.eps == 0 or not bool(cascade.context.states.correct.any()):
        return Diagnosis([], [])
    cascade.use_full_precision()
    chosen = _looked_at(cascade)[: found.fits]
    findings = broadcast(_measured(cascade, chosen) if rank_and_world()[0] == 0 else [])
    findings += [_probed(cascade, slug, FIRST_PROBE + number) for number, slug in enumerate(PROBES)]
    findings = [_rest(finding, findings) for finding in findings]
    extra = [(FIRST_PROBE + n, _step(stage), slug) for n, (slug, stage) in enumerate(PROBES.items())]
    stood = int(cascade.robust_positions.numel())
    called = select_adaptive_attacks(cascade, found, [*earlier, *findings], _overlooked(cascade, chosen))
    best: Attack = GRADIENT_ATTACK
    most = 0
    extra += [(FIRST_REMEDY + n, remedy.step, remedy.because) for n, remedy in enumerate(called)]
    for number, step, because in extra[len(PROBES) :]:
        if not len(cascade.robust_positions):
            break
        ran = cascade.run_stage(step, number, because)
        if ran.fooled > most:
            best, most = step.attack, ran.fooled
    if called:
        findings = [*_recheck(cascade, chosen, findings, best), _adaptive_summary(cascade, stood)]
    return Diagnosis(findings, extra)


def _step(stage: Stage) -> Step:
    return Step(resolve_attack(stage.attack), stage)


def _looked_at(cascade: Cascade) -> Tensor:
    """Positions of correctly classified samples from all over the block."""
    correct = cascade.positions[cascade.context.states.correct[cascade.positions]]
    return correct[:: max(1, len(correct) // LOOKED_AT)][:LOOKED_AT]


def _looked(cascade: Cascade, positions: Tensor) -> ProbeSet:
    context = cascade.context
    images, labels = context.load(positions)
    indices = context.dataset.indices[positions].to(context.device)
    return ProbeSet(context.model, context.threat_model, images, labels, indices, context.seed)


# Before anything adaptive.


def _measured(cascade: Cascade, chosen: Tensor) -> list[Diagnostic]:
    looked, stood = _looked(cascade, chosen), cascade.context.states.robust[chosen].to(cascade.context.device)
    one, many = looked.fooled_by(FGSM()), looked.fooled_by(PGD(steps=20))
    # A saturated softmax is another matter, so this single step is along the margin.
    single = looked.fooled_by(FGSM(loss="margin"))
    findings = [_one_step(one, many), _many_steps(single, ~stood | many), _cross_entropy(many, ~stood)]
    findings += [_scale(looked), _stable(looked), _leads(looked)]
    standing = looked.chosen(stood)
    if len(standing):
        findings.append(_growth(standing.first(GROWN), GRADIENT_ATTACK))
        moving, lost = measurements.convergence(standing.first(GROWN), replace(GRADIENT_ATTACK, steps=50))
        findings.append(
            Diagnostic(slug=BEST_ITERATE_KEPT, status="pass", value=float(lost), n=min(GROWN, len(standing)))
        )
        findings.append(Diagnostic(slug=CONVERGED, status="pass", value=moving, n=min(GROWN, len(standing))))
        findings.append(_planted(looked.first(PLANTS), PLANTED_ATTACK, cascade))
    else:
        findings += [
            Diagnostic(slug=slug, status="skipped", advice="nothing stands that could be too much")
            for slug in (GROWTH, BEST_ITERATE_KEPT, CONVERGED, PLANTED)
        ]
    return findings


def _significantly(only_one: Tensor, only_other: Tensor) -> bool:
    """Whether one attack fools more than another on the same images, beyond chance. bool [rows] each."""
    return mcnemar(int(only_one.sum()), int(only_other.sum())) < SURE


def _one_step(one: Tensor, many: Tensor) -> Diagnostic:
    only = int((one & ~many).sum())
    bad = _significantly(one & ~many, many & ~one)
    return Diagnostic(
        slug=ONE_STEP,
        status="warn" if bad else "pass",
        value=float(only),
        n=len(one),
        advice=f"FGSM fools {only} of {len(one)} images that PGD-20 does not: gradients mislead" if bad else "",
    )


def _many_steps(one: Tensor, all_: Tensor) -> Diagnostic:
    gap, threshold = float((all_ & ~one).float().mean()), 0.3
    bad = gap > threshold and _significantly(all_ & ~one, one & ~all_)
    return Diagnostic(
        slug=MANY_STEPS,
        status="warn" if bad else "pass",
        value=gap,
        threshold=threshold,
        n=len(one),
        advice=f"{gap:.0%} of {len(one)} images stand after FGSM and fall to many steps: the loss is bent around the "
        "images, as after training on single steps that overfitted to them (catastrophic overfitting)"
        if bad
        else "",
    )


def _cross_entropy(plain: Tensor, all_: Tensor) -> Diagnostic:
    gap, threshold = float((all_ & ~plain).float().mean()), 0.1
    bad = gap > threshold and _significantly(all_ & ~plain, plain & ~all_)
    return Diagnostic(
        slug=CROSS_ENTROPY,
        status="warn" if bad else "pass",
        value=gap,
        threshold=threshold,
        n=len(plain),
        advice=f"{gap:.0%} of {len(plain)} images stand after PGD-20 on the cross-entropy and fell to the attacks of "
        "this run: a plain evaluation of this model would overestimate it"
        if bad
        else "",
    )


def _scale(looked: ProbeSet) -> Diagnostic:
    gain, threshold = measurements.gain_by_scale(looked, "ce"), 0.1
    return Diagnostic(
        slug=SCALE,
        status="warn" if gain > threshold else "pass",
        value=gain,
        threshold=threshold,
        n=len(looked),
        advice=f"{gain:.0%} of {len(looked)} images more fall to PGD on the cross-entropy when the logits are "
        "multiplied by 0.001 or 1000: the softmax hides the gradient of logits so large or so small"
        if gain > threshold
        else "",
    )


def _stable(looked: ProbeSet) -> Diagnostic:
    value, threshold = measurements.margin_instability(looked), 0.1
    return Diagnostic(
        slug=STABLE,
        status="warn" if value > threshold else "pass",
        value=value,
        threshold=threshold,
        n=len(looked),
        advice=f"noise of 4/255 moves the margins of {len(looked)} images by {value:.0%} of themselves on average: the "
        "loss is too rough, or too random, for gradients to be a guide"
        if value > threshold
        else "",
    )


def _leads(looked: ProbeSet) -> Diagnostic:
    value, threshold = measurements.gradient_mismatch(looked), 0.5
    return Diagnostic(
        slug=GRADIENT_PREDICTS_LOSS,
        status="warn" if value > threshold else "pass",
        value=value,
        threshold=threshold,
        n=len(looked),
        advice=f"a step of a tenth of eps along the gradient changes the margin otherwise than the gradient says, by "
        f"{value:.0%} at the median of {len(looked)} images: gradients are shattered, or too small to be exact"
        if value > threshold
        else "",
    )


def _growth(looked: ProbeSet, attack: Attack) -> Diagnostic:
    fooled = measurements.success_by_radius(looked, attack, FACTORS)
    shares = [float((~each).float().mean()) for each in fooled]
    risen = any(_significantly(before & ~after, after & ~before) for before, after in pairwise(fooled))
    left = int((~fooled[-1]).sum())
    stays = stats.binomtest(left, len(looked), 0.05, alternative="greater").pvalue < SURE
    told = ", ".join(f"{share:.0%}" for share in shares)
    return Diagnostic(
        slug=GROWTH,
        status="warn" if risen or stays else "pass",
        value=shares[-1],
        threshold=0.05,
        n=len(looked),
        advice=f"in balls 2, 4 and very many times as wide, {told} of the images that stand still do under "
        f"{spec_text(attack)}, although the last holds every image there is: the attack fails, not the adversary"
        if risen or stays
        else "",
    )


def _planted(looked: ProbeSet, attack: Attack, cascade: Cascade) -> Diagnostic:
    planted = active_test(
        cascade.context.model, looked.threat_model, looked.images, attack, seed=looked.seed, batch_size=len(looked)
    )
    if not planted.images:
        return Diagnostic(slug=PLANTED, status="skipped", advice="no planted point could be told from the others")
    rate, threshold = planted.found / planted.images, 0.5
    rarely = stats.binomtest(planted.found, planted.images, threshold, alternative="less").pvalue < 0.05
    # In small balls of L2 and L1 random points lie near the edge and may find all of them.
    bad = rarely or (planted.found < planted.images and planted.found <= planted.by_chance)
    return Diagnostic(
        slug=PLANTED,
        status="warn" if bad else "pass",
        value=rate,
        threshold=threshold,
        n=planted.images,
        advice=f"of {planted.images} points that are known to be there, {spec_text(attack)} finds {planted.found}, and "
        f"random points find {planted.by_chance}: what it does not find elsewhere says nothing"
        if bad
        else "",
    )


def _probed(cascade: Cascade, slug: str, number: int) -> Diagnostic:
    """A further attack on what stands: more than a few of those that it fools show that the suite has failed."""
    if not len(cascade.robust_positions):
        return Diagnostic(slug=slug, status="skipped", advice="nothing stands that could be too much")
    return _probe_diagnostic(slug, [cascade.run_stage(_step(PROBES[slug]), number, slug)])


def _probe_diagnostic(slug: str, runs: Sequence[StageRun]) -> Diagnostic:
    fooled, stood = sum(ran.fooled for ran in runs), sum(ran.robust_before for ran in runs)
    bad = fooled > 0 and stats.binomtest(fooled, stood, MASKED, alternative="greater").pvalue < 0.05
    return Diagnostic(
        slug=slug,
        status="warn" if bad else "pass",
        value=fooled / stood,
        threshold=MASKED,
        n=sum(ran.attacked for ran in runs),
        advice=f"{spec_text(runs[0].step.attack)} still fooled {fooled} of {stood} samples that had stood"
        if bad
        else "",
    )


def over_blocks(findings: Sequence[Diagnostic], cascades: Sequence[Cascade]) -> list[Diagnostic]:
    """The findings with what the same probes found in all blocks: what shows in a later one alone, after which nothing
    adaptive was called for, fails.
    """
    told = []
    for finding in findings:
        runs = [
            ran
            for cascade in cascades
            for ran in cascade.stage_runs
            if ran.because == finding.slug and ran.step.stage.role == "diagnostic" and ran.robust_before
        ]
        pooled = _probe_diagnostic(finding.slug, runs) if finding.slug in PROBES and runs else finding
        if finding.status == "pass" and pooled.status == "warn":
            finding = pooled.model_copy(update={"status": "fail"})
        told.append(finding)
    return told


def _rest(finding: Diagnostic, findings: Sequence[Diagnostic]) -> Diagnostic:
    """A search that was still moving matters where going on has found something."""
    if finding.slug != CONVERGED or finding.status == "skipped" or not finding.value:
        return finding
    more = next(each for each in findings if each.slug == MORE_STEPS)
    if more.status != "warn":
        return finding
    return finding.model_copy(
        update={
            "status": "warn",
            "threshold": 0.0,
            "advice": f"on {finding.value:.0%} of {finding.n} images the loss was still rising when the search ended, and "
            "more steps found more",
        }
    )


def _overlooked(cascade: Cascade, chosen: Tensor) -> float:
    """The share of the standing images that are looked at that plain PGD fools."""
    standing = cascade.context.states.robust[chosen]
    if not standing.any():
        return 0.0
    looked = _looked(cascade, chosen[standing])
    return broadcast(float(looked.fooled_by(PGD(steps=20)).float().mean()) if rank_and_world()[0] == 0 else 0.0)


# After the adaptive attacks.


def _recheck(cascade: Cascade, chosen: Tensor, findings: Sequence[Diagnostic], best: Attack) -> list[Diagnostic]:
    """The findings in the light of what the adaptive attacks did: what is still so fails."""
    stands = len(cascade.robust_positions)
    standing = chosen[cascade.context.states.robust[chosen]]
    measured: dict[str, Callable[[], Diagnostic]] = {
        GROWTH: lambda: _growth(_looked(cascade, standing).first(GROWN), best),
        PLANTED: lambda: _planted(_looked(cascade, chosen).first(PLANTS), _milder(best), cascade),
    }
    after = []
    for finding in findings:
        if finding.status != "warn":
            after.append(finding)
            continue
        again = finding.model_copy(update={"status": "pass"})
        if stands and finding.slug in PROBES:
            again = _probed(cascade, finding.slug, SECOND_PROBE + list(PROBES).index(finding.slug))
        elif len(standing) and finding.slug in measured:
            again = broadcast(measured[finding.slug]() if rank_and_world()[0] == 0 else finding)
        if again.status == "warn":
            still = f"{again.advice}; this is so after the adaptive attacks too"
            after.append(again.model_copy(update={"status": "fail", "advice": still}))
        else:
            after.append(finding)
    return after


def _adaptive_summary(cascade: Cascade, stood: int) -> Diagnostic:
    """What the adaptive attacks did. They are called for where something is wrong, so finding nothing is no merit."""
    stands = len(cascade.robust_positions)
    names = [
        spec_text(ran.step.attack) for ran in cascade.stage_runs if ran.step.stage.role == "adaptive" and ran.fooled
    ]
    return Diagnostic(
        slug=ADAPTED,
        status="warn" if stands < stood else "pass",
        value=float(stood - stands),
        threshold=0.0,
        n=stood,
        advice=f"of {stood} samples that had stood {stands} are left, after {', '.join(names)}" if names else "",
    )


def _milder(attack: Attack) -> Attack:
    """The attack with no more steps than the active test can pay for."""
    return replace(attack, steps=min(attack.steps, 200)) if isinstance(attack, PGD) else PLANTED_ATTACK


def finding_of(findings: Sequence[Diagnostic], slug: str) -> Diagnostic:
    """The finding of that check."""
    return next(finding for finding in findings if finding.slug == slug)


def after_attacks(reports: list[AttackReport], not_numbers: int) -> list[Diagnostic]:
    """What the search itself says about how far its outcome can be believed."""
    unconfirmed = sum(report.unconfirmed for report in reports)
    return [
        Diagnostic(
            slug=CONFIRMED,
            status="warn" if unconfirmed else "pass",
            value=float(unconfirmed),
            threshold=0.0,
            advice=f"the model answered otherwise when it was asked again about {unconfirmed} successes (random, or "
            "dependent on the batch?): they count as robust, so the robust accuracy may be an overestimate"
            if unconfirmed
            else "",
        ),
        Diagnostic(
            slug=FINITE_LOGITS,
            status="fail" if not_numbers else "pass",
            value=float(not_numbers),
            threshold=0.0,
            advice=f"at {not_numbers} points the model gave NaN, which count as fooled where there is no target: what "
            "it answers there is no answer"
            if not_numbers
            else "",
        ),
    ]


def verdict_of(findings: Sequence[Diagnostic], *, assessed: bool = True) -> Verdict:
    """not-trusted where a check failed for good, doubtful where one warned, else trusted.

    assessed: whether the outcome was looked at after the attacks; without that nothing can be trusted outright.
    """
    statuses = {finding.status for finding in findings}
    troubled = [finding for finding in findings if finding.status in ("warn", "fail")]
    calm = "trusted" if assessed else "not-assessed"
    return Verdict(
        status="not-trusted" if "fail" in statuses else "doubtful" if troubled else calm,  # type: ignore[arg-type]
        reasons=[f"{finding.sentence}: {finding.advice}" for finding in troubled],
    )
