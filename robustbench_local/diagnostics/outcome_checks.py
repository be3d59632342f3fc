"""The checks of an outcome, in one table.

A check that warns on a model without masking is as bad as one that misses masking. So every threshold keeps clear of
the values that honestly trained networks have shown.
"""

from __future__ import annotations

from itertools import pairwise

from scipy import stats
from torch import Tensor

from robustbench_local.attacks import FGSM
from robustbench_local.attacks.attack import spec_text
from robustbench_local.diagnostics import indicators
from robustbench_local.diagnostics.active_test import ActiveTestResult, active_test
from robustbench_local.diagnostics.check import MOST_PLANTED, Check, Measurement, Outcome, Skipped
from robustbench_local.results import checks
from robustbench_local.statistics.intervals import mcnemar

SIGNIFICANCE = 0.01
"""The p-value below which a difference is not chance."""
NO_ROBUST_IMAGE = Skipped("no image is robust, so the robust accuracy cannot be an overestimate")


def _significant(only_one: Tensor, only_other: Tensor) -> bool:
    """Whether two attacks differ on the same images beyond chance. bool [rows] each: fooled by one attack alone."""
    return mcnemar(int(only_one.sum()), int(only_other.sum())) < SIGNIFICANCE


def _gap(weaker: Tensor, stronger: Tensor, threshold: float) -> Measurement:
    """The share of images that only the stronger attack fools. bool [rows] each."""
    only_stronger, only_weaker = stronger & ~weaker, weaker & ~stronger
    gap = float(only_stronger.float().mean())
    return Measurement(gap, len(weaker), gap > threshold and _significant(only_stronger, only_weaker))


def one_step(outcome: Outcome) -> Measurement:
    """How many images FGSM fools and PGD-20 does not."""
    one, many = outcome.fooled_by_one_step, outcome.fooled_by_cross_entropy
    return Measurement(float((one & ~many).sum()), len(one), _significant(one & ~many, many & ~one))


MANY_STEPS_GAP = 0.25
LEAST_FOOLED = 8
"""Fooled images that are needed to say how many of them a single step fools."""


def many_steps(outcome: Outcome) -> Measurement | Skipped:
    """The share of all images that are fooled, but not by a single step along the margin.

    A saturated softmax has no influence on the margin.
    """
    probe = outcome.fooled_probe
    if len(probe) < LEAST_FOOLED:
        return Skipped(f"fewer than {LEAST_FOOLED} images were fooled")
    missed = float((~probe.fooled_by(FGSM(loss="margin"))).float().mean())
    return Measurement(missed * outcome.fooled_share, len(probe))


CROSS_ENTROPY_GAP = 0.1


def cross_entropy(outcome: Outcome) -> Measurement:
    """The share of images that the suite fools and PGD-20 on the cross-entropy does not."""
    return _gap(outcome.fooled_by_cross_entropy, ~outcome.robust, CROSS_ENTROPY_GAP)


def logit_scale(outcome: Outcome) -> Measurement:
    """The share of images that PGD on the cross-entropy fools only when the logits are rescaled."""
    return Measurement(indicators.gain_by_scale(outcome.probe, "ce"), len(outcome.probe))


def stability(outcome: Outcome) -> Measurement:
    """The relative change of the margins under small noise."""
    return Measurement(indicators.margin_instability(outcome.probe), len(outcome.probe))


MISMATCH = 0.6
"""The relative error above which a gradient misleads. Networks without masking reached 0.54 at one of 228 images of the
published MNIST network with eps 0.3, and 0.44 elsewhere; behind a ripple it is above 0.9."""


def gradient_prediction(outcome: Outcome) -> Measurement | Skipped:
    """The share of robust images at which the gradient predicts a small step's change of the margin badly."""
    probe = outcome.robust_images
    if not len(probe):
        return NO_ROBUST_IMAGE
    return Measurement(float((indicators.gradient_mismatch(probe) > MISMATCH).float().mean()), len(probe))


MOST_ROUNDED = 16
"""Images at which points between the gray levels are compared with points on them."""
JUMPS = 0.1
"""The share of robust images whose margin may jump on whole gray levels."""


def gray_level_rounding(outcome: Outcome) -> Measurement | Skipped:
    """The share of robust images whose margin jumps where every pixel has moved by whole gray levels."""
    probe = outcome.robust_images.first(MOST_ROUNDED)
    if not len(probe):
        return NO_ROBUST_IMAGE
    if probe.threat_model.eps < probe.threat_model.gray_level:
        return Skipped("eps is smaller than a gray level")
    return Measurement(float(indicators.jumps_on_gray_levels(probe).float().mean()), len(probe))


LEFT_IN_THE_BOX = 0.05
"""The share of images that may stay robust in a ball that contains every image."""


