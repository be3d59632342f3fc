"""The checks of an evaluation: a stable slug for each, and the sentences that say how it turned out.

Results, gates and tests rely on the slugs; the sentences are for people and may improve.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Before the first attack.
IMAGE_RANGE = "images-in-range"
CLASS_COUNT = "enough-classes"
EVAL_MODE = "layers-in-eval-mode"
LOGITS = "outputs-are-logits"
DETERMINISTIC = "forward-is-deterministic"
BATCH_INDEPENDENT = "batch-independent"
MODE_INDEPENDENT = "mode-independent"
STATELESS = "stateless"
GRADIENTS = "gradients-reach-input"
LAYERS = "layers-pass-gradients"
EVERY_PIXEL = "every-pixel-has-gradient"
NO_TEST_TIME_OPTIMIZATION = "no-test-time-optimization"
CLEAN_ACCURACY = "clean-accuracy-plausible"
OUTPUT = "logits-among-outputs"
PICTURES = "all-pictures-read"
CLASS_DIRECTORIES = "class-directories-fit-model"
PIXELS = "pixels-fit-model"

# During the attacks.
PROBES_AGREE = "gradient-free-probe-agrees"
REGIONS_SEARCHED = "activation-regions-searched"
CONFIRMED = "successes-confirmed"
FINITE_LOGITS = "logits-finite-under-attack"
POINTS_ALLOWED = "adversarial-images-allowed"
ATTACK_BATCH_INDEPENDENT = "attack-batch-independent"

# After the attacks.
ONE_STEP = "iterative-beats-one-step"
MANY_STEPS = "one-step-comes-close"
CROSS_ENTROPY = "cross-entropy-suffices"
SCALE = "logit-scale-harmless"
STABLE = "margins-stable-under-noise"
GRADIENT_PREDICTS_LOSS = "gradient-predicts-loss"
GRAY_LEVELS = "gray-level-rounding-harmless"
GROWTH = "accuracy-falls-to-zero"
BEST_ITERATE_KEPT = "best-iterate-kept"
CONVERGED = "search-converged"
PLANTED = "planted-points-found"
PROBED = "probes-find-no-more"
NOISE = "random-points-find-no-more"
SQUARE = "gradient-free-attack-finds-no-more"
MORE_STEPS = "more-steps-find-no-more"
DESCENT = "descent-finds-no-more"
ADAPTED = "adaptive-attacks-find-no-more"

AFTER_ATTACKS = (
    ONE_STEP,
    MANY_STEPS,
    CROSS_ENTROPY,
    SCALE,
    STABLE,
    GRADIENT_PREDICTS_LOSS,
    GRAY_LEVELS,
    GROWTH,
    BEST_ITERATE_KEPT,
    CONVERGED,
    PLANTED,
    PROBED,
)
"""The gradient-masking checks, which run after the attacks of a suite; `--no-diagnostics` leaves them out."""


class Sentences(NamedTuple):
    """passes, fails: how the check turned out. earlier: its name in results that were written before slugs."""

    passes: str
    fails: str
    earlier: str


CHECKS: dict[str, Sentences] = {
    IMAGE_RANGE: Sentences("images are in [0, 1]", "images are not in [0, 1]", "images are in [0, 1]"),
    CLASS_COUNT: Sentences(
        "the model has enough classes for every loss",
        "the model has too few classes for some losses",
        "there are classes enough",
    ),
    EVAL_MODE: Sentences("all layers are in eval mode", "some layers are in train mode", "layers are in eval mode"),
    LOGITS: Sentences("the outputs are logits", "the outputs are probabilities, not logits", "outputs are logits"),
    DETERMINISTIC: Sentences(
        "the forward pass is deterministic", "the forward pass is random", "forward is deterministic"
    ),
    BATCH_INDEPENDENT: Sentences(
        "logits do not depend on the rest of the batch",
        "logits depend on the rest of the batch",
        "samples do not influence each other",
    ),
    MODE_INDEPENDENT: Sentences(
        "logits are the same with and without gradients",
        "logits differ with and without gradients",
        "logits are the same with and without gradients",
    ),
    STATELESS: Sentences(
        "answers do not depend on earlier ones",
        "answers depend on what the model was asked before",
        "answers do not depend on earlier ones",
    ),
    GRADIENTS: Sentences("gradients reach the input", "gradients do not reach the input", "gradients reach the input"),
    LAYERS: Sentences(
        "every layer passes gradients on", "some layers block gradients", "every layer passes gradients on"
    ),
    EVERY_PIXEL: Sentences(
        "gradients reach every pixel that matters",
        "gradients do not reach every pixel that matters",
        "gradients reach every pixel that matters",
    ),
    NO_TEST_TIME_OPTIMIZATION: Sentences(
        "the forward pass does not optimize or differentiate",
        "the forward pass optimizes or differentiates",
        "forward does not differentiate",
    ),
    CLEAN_ACCURACY: Sentences(
        "clean accuracy is plausible", "clean accuracy is implausible", "clean accuracy is above chance"
    ),
    OUTPUT: Sentences(
        "the logits are where they are by convention",
        "the logits are not where they are by convention",
        "the logits are where they are by convention",
    ),
    PICTURES: Sentences("all pictures were read", "some pictures were left out", "all pictures were read"),
    CLASS_DIRECTORIES: Sentences(
        "the class directories fit the model's outputs",
        "the class directories may not fit the model's outputs",
        "the class directories fit the model's outputs",
    ),
    PIXELS: Sentences(
        "the pixels are as the model expects them",
        "the pixels may not be as the model expects them",
        "the pixels are as the model expects them",
    ),
    PROBES_AGREE: Sentences(
        "the gradient-free probe agrees with the gradient attacks",
        "the gradient-free probe beats the gradient attacks",
        "gradients lead to the weakest samples",
    ),
    REGIONS_SEARCHED: Sentences(
        "activation regions were searched", "activation regions were not searched", "activation regions are searched"
    ),
    CONFIRMED: Sentences(
        "float32 confirms what the search found",
        "float32 does not confirm what the search found",
        "successes of the search are confirmed",
    ),
    FINITE_LOGITS: Sentences(
        "logits stay finite under attack", "logits are not finite under attack", "logits are numbers under attack"
    ),
    POINTS_ALLOWED: Sentences(
        "every image returned by an attack is in the ball and the pixel range",
        "an attack returned images outside the ball or the pixel range",
        "attacks stay inside",
    ),
    ATTACK_BATCH_INDEPENDENT: Sentences(
        "the outcome of every attack does not depend on the batch size",
        "the outcome of an attack depends on the batch size",
        "attacks ignore the batch",
    ),
    ONE_STEP: Sentences(
        "iterative attacks are at least as strong as one step",
        "one step beats iterative attacks",
        "iterating is no weaker than one step",
    ),
    MANY_STEPS: Sentences(
        "one step finds most of what many steps find",
        "many steps find far more than one step",
        "one step finds most of what many find",
    ),
    CROSS_ENTROPY: Sentences(
        "plain cross-entropy finds what the suite finds",
        "plain cross-entropy finds less than the suite",
        "plain cross-entropy finds what the suite finds",
    ),
    SCALE: Sentences(
        "the scale of the logits hides no adversarial examples",
        "the scale of the logits hides adversarial examples",
        "the scale of the logits hides nothing",
    ),
    STABLE: Sentences(
        "margins are stable under small noise",
        "margins are unstable under small noise",
        "predictions are stable under small noise",
    ),
    GRADIENT_PREDICTS_LOSS: Sentences(
        "the gradient predicts how the loss changes",
        "the gradient does not predict how the loss changes",
        "the loss rises as its gradient says",
    ),
    GRAY_LEVELS: Sentences(
        "margins are the same on whole gray levels and between them", "margins jump on whole gray levels", GRAY_LEVELS
    ),
    GROWTH: Sentences(
        "robust accuracy falls to 0 as eps grows",
        "robust accuracy does not fall to 0 as eps grows",
        "accuracy falls to 0 as eps grows",
    ),
    BEST_ITERATE_KEPT: Sentences(
        "the best iterate is kept", "the best iterate is lost", "successes on the way are kept"
    ),
    CONVERGED: Sentences("the search converges", "the search does not converge", "the search comes to rest"),
    PLANTED: Sentences(
        "planted adversarial examples are found", "planted adversarial examples are missed", "planted points are found"
    ),
    PROBED: Sentences(
        "probes of other kinds find hardly more adversarial examples",
        "probes of other kinds find, or may find, further adversarial examples",
        PROBED,
    ),
    NOISE: Sentences(
        "random points find no further adversarial examples",
        "random points find further adversarial examples",
        "random points of the ball find no more",
    ),
    SQUARE: Sentences(
        "a gradient-free attack finds no further adversarial examples",
        "a gradient-free attack finds further adversarial examples",
        "an attack without gradients finds no more",
    ),
    MORE_STEPS: Sentences(
        "more steps find no further adversarial examples",
        "more steps find further adversarial examples",
        "more steps find no more",
    ),
    DESCENT: Sentences(
        "descending the loss finds no further adversarial examples",
        "descending the loss finds further adversarial examples",
        "going down the loss finds no more",
    ),
    ADAPTED: Sentences(
        "adaptive attacks find no further adversarial examples",
        "adaptive attacks find further adversarial examples",
        "adaptive attacks find no more",
    ),
}

_EARLIER = {sentences.earlier: slug for slug, sentences in CHECKS.items()}


def slug_of(name: str) -> str:
    """Return the slug of a check that a result names by slug or, before slugs, by its sentence."""
    return _EARLIER.get(name, name if name in CHECKS else re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"))
