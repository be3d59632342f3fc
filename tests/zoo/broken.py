"""Defenses that mask: networks whose robustness is in what a gradient attack sees of them, and how they are made."""

from __future__ import annotations

import io
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tasks import CLASSES, Task, fit, network, undefended
from torch import Tensor, nn

REJECT = CLASSES
"""The class of the detector that means none of the others."""


# 1 to 4: outputs whose softmax has no gradient left.

TEMPERATURE = 100.0


def distilled(on: Task) -> nn.Module:
    """Papernot et al. (S&P 2016): a student learns a teacher's probabilities at a temperature that is then taken away.

    What is left are logits a hundred times too large.
    """

    def hard(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images) / TEMPERATURE, labels)

    teacher = fit(lambda: network(on.size), on, hard, rate=1e-2)

    def soft(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            told = (teacher(images) / TEMPERATURE).softmax(1)
        return F.cross_entropy(model(images) / TEMPERATURE, told)

    return fit(lambda: network(on.size), on, soft, rate=1e-2, seed=1)


class Scaled(nn.Module):
    """Logits times a constant: the same predictions, a softmax that is always sure."""

    def __init__(self, core: nn.Module, factor: float):
        super().__init__()
        self.core, self.factor = core, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.core(images)


def hot(on: Task) -> nn.Module:
    return Scaled(undefended(on.name), 1e4)


def smoothed(on: Task) -> nn.Module:
    """Warde-Farley and Goodfellow (2016): smoothed labels instead of distillation, at a temperature all the same."""

    def smoothed(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images) / (4 * TEMPERATURE), labels, label_smoothing=0.9)

    return fit(lambda: network(on.size), on, smoothed, rate=1e-2)


class Saturated(nn.Module):
    """Logits between -10 and 10, squashed by a tanh that is flat at most images."""

    def __init__(self, core: nn.Module, steepness: float):
        super().__init__()
        self.core, self.steepness = core, steepness

    def forward(self, images: Tensor) -> Tensor:
        return 10 * torch.tanh(self.steepness * self.core(images))


def saturated(on: Task) -> nn.Module:
    def each_class(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(images), F.one_hot(labels, CLASSES).float())

    return Saturated(fit(lambda: network(on.size), on, each_class), 10.0)


# 5: quantised input.


