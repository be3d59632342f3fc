"""What every check asks, when it passes, what follows where it does not, and where it is from.

`robust list checks` and the table in docs/checks.md are made from this. Limits are those that the code uses: a test
compares them.
"""

from __future__ import annotations

from typing import NamedTuple

from robustbench_local.results import checks

BEFORE, INPUTS, DURING, AFTER, OLDER = "before", "inputs", "during", "after", "older results"
"""When a check is made: before the first attack, after the clean pass, during the attacks, after them; or no more."""
PHASES = {
    BEFORE: "before the first attack",
    INPUTS: "after the clean pass",
    DURING: "during the attacks",
    AFTER: "after the attacks",
    OLDER: "in older results only",
}

STOPS = "stops the run"
WARNS = "warns"
WARNS_AND_ADAPTS = "warns; adaptive attacks"
FAILS = "fails"
FAILS_AND_ADAPTS = "fails; adaptive attacks"
DOUBT = "raises a doubt"
WARNS_OR_DOUBT = "warns, or raises a doubt; adaptive attacks"
DOUBT_OR_FAILS = "raises a doubt; fails if still so after the adaptive attacks"
EXPLAINS = "explains a doubt; warns if the doubt is confirmed"
INFORMS = "for information"
SKIPPED = "skipped, for information"

OURS = "this project"
AUTOATTACK = "AutoAttack (Croce and Hein, ICML 2020)"
ATHALYE = "Athalye et al., ICML 2018"
PINTOR = "Pintor et al., NeurIPS 2022"
CARLINI = "Carlini et al., arXiv:1902.06705"
TRAMER = "Tramèr et al., NeurIPS 2020"


class Description(NamedTuple):
    """asks: one question. passes: a format string, when the check passes, with the field `limit`.

    limit: the number in it, None where there is none. effect: what follows where the check does not pass.
    """

    phase: str
    asks: str
    passes: str
    limit: float | None
    effect: str
    source: str

    @property
    def condition(self) -> str:
        """When the check passes, in words."""
        return self.passes.format(limit=self.limit)


