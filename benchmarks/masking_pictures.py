"""One picture of every kind of gradient masking, for docs/checks.md.

It takes less than a minute: python benchmarks/masking_pictures.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor, nn

from robustbench_local import ThreatModel, load_classifier, load_dataset
from robustbench_local.attacks import PGD
from robustbench_local.attacks.attack import run
from robustbench_local.attacks.losses import logit_margin

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
EPS = 0.1
"""Of the digits, L∞."""
MOST = 2.0
"""How far along the gradient a curve goes, in multiples of eps."""
BLUE, ORANGE, GRAY = "#0072b2", "#d55e00", "#999999"
Answer = Callable[[Tensor], Tensor]
"""Images float [rows, 1, 8, 8] in [0, 1] to logits float [rows, 10]."""


class Subject:
    """An image of the digits that the undefended network classifies correctly, and a line from it."""

    def __init__(self) -> None:
        self.network: nn.Module = load_classifier("digits-cnn")
        self.sturdy: nn.Module = load_classifier("digits-cnn-robust")
        data = load_dataset("digits", split="test")
        self.images, self.labels = data.images(torch.arange(len(data))), data.labels
        with torch.no_grad():
            margins = logit_margin(self.network(self.images), self.labels)
        first = int((margins - margins.quantile(0.12)).abs().argmin())
        self.image, self.label = self.images[first : first + 1], self.labels[first : first + 1]
        self.steps = torch.linspace(0, MOST, 401)
        direction = -self.gradient(self.network).sign()
        self.line = (self.image + EPS * self.steps[:, None, None, None] * direction).clamp(0, 1)

    def gradient(self, answer: Answer) -> Tensor:
        """Of the margin, at the image: float [1, 1, 8, 8]."""
        points = self.image.clone().requires_grad_(True)
        logits = answer(points)
        if not logits.requires_grad:
            return torch.zeros_like(points)
        return torch.autograd.grad(logit_margin(logits, self.label).sum(), points)[0]

    @torch.no_grad()
    def margins(self, answer: Answer, points: Tensor | None = None) -> Tensor:
        """Of the points of the line, float [rows]."""
        points = self.line if points is None else points
        return logit_margin(answer(points), self.label.expand(len(points)))

    def predicted(self, answer: Answer) -> Tensor:
        """The margins that the gradient at the image promises for the points of the line, float [rows]."""
        change = ((self.line - self.image) * self.gradient(answer)).flatten(1).sum(1)
        return self.margins(answer, self.image) + change


@contextmanager
def picture(name: str, title: str, ylabel: str = "margin of the label") -> Iterator[Axes]:
    """Axes of a curve along the gradient, saved under that name."""
    figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step along the network's gradient, in multiples of eps")
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    yield axes
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False, columnspacing=1.2)
    save(name)


def save(name: str) -> None:
    plt.savefig(FOLDER / f"{name}.png", dpi=100, metadata={"Software": None}, pil_kwargs={"optimize": True})
    plt.close()


def mark_success(axes: Axes) -> None:
    """The end of the ball, and the margin below which the image is fooled."""
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    style = {"xycoords": ("data", "data"), "textcoords": "offset points", "fontsize": 8, "color": "#444444"}
    axes.annotate("fooled below", (MOST, 0), xytext=(-50, -9), **style)
    axes.annotate("end of the ball", (1, axes.get_ylim()[0]), xytext=(3, 3), **style)


def clean(on: Subject) -> None:
    with picture("masking-none", "No masking: the margin falls as the gradient says") as axes:
        axes.plot(on.steps, on.margins(on.network), color=BLUE, label="the model")
        axes.plot(on.steps, on.predicted(on.network), "--", color=ORANGE, label="what its gradient predicts")
        mark_success(axes)


def saturated(on: Subject) -> None:
    def losses(scale: float) -> tuple[Tensor, Tensor]:
        """The loss at every point of the line, float [rows], and whether its gradient is 0, bool [rows]."""
        points = on.line.clone().requires_grad_(True)
        logits = scale * on.network(points)
        each = nn.functional.cross_entropy(logits, on.label.expand(len(logits)), reduction="none")
        return each.detach(), (torch.autograd.grad(each.sum(), points)[0] == 0).flatten(1).all(1)

    usual, (large, flat) = losses(1.0)[0], losses(1000.0)
    with picture("masking-saturated", "Saturated softmax: the loss is 0 until it jumps", "cross-entropy") as axes:
        axes.plot(on.steps, usual, color=GRAY, label="the network")
        axes.plot(on.steps, large, color=BLUE, label="its logits times 1000")
        ceiling = axes.get_xaxis_transform()
        axes.fill_between(on.steps, 0, 1, where=flat, transform=ceiling, color=ORANGE, alpha=0.12, label="gradient 0")
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylim(-0.003, None)


def rounded(on: Subject) -> None:
    def answer(images: Tensor) -> Tensor:
        return on.network((4 * images).round() / 4)

    with picture("masking-zero-gradient", "Zero gradient: the input is rounded to 5 gray levels") as axes:
        axes.plot(on.steps, on.margins(on.network), color=GRAY, label="the network without rounding")
        axes.plot(on.steps, on.margins(answer), color=BLUE, label="the model")
        axes.plot(on.steps, on.predicted(answer), "--", color=ORANGE, label="what its gradient predicts")
        mark_success(axes)


def rippled(on: Subject) -> None:
    def answer(images: Tensor) -> Tensor:
        """Pixels of the digits are multiples of 1/16; there the slope of the ripple turns the gradient around."""
        return on.network(images - 0.012 * torch.sin(96 * torch.pi * images))

    with picture("masking-shattered", "Shattered gradients: a ripple on every pixel") as axes:
        axes.plot(on.steps, on.margins(on.network), color=GRAY, label="the network without the ripple")
        axes.plot(on.steps, on.margins(answer), color=BLUE, label="the model")
        axes.plot(on.steps, on.predicted(answer), "--", color=ORANGE, label="what its gradient predicts")
        low, high = on.margins(answer).aminmax()
        axes.set_ylim(float(low) - 2, float(high) + 2)
        mark_success(axes)


def at_the_border(on: Subject) -> None:
    front = nn.Hardtanh(0, 1)
    gradients = [on.gradient(on.network)[0, 0], on.gradient(lambda images: on.network(front(images)))[0, 0]]
    most = float(torch.stack(gradients).abs().max())
    figure, (left, *others) = plt.subplots(1, 3, figsize=(7.4, 2.9), layout="constrained")
    left.imshow(on.image[0, 0], cmap="gray", vmin=0, vmax=1)
    black, white = int((on.image == 0).sum()), int((on.image == 1).sum())
    left.set_title(f"the image\n{black} of 64 pixels are 0, {white} are 1", fontsize=9)
    titles = ("gradient of the network", "behind a hard tanh to [0, 1]")
    for axes, gradient, title in zip(others, gradients, titles, strict=True):
        shown = axes.imshow(gradient, cmap="RdBu", vmin=-most, vmax=most)
        axes.set_title(f"{title}\nnot 0 in {int((gradient != 0).sum())} of 64 pixels", fontsize=9)
    figure.colorbar(shown, ax=others, shrink=0.8, label="gradient of the margin")
    for axes in (left, *others):
        axes.set_xticks([])
        axes.set_yticks([])
    save("masking-border")


def part(on: Subject) -> None:
    """The brightest fifth of the images goes to the weak network behind rounding, the others to the sturdy one."""
    brightness = on.images.flatten(1).mean(1)
    least = brightness.quantile(0.8)

    def answer(images: Tensor, *, masked: bool = True) -> Tensor:
        bright = images.flatten(1).mean(1) >= least
        weak = on.network((64 * images).round() / 64 if masked else images)
        return torch.where(bright[:, None], weak, on.sturdy(images))

    def left(*, masked: bool) -> Tensor:
        """Margins after PGD-20, of the images and by the clean margin: float [rows]."""
        points = run(
            PGD(steps=20, loss="margin", random_start=False),
            lambda images: answer(images, masked=masked),
            ThreatModel("linf", EPS),
            on.images,
            on.labels,
            seed=0,
            indices=torch.arange(len(on.labels)),
        )
        with torch.no_grad():
            return logit_margin(answer(points), on.labels)

    after, through = left(masked=True), left(masked=False)
    with torch.no_grad():
        correct = logit_margin(answer(on.images), on.labels) > 0
    fifth = correct & (brightness >= least)
    rest = correct & ~fifth
    low, high = float(min(after.min(), through.min())), float(after.max())
    bins = torch.linspace(low, high, 40).tolist()
    with picture("masking-part", "Masked in a fifth of the images: margins after PGD-20", "images") as axes:
        axes.hist(after[rest], bins, color=GRAY, label="four fifths")
        axes.hist(after[fifth], bins, color=ORANGE, alpha=0.8, label="masked fifth")
        axes.hist(
            through[fifth], bins, histtype="step", color=BLUE, linewidth=1.5, label="masked fifth, through the mask"
        )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("margin of the label; fooled below 0")


def random_forward(on: Subject) -> None:
    generator = torch.Generator().manual_seed(0)

    def answer(images: Tensor) -> Tensor:
        return on.network(images + 0.1 * torch.randn(images.shape, generator=generator))

    draws = torch.stack([on.margins(answer, on.line[::16]) for _ in range(100)])
    steps = on.steps[::16]
    with picture("masking-random", "Random forward pass: noise is added to every input") as axes:
        for number, draw in enumerate(draws[:3]):
            axes.plot(steps, draw, color=BLUE, linewidth=0.8, label="one answer each" if not number else None)
        axes.plot(steps, draws.mean(0), color=ORANGE, linewidth=2, label="mean of 100 answers, which EOT follows")
        mark_success(axes)


def memory(on: Subject) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def answer(images: Tensor) -> Tensor:
        """Repeat what was said of an image that is near in every pixel."""
        answers = []
        for image in images.split(1):
            known = [logits for other, logits in seen if float((other - image).abs().max()) <= EPS]
            if not known:
                seen.append((image, on.network(image)))
            answers.append(known[0] if known else seen[-1][1])
        return torch.cat(answers)

    points = on.line[::4]
    with picture("masking-memory", "Memory: a near-duplicate gets the answer of the first image") as axes:
        axes.plot(on.steps[::4], on.margins(on.network, points), color=GRAY, label="a fresh copy at every point")
        axes.plot(on.steps[::4], on.margins(answer, points), color=BLUE, label="the model, asked from left to right")
        mark_success(axes)


PICTURES = (clean, saturated, rounded, rippled, at_the_border, part, random_forward, memory)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    mpl.use("Agg")
    FOLDER.mkdir(parents=True, exist_ok=True)
    subject = Subject()
    for draw in PICTURES:
        draw(subject)


if __name__ == "__main__":
    main()
