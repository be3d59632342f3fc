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
import away
import broken
import layers
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


def _around(*ways: Callable[[nn.Module], Logits]) -> Attacked:
    """By the gradients of these logits, which mask nothing, and by none."""

    def attacked(hunt: Hunt, module: nn.Module, data: str, queries: int) -> None:
        adaptive.everything(hunt, [way(module) for way in ways], queries=queries, starts=1)

    return attacked


def _asking(fresh: Callable[[nn.Module], Logits]) -> Attacked:
    """Asks what a copy that has seen nothing answers to a single image: these logits."""

    def attacked(hunt: Hunt, module: nn.Module, data: str, queries: int) -> None:
        hunt.model = fresh(module)
        adaptive.everything(hunt, [fresh(module)], queries=queries, starts=1)

    return attacked


def _hunt_on_grid(hunt: Hunt, module: nn.Module, data: str, queries: int) -> None:
    hunt.shown = away.on_grid
    adaptive.everything(hunt, [_weak(module)], queries=queries, starts=1)
    hunt.shown = None
    adaptive.everything(hunt, [_sturdy(module)], queries=queries, starts=1)


def _hunt_noisy(hunt: Hunt, module: nn.Module, data: str, queries: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for loss in ("margin", "scaled-ce"):
        adaptive.climb(hunt, adaptive.away(module, loss), draws=10, asked=3, generator=generator)
    _either(hunt, module, data, queries)


def _masks(on: Task, *, gate: Callable[[Task], partial.Gate], mask: partial.Mask) -> nn.Module:
    return partial.masked(on, gate(on), mask)


OFF_GRID = 0.65
"""A ball whose border is no gray level, so that no full step of an attack lands on the grid."""
_subtle = functools.partial(_Kind, eps=2 / 3, subtle=True)
_either = _around(_masked, _weak)

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
    "clamped": _subtle("input clamped to the box", pixels.clamped, _around(_straight_through)),
    "clamped-further": _subtle(
        "input clamped to [0.02, 0.98]", functools.partial(pixels.clamped, low=0.02), _around(_straight_through)
    ),
    "hard-tanh": _subtle("input through Hardtanh(0, 1)", pixels.hard_tanh, _around(_straight_through)),
    "rectified": _subtle("input through a ReLU at either end", pixels.rectified, _around(_straight_through)),
    "checkered": _subtle("every other pixel detached", pixels.checkered, _around(_straight_through)),
    "rounded-half": _subtle("the left half rounded", pixels.rounded_half, _around(_straight_through)),
    "borrowed-gradient": _subtle("answers of another network for three classes", partial.borrowed_gradient, _either),
    "confident": _subtle(
        "large margins answered by a network with rippled pixels",
        partial.confident,
        _around(partial.kept_confident, _masked),
        eps=1.0,
    ),
    **{
        name: _subtle(about, functools.partial(_masks, gate=gate, mask=mask), _either)
        for name, (about, gate, mask) in {
            "random-gradient": (
                "every fifth image by a hash, with a random backward",
                lambda on: partial.hashed(on, 5),
                partial.random_gradient,
            ),
            "saturated-of-6": (
                "the brightest images, with saturated logits",
                lambda on: partial.brightest(on, 0.06),
                partial.saturated,
            ),
            "whole-numbers": (
                "the brightest images, with logits without decimals",
                lambda on: partial.brightest(on, 0.06),
                partial.whole_numbers,
            ),
            "noisy-gradient": (
                "the brightest images, with noise where gradients are recorded",
                lambda on: partial.brightest(on, 0.3),
                partial.noisy_where_differentiated,
            ),
            "turned-channels": (
                "images of three classes, with channels whose gradient is reversed",
                lambda on: partial.of_classes(on, 2, 3, 9),
                partial.turned_channels,
            ),
        }.items()
    },
    "noisy-of-6": _subtle(
        "the brightest images, with noise",
        functools.partial(_masks, gate=lambda on: partial.brightest(on, 0.06), mask=partial.noisy),
        _hunt_noisy,
    ),
    "rounded-branch": _subtle(
        "a rounded branch beside an honest one", layers.rounded_branch, _around(_straight_through)
    ),
    "detached-channels": _subtle("seven of eight channels detached", layers.detached_channels, _around(_core)),
    "tamper-proof": _subtle("a sturdy network off the 8-bit grid", away.tamper_proof, _hunt_on_grid, eps=OFF_GRID),
    "right-at-images": _subtle(
        "gradients reversed off the 8-bit grid", away.right_at_images, _around(_weak), eps=OFF_GRID
    ),
    "batch-of-one": _subtle("single images answered by another network", stateful.batch_of_one, _asking(_weak)),
    "grad-mode": _subtle("another network where gradients are recorded", stateful.grad_mode, _around(_weak)),
    "batch-gate": _subtle("half of a batch to a sturdy network", stateful.batch_gate, _around(_weak, _sturdy)),
    "remembering": _subtle("answers repeated for near-duplicates", stateful.remembering, _asking(_core)),
    "counting": _subtle("a sturdy network after so many images", stateful.counting, _asking(_weak)),
}
EARLIER = tuple(name for name, kind in KINDS.items() if not kind.subtle)
SUBTLE = tuple(name for name, kind in KINDS.items() if kind.subtle)
UNBOUNDED = ("batch-of-one", "batch-gate", "remembering", "counting")
"""Those whose answers differ between two evaluations of the same images: there is no one number to come near to."""


@functools.cache
def _built(name: str, data: str) -> Classifier:
    return Classifier(KINDS[name].make(task(data)), name=name)


def member(name: str, data: str = "digits", *, queries: int | None = None, enough: int = 0) -> Member:
    """The broken defense of that name, of `KINDS`.

    queries: of the random search that ends its adaptive attack; by default more where that knows less. enough: called
    off when so few images stand.
    """
    kind = KINDS[name]

    def hunted(classifier: Classifier, images: Tensor, labels: Tensor, threat_model: ThreatModel) -> Tensor:
        hunt = Hunt(classifier, images, labels, threat_model, enough=enough)
        kind.attacked(hunt, classifier.module, data, queries or (500 if kind.subtle else 5000))
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