def growth(outcome: Outcome) -> Measurement | Skipped:
    """The share of robust images that stay robust in a ball that contains every image."""
    probe = outcome.robust_probe
    if not len(probe):
        return NO_ROBUST_IMAGE
    fooled = indicators.success_by_radius(probe, outcome.attack, outcome.ball_factors)
    shares = [float((~each).float().mean()) for each in fooled]
    rises = any(_significant(before & ~after, after & ~before) for before, after in pairwise(fooled))
    left = int((~fooled[-1]).sum())
    stays = stats.binomtest(left, len(probe), LEFT_IN_THE_BOX, alternative="greater").pvalue < SIGNIFICANCE
    details = {"shares": ", ".join(f"{share:.0%}" for share in shares), "attack": spec_text(outcome.attack)}
    return Measurement(shares[-1], len(probe), bool(rises or stays), details)


def best_iterate(outcome: Outcome) -> Measurement | Skipped:
    """How many images PGD fools at some step and not at its last. For information: every attack keeps its best."""
    if not len(outcome.robust_probe):
        return NO_ROBUST_IMAGE
    return Measurement(float(outcome.convergence[1]), len(outcome.robust_probe), False)


def convergence(outcome: Outcome) -> Measurement | Skipped:
    """The share of images whose loss still rises at the end. It matters only where more steps find more."""
    if not len(outcome.robust_probe):
        return NO_ROBUST_IMAGE
    return Measurement(outcome.convergence[0], len(outcome.robust_probe), False)


PLANTED_RATE = 0.5
"""The share of planted adversarial examples that an attack has to find."""


def _plant(outcome: Outcome, count: int) -> ActiveTestResult:
    probe = outcome.probe.first(count)
    return active_test(
        probe.model, probe.threat_model, probe.images, outcome.planted_attack, seed=probe.seed, batch_size=len(probe)
    )


def planted(outcome: Outcome) -> Measurement | Skipped:
    """The share of planted adversarial examples that the attack finds."""
    if not outcome.robust.any():
        return NO_ROBUST_IMAGE
    result = _plant(outcome, outcome.planted)
    if result.successes < PLANTED_RATE * result.images:  # too few images to tell
        result = _plant(outcome, MOST_PLANTED)
    if not result.images:
        return Skipped("no planted adversarial example can be separated from random points")
    rarely = stats.binomtest(result.successes, result.images, PLANTED_RATE, alternative="less").pvalue < 0.05
    # In small L2 and L1 balls random points are close to the boundary and may find all of them.
    no_better_than_random = result.successes <= min(result.random_successes, result.images - 1)
    return Measurement(
        result.successes / result.images,
        result.images,
        bool(rarely or (no_better_than_random and result.images > MOST_PLANTED // 2)),
        {"found": result.successes, "random": result.random_successes, "attack": spec_text(outcome.planted_attack)},
    )


CHECKS = (
    Check(
        checks.ONE_STEP, one_step, advice="FGSM fools {value:.0f} of {n} images that PGD-20 does not: gradients mislead"
    ),
    Check(
        checks.MANY_STEPS,
        many_steps,
        MANY_STEPS_GAP,
        "many steps fool {value:.0%} of all images that a single step does not, as {n} fooled images show: the loss is "
        "strongly curved around the images, as after single-step training with catastrophic overfitting",
        always=True,
    ),
    Check(
        checks.CROSS_ENTROPY,
        cross_entropy,
        CROSS_ENTROPY_GAP,
        "the attacks of this run fool {value:.0%} of {n} images that PGD-20 on the cross-entropy does not: a plain "
        "evaluation would overestimate the robustness of this model",
    ),
    Check(
        checks.SCALE,
        logit_scale,
        0.1,
        "PGD on the cross-entropy fools {value:.0%} more of {n} images when the logits are multiplied by 0.001 or "
        "1000: logits this large or small make the gradient of the softmax vanish",
    ),
    Check(
        checks.STABLE,
        stability,
        0.1,
        "noise of 4/255 changes the margins of {n} images by {value:.0%} on average: the loss is too rough or too "
        "random for gradient attacks",
    ),
    Check(
        checks.GRADIENT_PREDICTS_LOSS,
        gradient_prediction,
        0.0,
        "at {value:.0%} of {n} images a step of 3 % of eps along the gradient changes the margin otherwise than "
        "predicted, by more than 60 %: gradients are shattered, wrong, or too small to be exact there",
        always=True,
    ),
    Check(
        checks.GRAY_LEVELS,
        gray_level_rounding,
        JUMPS,
        "at {value:.0%} of {n} robust images the margin jumps where all pixels have moved by whole gray levels: the "
        "model recognizes points that no image file could hold",
        always=True,
    ),
    Check(
        checks.GROWTH,
        growth,
        LEFT_IN_THE_BOX,
        "{shares} of {n} robust images stay robust to {attack} when eps is 2 times, 4 times and very many times as "
        "large, although the last ball contains every image: the attack fails, not the adversary",
        always=True,
        remeasure=True,
    ),
    Check(checks.BEST_ITERATE_KEPT, best_iterate),
    Check(checks.CONVERGED, convergence),
    Check(
        checks.PLANTED,
        planted,
        PLANTED_RATE,
        "{attack} finds {found} of {n} planted adversarial examples, and random points find {random}: where this "
        "attack finds nothing, that shows nothing",
        always=True,
        remeasure=True,
    ),
)
"""The table. The order is that of the result."""