class Quantised(nn.Module):
    """Rounds images to a few gray levels; the gradient of that is 0 everywhere."""

    def __init__(self, core: nn.Module, levels: int):
        super().__init__()
        self.core, self.levels = core, levels

    def squeeze(self, images: Tensor) -> Tensor:
        return (images * (self.levels - 1)).round() / (self.levels - 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.core(self.squeeze(images))


def quantised(on: Task) -> nn.Module:
    return fit(lambda: Quantised(network(on.size), 5), on)


class Jpeg(nn.Module):
    """Saves and reads every image as JPEG, outside of torch: no gradient comes through."""

    def __init__(self, core: nn.Module, quality: int):
        super().__init__()
        self.core, self.quality = core, quality

    def squeeze(self, images: Tensor) -> Tensor:
        pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        read = np.stack([self._again(image[0])[None] for image in pixels])
        return torch.from_numpy(read).to(images) / 255

    def _again(self, image: np.ndarray) -> np.ndarray:
        stored = io.BytesIO()
        Image.fromarray(image).save(stored, "jpeg", quality=self.quality)
        with Image.open(stored) as picture:
            return np.asarray(picture)

    def forward(self, images: Tensor) -> Tensor:
        return self.core(self.squeeze(images))


def jpeg(on: Task) -> nn.Module:
    return Jpeg(undefended(on.name), 50)


# 6: random at inference.


class RandomFront(nn.Module):
    """Xie et al. (ICLR 2018): images resized and padded at random, here with noise; other draws at every call."""

    def __init__(self, core: nn.Module, size: int, room: int, noise: float):
        super().__init__()
        self.core, self.size, self.room, self.noise = core, size, room, noise

    def forward(self, images: Tensor) -> Tensor:
        noisy = images + self.noise * torch.randn_like(images)
        whole = self.size + self.room
        shares = (self.size + torch.rand(len(images)) * self.room) / whole
        shifts = (2 * torch.rand(len(images), 2) - 1) * (1 - shares[:, None])
        # The transformation goes from the place in the padded image to that in the original.
        moves = torch.zeros(len(images), 2, 3)
        moves[:, 0, 0] = moves[:, 1, 1] = 1 / shares
        moves[:, :, 2] = -shifts / shares[:, None]
        grid = F.affine_grid(moves, [len(images), 1, whole, whole], align_corners=False)
        return self.core(F.grid_sample(noisy, grid, align_corners=False))


def random(on: Task) -> nn.Module:
    room = on.size // 4
    return fit(lambda: RandomFront(network(on.size + room), on.size, room, 0.15), on, epochs=2)


# 7: activations that jump.


class KWinners(nn.Module):
    """Xiao, Zhong and Zheng (ICLR 2020): the largest activations of an image stay, the others become 0."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, values: Tensor) -> Tensor:
        flat = values.flatten(1)
        least = flat.topk(max(1, round(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(values)


def winners(on: Task) -> nn.Module:
    return fit(lambda: network(on.size, width=24, activation=lambda: KWinners(0.1)), on)


# 8: thermometer coding.


class Thermometer(nn.Module):
    """Buckman et al. (ICLR 2018): every pixel as the list of levels that it reaches."""

    def __init__(self, core: nn.Module, levels: int):
        super().__init__()
        self.core = core
        self.register_buffer("levels", torch.arange(1, levels + 1).view(1, -1, 1, 1) / (levels + 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.core((images > self.levels).to(images.dtype))

    def soft(self, images: Tensor) -> Tensor:
        """The same answers with the gradient of a sigmoid for every comparison."""
        gentle = torch.sigmoid((images - self.levels) / 0.1)
        return self.core(gentle + ((images > self.levels).to(images.dtype) - gentle).detach())


def thermometer(on: Task) -> nn.Module:
    return fit(lambda: Thermometer(network(on.size, channels=8), 8), on)


# 9: no gradient by accident.


class Purified(nn.Module):
    """A denoiser cleans the image first, and runs without gradients to save memory."""

    def __init__(self, denoiser: nn.Module, core: nn.Module):
        super().__init__()
        self.denoiser, self.core = denoiser, core

    def clean(self, images: Tensor) -> Tensor:
        return images + self.denoiser(images)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            cleaned = self.clean(images)
        return self.core(cleaned)


def purified(on: Task) -> nn.Module:
    def denoiser() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))

    def restores(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        noisy = (images + 0.15 * torch.randn_like(images)).clamp(0, 1)
        return F.mse_loss(noisy + model(noisy), images)

    return Purified(fit(denoiser, on, restores), undefended(on.name))


# 10: overfitted to one step.


def overfitted(on: Task) -> nn.Module:
    """Wong, Rice and Kolter (ICLR 2020) warn of it: trained on single steps until nothing else is resisted."""
    step = 5 / 3 * float(on.eps)

    def build() -> nn.Module:
        widths = (on.size**2, 128, 128, 128)
        layers = [
            layer
            for before, after in itertools.pairwise(widths)
            for layer in (nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU())
        ]
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], CLASSES))

    def single_step(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        asked = images.clone().requires_grad_(True)
        gradient = torch.autograd.grad(F.cross_entropy(model(asked), labels), asked)[0]
        return F.cross_entropy(model(images + step * gradient.sign()), labels)

    return fit(build, on, single_step, epochs=3, rate=1e-2, falling=False)


# 11: softmax upon softmax.


class Softmaxes(nn.Module):
    """Ends in a softmax, and is given another by the one who deploys it."""

    def __init__(self, core: nn.Module):
        super().__init__()
        self.core = core

    def forward(self, images: Tensor) -> Tensor:
        return self.core(images).softmax(1).softmax(1)


def softmaxes(on: Task) -> nn.Module:
    """Trained as it often is by mistake: with a cross-entropy that takes probabilities for logits."""

    def upon_softmax(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images).softmax(1), labels)

    return Softmaxes(fit(lambda: network(on.size), on, upon_softmax, epochs=4, rate=2e-2))


# 12: flat where it is looked at.


class Flattened(nn.Module):
    """Its last features pass through a steep tanh, whose slope is the factor of every input gradient."""

    def __init__(self, size: int, features: int, steepness: float):
        super().__init__()
        *front, last, _, _ = network(size)
        self.front = nn.Sequential(*front, nn.Linear(last.in_features, features))
        self.head, self.steepness = nn.Linear(features, CLASSES), steepness

    def before(self, images: Tensor) -> Tensor:
        """What the tanh is taken of, [rows, features]."""
        return self.steepness * self.front(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.tanh(self.before(images)))

    def soft(self, images: Tensor, factor: float) -> Tensor:
        """The same with a gentler tanh."""
        return self.head(torch.tanh(factor * self.before(images)))


def flat(on: Task) -> nn.Module:
    """Nayebi and Ganguli (2017): gradients regularized away, by a penalty on features that are not saturated."""

    def penalised(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        before = model.before(images)
        return F.cross_entropy(model.head(torch.tanh(before)), labels) + (F.relu(15 - before.abs()) / 15).mean()

    return fit(lambda: Flattened(on.size, 32, 5.0), on, penalised, rate=5e-3)


# 13: a detector.


class Rejecting(nn.Module):
    """Lee et al. (NeurIPS 2018): images whose features lie far from those of the predicted class are refused.

    Far is a Mahalanobis distance beyond the threshold; then the answer is `REJECT`, whatever the logits say.
    """

    def __init__(self, core: nn.Sequential, on: Task, accepted: float):
        super().__init__()
        self.core, self.back = core, core[:-1]
        features = self.back(on.images)
        means = torch.stack([features[on.labels == label].mean(0) for label in range(CLASSES)])
        residuals = features - means[on.labels]
        covariance = residuals.T @ residuals / len(residuals)
        ridge = 0.05 * covariance.diagonal().mean() * torch.eye(len(covariance))
        self.register_buffer("means", means)
        self.register_buffer("precision", torch.linalg.inv(covariance + ridge))
        distances = self.distance(on.images, core(on.images).argmax(1))
        self.register_buffer("threshold", distances.kthvalue(round(accepted * len(distances))).values)

    def distance(self, images: Tensor, classes: Tensor) -> Tensor:
        """The square of the distance from these classes, [rows]."""
        away = self.back(images) - self.means[classes]
        return (away @ self.precision * away).sum(1)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.core(images)
        rejected = self.distance(images, logits.argmax(1)) > self.threshold
        highest = logits.detach().amax(1)
        return torch.cat([logits, torch.where(rejected, highest + 20, highest - 20)[:, None]], 1)


def rejecting(on: Task) -> nn.Module:
    return Rejecting(undefended(on.name), on, 0.93)
