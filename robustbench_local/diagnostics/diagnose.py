"""Whether an outcome can be trusted: checks, the adaptive attacks that they call for, and the checks again."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy import stats
from torch import Tensor

from robustbench_local.attacks import PGD, Attack
from robustbench_local.attacks.attack import spec_text
from robustbench_local.attacks.suites import MASKED, Stage
from robustbench_local.diagnostics.adaptive_attacks import select_adaptive_attacks
from robustbench_local.diagnostics.check import GRADIENT_ATTACK, PLANTED_ATTACK, Check, Outcome
from robustbench_local.diagnostics.indicators import ProbeSet
from robustbench_local.diagnostics.preflight import Preflight
from robustbench_local.diagnostics.verdict import finding_of
from robustbench_local.engine.cascade import Cascade, StageRun
from robustbench_local.engine.events import DIAGNOSTIC_STAGES
from robustbench_local.engine.protocol import Step, resolve_attack
from robustbench_local.results.checks import ADAPTED, CONVERGED, DESCENT, MORE_STEPS, NOISE, SQUARE
from robustbench_local.results.schema import Diagnostic
from robustbench_local.runtime.distributed import broadcast, rank_and_world

CHECK_FILES = ("outcome_checks",)
"""Modules of this package whose `CHECKS` are run. A new check is one file and its name here."""
MOST_PROBED = 32
"""Images that the checks measure, and that the probe attacks attack."""
PROBES = {
    NOISE: Stage(attack="noise:steps=50", most=MOST_PROBED, role="diagnostic"),
    SQUARE: Stage(attack="square:steps=200", most=MOST_PROBED, role="diagnostic"),
    DESCENT: Stage(attack="descent:steps=20", most=MOST_PROBED, role="diagnostic"),
    MORE_STEPS: Stage(
        attack="pgd:steps=100,loss=scaled-ce,schedule=cosine,momentum=0.25", most=MOST_PROBED, role="diagnostic"
    ),
}
"""Attacks on the robust samples with the smallest margins. What they fool no longer counts as robust."""
MOST_PLANTED_STEPS = 200
"""Steps of an adaptive attack that searches for planted adversarial examples."""
FIRST_PROBE, FIRST_ADAPTIVE, SECOND_PROBE = DIAGNOSTIC_STAGES, 200, 300
"""Stage numbers, which must differ from those of a suite."""


@dataclass(frozen=True)
class Diagnosis:
    """The findings, and the stages that further blocks of samples go through: number, step and slug of the check."""

    findings: list[Diagnostic]
    extra_stages: list[tuple[int, Step, str]]


def outcome_checks() -> list[Check]:
    """Return every registered check, in order."""
    modules = [importlib.import_module(f"{__package__}.{name}") for name in CHECK_FILES]
    return [check for module in modules for check in module.CHECKS]


def diagnose(cascade: Cascade, preflight: Preflight, earlier: Sequence[Diagnostic]) -> Diagnosis:
    """Check an outcome, run adaptive attacks where a check calls for them, and check again.

    cascade: a block of samples that has gone through its suite. earlier: the findings so far.
    """
    if cascade.context.threat_model.eps == 0 or not bool(cascade.context.states.correct.any()):
        return Diagnosis([], [])
    cascade.use_full_precision()
    positions = _probed_positions(cascade)[: preflight.fits]
    outcome = _outcome(cascade, positions)
    findings = broadcast([check.finding(outcome) for check in outcome_checks()] if rank_and_world()[0] == 0 else [])
    findings += [_run_probe(cascade, slug, FIRST_PROBE + number) for number, slug in enumerate(PROBES)]
    findings = [_with_more_steps(finding, findings) for finding in findings]
    robust_before = len(cascade.robust_positions)
    adaptive = select_adaptive_attacks(cascade, preflight, [*earlier, *findings], _missed_by_suite(cascade, positions))
    stages = [(FIRST_ADAPTIVE + n, attack.step, attack.because) for n, attack in enumerate(adaptive)]
    strongest = _run_adaptive(cascade, stages)
    if adaptive:
        findings = [*_recheck(cascade, positions, findings, strongest), _adaptive_summary(cascade, robust_before)]
    probes = [(FIRST_PROBE + n, _step(stage), slug) for n, (slug, stage) in enumerate(PROBES.items())]
    return Diagnosis(findings, [*probes, *stages])


def _step(stage: Stage) -> Step:
    return Step(resolve_attack(stage.attack), stage)


def _probed_positions(cascade: Cascade) -> Tensor:
    """Positions of correctly classified samples from all over the block."""
    correct = cascade.positions[cascade.context.states.correct[cascade.positions]]
    return correct[:: max(1, len(correct) // MOST_PROBED)][:MOST_PROBED]


def _probe_set(cascade: Cascade, positions: Tensor) -> ProbeSet:
    context = cascade.context
    images, labels = context.load(positions)
    indices = context.dataset.indices[positions].to(context.device)
    return ProbeSet(context.model, context.threat_model, images, labels, indices, context.seed)


def _outcome(cascade: Cascade, positions: Tensor) -> Outcome:
    robust = cascade.context.states.robust[positions].to(cascade.context.device)
    return Outcome(_probe_set(cascade, positions), robust)


def _run_probe(cascade: Cascade, slug: str, number: int) -> Diagnostic:
    """Run one more attack on the robust samples. If it fools more than a few, the suite has failed."""
    if not len(cascade.robust_positions):
        return Diagnostic(slug=slug, status="skipped", advice="no sample is robust")
    return probe_finding(slug, [cascade.run_stage(_step(PROBES[slug]), number, slug)])


def probe_finding(slug: str, runs: Sequence[StageRun]) -> Diagnostic:
    """Return the finding of a probe attack from its runs, one for each block."""
    fooled, robust = sum(run.fooled for run in runs), sum(run.robust_before for run in runs)
    suspicious = fooled > 0 and stats.binomtest(fooled, robust, MASKED, alternative="greater").pvalue < 0.05
    return Diagnostic(
        slug=slug,
        status="warn" if suspicious else "pass",
        value=fooled / robust,
        threshold=MASKED,
        n=sum(run.attacked for run in runs),
        advice=f"{spec_text(runs[0].step.attack)} fooled {fooled} of {robust} samples that the suite had not fooled"
        if suspicious
        else "",
    )


def over_blocks(findings: Sequence[Diagnostic], cascades: Sequence[Cascade]) -> list[Diagnostic]:
    """Return the findings with those of the probe attacks pooled over all blocks.

    A probe that warns only because of a later block fails: adaptive attacks were chosen after the first block.
    """
    pooled_findings = []
    for finding in findings:
        runs = [
            run
            for cascade in cascades
            for run in cascade.stage_runs
            if run.because == finding.slug and run.step.stage.role == "diagnostic" and run.robust_before
        ]
        pooled = probe_finding(finding.slug, runs) if finding.slug in PROBES and runs else finding
        fails = finding.status == "pass" and pooled.status == "warn"
        pooled_findings.append(pooled.model_copy(update={"status": "fail"}) if fails else finding)
    return pooled_findings


def _with_more_steps(finding: Diagnostic, findings: Sequence[Diagnostic]) -> Diagnostic:
    """A search that has not converged is a warning where more steps have found more."""
    if finding.slug != CONVERGED or finding.status == "skipped" or not finding.value:
        return finding
    if finding_of(findings, MORE_STEPS).status != "warn":
        return finding
    return finding.model_copy(
        update={
            "status": "warn",
            "threshold": 0.0,
            "advice": f"on {finding.value:.0%} of {finding.n} images the loss was still rising when the search ended, "
            "and more steps fooled more images",
        }
    )


def _missed_by_suite(cascade: Cascade, positions: Tensor) -> float:
    """The share of the probed robust images that plain PGD fools."""
    robust = cascade.context.states.robust[positions]
    if not robust.any():
        return 0.0
    if rank_and_world()[0] != 0:
        return broadcast(0.0)
    fooled = _probe_set(cascade, positions[robust]).fooled_by(PGD(steps=20))
    return broadcast(float(fooled.float().mean()))


def _run_adaptive(cascade: Cascade, stages: Sequence[tuple[int, Step, str]]) -> Attack:
    """Run the adaptive attacks while samples are robust; return the one that fools the most."""
    strongest: Attack = GRADIENT_ATTACK
    most_fooled = 0
    for number, step, because in stages:
        if not len(cascade.robust_positions):
            break
        run = cascade.run_stage(step, number, because)
        if run.fooled > most_fooled:
            strongest, most_fooled = step.attack, run.fooled
    return strongest


def _recheck(
    cascade: Cascade, positions: Tensor, findings: Sequence[Diagnostic], strongest: Attack
) -> list[Diagnostic]:
    """Repeat the checks that warned, after the adaptive attacks; those that warn again fail.

    strongest: the adaptive attack that fooled the most samples, to measure with.
    """
    outcome = replace(_outcome(cascade, positions), attack=strongest, planted_attack=_for_planted_examples(strongest))
    measurable = {check.slug: check for check in outcome_checks() if check.remeasure}
    rechecked = []
    for finding in findings:
        again = finding
        if finding.status == "warn" and finding.slug in PROBES and len(cascade.robust_positions):
            again = _run_probe(cascade, finding.slug, SECOND_PROBE + list(PROBES).index(finding.slug))
        elif finding.status == "warn" and finding.slug in measurable and outcome.robust.any():
            again = broadcast(measurable[finding.slug].finding(outcome) if rank_and_world()[0] == 0 else finding)
        if again is not finding and again.status == "warn":
            advice = f"{again.advice}; this is still so after the adaptive attacks"
            finding = again.model_copy(update={"status": "fail", "advice": advice})
        rechecked.append(finding)
    return rechecked


def _for_planted_examples(attack: Attack) -> Attack:
    """The attack with few enough steps to search for planted examples."""
    if isinstance(attack, PGD):
        return replace(attack, steps=min(attack.steps, MOST_PLANTED_STEPS))
    return PLANTED_ATTACK


def _adaptive_summary(cascade: Cascade, robust_before: int) -> Diagnostic:
    """What the adaptive attacks found. They run where something is wrong, so to find nothing is no proof."""
    robust = len(cascade.robust_positions)
    names = [
        spec_text(run.step.attack) for run in cascade.stage_runs if run.step.stage.role == "adaptive" and run.fooled
    ]
    return Diagnostic(
        slug=ADAPTED,
        status="warn" if robust < robust_before else "pass",
        value=float(robust_before - robust),
        threshold=0.0,
        n=robust_before,
        advice=f"{robust} of {robust_before} samples are still robust after {', '.join(names)}" if names else "",
    )