DESCRIPTIONS: dict[str, Description] = {
    checks.IMAGE_RANGE: Description(BEFORE, "Are all pixels inside the box?", "all of them", None, STOPS, OURS),
    checks.CLASS_COUNT: Description(
        BEFORE, "Does the model tell enough classes apart?", "at least {limit:g}", 2.0, STOPS, AUTOATTACK
    ),
    checks.EVAL_MODE: Description(BEFORE, "Does a layer run in train mode?", "none", None, WARNS, OURS),
    checks.LOGITS: Description(BEFORE, "Are the outputs logits?", "no probabilities", None, WARNS, AUTOATTACK),
    checks.DETERMINISTIC: Description(
        BEFORE,
        "Do the same images get the same logits again?",
        "up to a relative difference of {limit:g}",
        1e-4,
        WARNS_AND_ADAPTS,
        AUTOATTACK,
    ),
    checks.BATCH_INDEPENDENT: Description(
        BEFORE,
        "Do logits stay the same when an image is asked about alone or beside others?",
        "up to a relative difference of {limit:g}",
        1e-3,
        WARNS_AND_ADAPTS,
        OURS,
    ),
    checks.MODE_INDEPENDENT: Description(
        BEFORE,
        "Are logits the same with and without gradients?",
        "up to a relative difference of {limit:g}",
        1e-3,
        WARNS_AND_ADAPTS,
        OURS,
    ),
    checks.STATELESS: Description(
        BEFORE,
        "Does a copy that was asked nothing before answer the same?",
        "up to a relative difference of {limit:g}",
        1e-3,
        FAILS_AND_ADAPTS,
        OURS,
    ),
    checks.GRADIENTS: Description(
        BEFORE,
        "Is the gradient of a loss zero or not finite?",
        "for {limit:.0%} of the images",
        0.0,
        WARNS_OR_DOUBT,
        PINTOR,
    ),
    checks.LAYERS: Description(
        BEFORE, "Does a layer stop the gradient on its way to the input?", "none", None, WARNS_OR_DOUBT, ATHALYE
    ),
    checks.EVERY_PIXEL: Description(
        BEFORE,
        "Do pixels without a gradient change the margin when they move?",
        "at most {limit:g} times as much as other pixels",
        0.1,
        DOUBT,
        OURS,
    ),
    checks.NO_TEST_TIME_OPTIMIZATION: Description(
        BEFORE, "Does the forward pass differentiate or optimize?", "it does not", None, WARNS_AND_ADAPTS, AUTOATTACK
    ),
    checks.OUTPUT: Description(
        BEFORE,
        "Which of several outputs explains the labels?",
        "the one that is the logits by convention",
        None,
        WARNS,
        OURS,
    ),
    checks.CLEAN_ACCURACY: Description(
        INPUTS,
        "Is the model better than guessing, and would no other labels or pixels suit it better?",
        "more than 1 / classes correct, and no other reading is significantly better",
        None,
        WARNS,
        OURS,
    ),
    checks.PIXELS: Description(
        INPUTS,
        "Are pixels scaled and turned as the model expects them?",
        "no sign of another scale, a second normalization or ignored tags of pictures",
        None,
        WARNS,
        OURS,
    ),
    checks.CLASS_DIRECTORIES: Description(
        INPUTS, "Is there a class directory for every output?", "none is missing without a reason", None, WARNS, OURS
    ),
    checks.PICTURES: Description(
        INPUTS, "How many pictures with a label could not be read?", "{limit:g}", 0.0, WARNS, OURS
    ),
    checks.PROBES_AGREE: Description(
        DURING,
        "How many images does a gradient-free attack fool after the gradient attacks have failed?",
        "at most {limit:.0%}",
        0.02,
        WARNS_AND_ADAPTS,
        AUTOATTACK,
    ),
    checks.REGIONS_SEARCHED: Description(
        DURING, "Could the search over activation regions run?", "it could", None, SKIPPED, OURS
    ),
    checks.CONFIRMED: Description(
        DURING, "How many adversarial examples does the float32 model not confirm?", "{limit:g}", 0.0, WARNS, OURS
    ),
    checks.FINITE_LOGITS: Description(DURING, "At how many points is a logit NaN?", "{limit:g}", 0.0, FAILS, OURS),
    checks.POINTS_ALLOWED: Description(
        DURING, "How many images of a foreign attack are outside the ball or the box?", "{limit:g}", 0.0, WARNS, OURS
    ),
    checks.ATTACK_BATCH_INDEPENDENT: Description(
        DURING,
        "Does a foreign attack work on whole batches?",
        "it does not; else the outcome may depend on the batch size",
        None,
        SKIPPED,
        OURS,
    ),
    checks.ONE_STEP: Description(
        AFTER,
        "Does FGSM fool images that PGD-20 does not?",
        "no more than the reverse, p >= {limit:g}",
        0.01,
        EXPLAINS,
        ATHALYE,
    ),
    checks.MANY_STEPS: Description(
        AFTER,
        "Which share of all images do many steps fool, but a single step does not?",
        "at most {limit:.0%}",
        0.25,
        DOUBT,
        "Wong et al., ICLR 2020",
    ),
    checks.CROSS_ENTROPY: Description(
        AFTER,
        "Which share of images does the suite fool, but PGD-20 on the cross-entropy does not?",
        "at most {limit:.0%}, or p >= 0.01",
        0.1,
        EXPLAINS,
        AUTOATTACK,
    ),
    checks.SCALE: Description(
        AFTER,
        "Which share of images does PGD fool only after the logits are rescaled?",
        "at most {limit:.0%}",
        0.1,
        EXPLAINS,
        AUTOATTACK,
    ),
    checks.STABLE: Description(
        AFTER, "By how much does small noise change the margins?", "at most {limit:.0%}", 0.1, EXPLAINS, PINTOR
    ),
    checks.GRADIENT_PREDICTS_LOSS: Description(
        AFTER,
        "At which share of robust images does a step of 3 % of eps change the margin otherwise than the gradient "
        "says, by more than 60 %?",
        "{limit:.0%}",
        0.0,
        DOUBT,
        f"{ATHALYE} (shattered gradients); the measure: {OURS}",
    ),
    checks.GRAY_LEVELS: Description(
        AFTER,
        "At which share of robust images does the margin jump where a random point of the ball has moved to whole gray "
        "levels?",
        "at most {limit:.0%}",
        0.1,
        DOUBT,
        OURS,
    ),
    checks.GROWTH: Description(
        AFTER,
        "Which share of robust images stays robust in a ball that contains every image?",
        "not significantly more than {limit:.0%}, and a larger ball never protects",
        0.05,
        DOUBT_OR_FAILS,
        ATHALYE,
    ),
    checks.BEST_ITERATE_KEPT: Description(
        AFTER, "How many images does PGD fool on the way, but not at its last step?", "always", None, INFORMS, PINTOR
    ),
    checks.CONVERGED: Description(
        AFTER, "For which share of images does the loss still rise at the end?", "always", None, INFORMS, PINTOR
    ),
    checks.PLANTED: Description(
        AFTER,
        "Which share of planted adversarial examples does the attack find?",
        "at least {limit:.0%}",
        0.5,
        DOUBT_OR_FAILS,
        "Zimmermann et al., NeurIPS 2022",
    ),
    checks.PROBED: Description(
        AFTER,
        "How many images have cheap attacks of other kinds fooled, or may they still fool?",
        "at most {limit:.0%} of all images, with 97.5 % confidence, or one",
        0.01,
        "raises a doubt; warns if still so after the adaptive attacks",
        f"{CARLINI}; the bound: Hoeffding, 1956, and Vatutin and Mikhailov, 1982",
    ),
    checks.ADAPTED: Description(
        AFTER,
        "How many images do adaptive attacks fool that the suite had left robust, or may they still fool?",
        "at most {limit:.0%} of all images, with 97.5 % confidence, or one; and at most 5 % of the robust ones",
        0.01,
        "warns, and turns the doubts into warnings",
        TRAMER,
    ),
    checks.NOISE: Description(OLDER, "Do random points of the ball fool further images?", "none", None, WARNS, ATHALYE),
    checks.SQUARE: Description(OLDER, "Does a gradient-free attack fool further images?", "none", None, WARNS, ATHALYE),
    checks.MORE_STEPS: Description(OLDER, "Do more steps fool further images?", "none", None, WARNS, CARLINI),
    checks.DESCENT: Description(OLDER, "Does descending the loss fool further images?", "none", None, WARNS, OURS),
}
"""In the order in which they are made."""
