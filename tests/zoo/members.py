"""Broken defenses, small ones on real images, each handed over as its authors would.

What masks its robustness stays in the model. A naive evaluation believes it; `adaptive` knows the code and does not.

    python tests/zoo/members.py [--data fashion] [--samples N] [NAME…]

prints what is claimed of each and what is left. Fashion-MNIST is read from the folder that $ROBUST_SHARED names.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import adaptive
import broken
import partial
import pixels
import stateful
import torch
from adaptive import Hunt, Logits
from broken import Jpeg, Purified, Quantised, Rejecting
from tasks import Task, task, undefended
from torch import Tensor, nn

from robustbench_local import Classifier, ThreatModel
from robustbench_local.attacks import fgsm, pgd

Attacked = Callable[[Hunt, nn.Module, str, int], None]
"""Hunts the standing images of a classifier, knowing the module that it holds; then the name of the data, and how many
queries a random search has."""


@dataclass(frozen=True)
class Member:
    """A broken defense.

    naive: the attack that its authors showed. build: the classifier as a user would hand it over. adaptive: takes
    classifier, images, labels and threat model and gives bool [N]: right, and not fooled by anything that was tried.
    """

    name: str
    about: str
    threat_model: ThreatModel
    naive: str
    build: Callable[[], Classifier]
    adaptive: Callable[[Classifier, Tensor, Tensor, ThreatModel], Tensor]

    def claimed(self, classifier: Classifier, images: Tensor, labels: Tensor, naive: str | None = None) -> Tensor:
        """What its authors would say is robust, bool [N]: right before and after their attack, which is not adaptive.

        naive: another attack than theirs, "pgd" or "fgsm".
        """
        unaware = replace(self.threat_model, reject=None)
        if (naive or self.naive) == "fgsm":
            points = fgsm(classifier, images, labels, unaware)
        else:
            points = pgd(classifier, images, labels, unaware, steps=20)
        hunt = Hunt(classifier, images, labels, self.threat_model)
        hunt.offer(hunt.rows, points[hunt.rows])
        return hunt.standing


@dataclass(frozen=True)
class _Kind:
    about: str
    make: Callable[[Task], nn.Module]
    attacked: Attacked
    naive: str = "pgd"
    reject: int | None = None
    eps: float = 1.0
    """Times the task's own."""
    subtle: bool = False
    """Whether a look at some images, some pixels or one batch may show nothing."""


def _through(*ways: Callable[[nn.Module], Logits]) -> Attacked:
    """By the gradients of these logits, of an undefended network, and by none."""

    def attacked(hunt: Hunt, module: nn.Module, data: str, queries: int) -> None:
        twins = [undefended(data), undefended(data, 1)]
        adaptive.everything(hunt, [way(module) for way in ways], twins, queries=queries)

    return attacked


def _straight(module: Quantised | Jpeg) -> Logits:
    return lambda images: module.core(images + (module.squeeze(images) - images).detach())


def _purified_with_gradient(module: Purified) -> Logits:
    return lambda images: module.core(module.clean(images))


def _gentler(*factors: float) -> list[Callable[[nn.Module], Logits]]:
    return [lambda module, factor=factor: functools.partial(module.soft, factor=factor) for factor in factors]


def _hunt_random(hunt: Hunt, module: nn.Module, data: str, queries: int) -> None:
    adaptive.over_draws(hunt, module)


def _hunt_winners(hunt: Hunt, module: nn.Module, data: str, queries: int) -> None:
    adaptive.shattered(hunt, module)
    adaptive.everything(hunt, [module], [undefended(data), undefended(data, 1)], queries=queries)


def _hunt_rejecting(hunt: Hunt, module: Rejecting, data: str, queries: int) -> None:
    def strangeness(images: Tensor, classes: Tensor) -> Tensor:
        return module.distance(images, classes) / module.threshold

    adaptive.past_detector(hunt, module.core, strangeness, queries=queries)


def _itself(module: nn.Module) -> Logits:
    return module


def _core(module: nn.Module) -> Logits:
    return module.core


def _masked(module: nn.Module) -> Logits:
    return module.unmasked


def _weak(module: nn.Module) -> Logits:
    return module.weak


def _sturdy(module: nn.Module) -> Logits:
    return module.sturdy


def _straight_through(module: nn.Module) -> Logits:
    return module.straight


def _asking(fresh: Callable[[nn.Module], Logits]) -> Attacked:
    """Asks what a copy that has seen nothing answers to a single image: these logits."""

    def attacked(hunt: Hunt, module: nn.Module, data: str, queries: int) -> None:
        hunt.model = fresh(module)
        adaptive.everything(hunt, [fresh(module)], [], queries=queries)

    return attacked


_subtle = functools.partial(_Kind, eps=2 / 3, subtle=True)
_either = _through(_masked, _weak, _sturdy)

KINDS: dict[str, _Kind] = {
    "distilled": _Kind(f"defensive distillation at T={broken.TEMPERATURE:g}", broken.distilled, _through(_itself)),
    "hot": _Kind("logits times 10,000", broken.hot, _through(_core)),
    "smoothed": _Kind("labels smoothed by 0.9", broken.smoothed, _through(_itself)),
    "saturated": _Kind("logits squashed by a tanh", broken.saturated, _through(_core)),
    "quantised": _Kind("input rounded to 5 levels", broken.quantised, _through(_straight)),
    "jpeg": _Kind("input saved as JPEG", broken.jpeg, _through(_straight)),
    "random": _Kind("input resized, shifted and noised at random", broken.random, _hunt_random),
    "k-winners": _Kind("a tenth of the activations win", broken.winners, _hunt_winners),
    "thermometer": _Kind("input coded by comparisons", broken.thermometer, _through(lambda module: module.soft)),
    "detached": _Kind("a denoiser without gradients", broken.purified, _through(_purified_with_gradient)),
    "overfitted": _Kind(
        "FGSM training, overfitted to it", broken.overfitted, _through(_itself), naive="fgsm", eps=4 / 3
    ),
    "softmaxes": _Kind("softmax of softmax", broken.softmaxes, _through(_core)),
    "flat": _Kind("gradients regularized away", broken.flat, _through(*_gentler(0.3, 0.1, 0.03), _itself)),
    "rejecting": _Kind(
        "features far from their class are refused", broken.rejecting, _hunt_rejecting, reject=broken.REJECT
    ),
    **{
        f"{ripple}-of-{round(100 * share)}": _subtle(
            f"{share:.0%} of the images, the brightest, masked: {about}",
            functools.partial(partial.masks_brightest, share=share, ripple=ripple),
            _either,
        )
        for ripple, about in partial.RIPPLES.items()
        for share in partial.SHARES
    },
    "clamped": _subtle("input clamped to the box", pixels.clamped, _through(_straight_through)),
    "clamped-further": _subtle(
        "input clamped to [0.02, 0.98]", functools.partial(pixels.clamped, low=0.02), _through(_straight_through)
    ),
    "hard-tanh": _subtle("input through Hardtanh(0, 1)", pixels.hard_tanh, _through(_straight_through)),
    "smooth-step": _subtle("a contrast flat at black and white", pixels.smooth_step, _through(_straight_through)),
    "checkered": _subtle("every other pixel detached", pixels.checkered, _through(_straight_through)),
    "rounded-half": _subtle("the left half rounded", pixels.rounded_half, _through(_straight_through)),
    "batch-of-one": _subtle("single images answered by another network", stateful.batch_of_one, _asking(_weak)),
    "grad-mode": _subtle("another network where gradients are recorded", stateful.grad_mode, _through(_weak)),
    "batch-gate": _subtle("half of a batch to a sturdy network", stateful.batch_gate, _through(_weak, _sturdy)),
    "remembering": _subtle("answers repeated for near-duplicates", stateful.remembering, _asking(lambda m: m.core)),
}
EARLIER = tuple(name for name, kind in KINDS.items() if not kind.subtle)
SUBTLE = tuple(name for name, kind in KINDS.items() if kind.subtle)
UNBOUNDED = ("batch-of-one", "batch-gate", "remembering")
"""Those whose answers differ between two evaluations of the same images: there is no one number to come near to."""


@functools.cache
def _built(name: str, data: str) -> Classifier:
    return Classifier(KINDS[name].make(task(data)), name=name)


def member(name: str, data: str = "digits", *, queries: int = 5000, enough: int = 0) -> Member:
    """The broken defense of that name, of `KINDS`.

    queries: of the random search that ends its adaptive attack. enough: called off when so few images stand.
    """
    kind = KINDS[name]

    def hunted(classifier: Classifier, images: Tensor, labels: Tensor, threat_model: ThreatModel) -> Tensor:
        hunt = Hunt(classifier, images, labels, threat_model, enough=enough)
        kind.attacked(hunt, classifier.module, data, queries)
        return hunt.standing

    eps = f"{kind.eps * float(task(data).eps):.2g}"
    return Member(
        name,
        kind.about,
        ThreatModel("linf", eps, reject=kind.reject),
        kind.naive,
        functools.partial(_built, name, data),
        hunted,
    )


def members(data: str = "digits") -> dict[str, Member]:
    """All of them by name."""
    return {name: member(name, data) for name in KINDS}


@dataclass(frozen=True)
class Row:
    """Shares of the images: right, claimed robust by PGD, by FGSM, and left by the adaptive attack; seconds of each."""

    clean: float
    pgd: float
    fgsm: float
    truth: float
    training: float
    attacking: float


def measured(one: Member, data: str = "digits", samples: int | None = None) -> Row:
    """What a member claims and what is left of it, on the first test images."""
    test = task(data).test
    images, labels = test.images(range(samples or len(test))), test.labels[: samples or len(test)]
    began = time.process_time()
    classifier = one.build()
    built = time.process_time()
    clean = Hunt(classifier, images, labels, one.threat_model).standing
    claims = [one.claimed(classifier, images, labels, naive) for naive in ("pgd", "fgsm")]
    attacking = time.process_time()
    truth = one.adaptive(classifier, images, labels, one.threat_model)
    shares = [float(each.float().mean()) for each in (clean, *claims, truth)]
    return Row(*shares, built - began, time.process_time() - attacking)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--data", default="digits", choices=("digits", "fashion"))
    parser.add_argument("--samples", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    heads = "defense", "eps", "clean", "PGD-20", "FGSM", "adaptive", "trained in s", "attacked in s"
    print(f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", sep="\n")
    for name, one in members(options.data).items():
        if not options.names or name in options.names:
            row = measured(one, options.data, options.samples)
            shares = " | ".join(f"{100 * share:.1f}" for share in (row.clean, row.pgd, row.fgsm, row.truth))
            seconds = f"{row.training:.1f} | {row.attacking:.1f}"
            print(f"| {name} | {one.threat_model.eps_text} | {shares} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
