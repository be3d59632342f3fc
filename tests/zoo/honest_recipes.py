"""How each family of honest models is trained, and the half of the families that it belongs to."""

from __future__ import annotations

import copy
import functools
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import honest_networks as networks
import torch
import torch.nn.functional as F
from honest_networks import (
    Checkpointed,
    EarlyExit,
    Ensemble,
    InPlaceInput,
    LocallyConnected,
    Mixer,
    Normalized,
    Overwriting,
    Scaled,
    SharedWeights,
    TorchvisionTransformer,
    Transformer,
    convolutional,
    perceptron,
)
from tasks import CLASSES, Loss, Task, fit, network, plain, task, undefended
from torch import Tensor, nn

from robustbench_local import Classifier, ThreatModel, load_classifier
from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.defenses.hat import HAT
from robustbench_local.defenses.mart import MART
from robustbench_local.defenses.objective import Objective, TrainingContext, frozen_eval
from robustbench_local.defenses.pgd_at import PGDAT
from robustbench_local.defenses.single_step import NFGSM
from robustbench_local.defenses.trades import TRADES

Kind = Literal["robust", "undefended"]
Half = Literal["derive", "confirm"]
EPS = "0.1"
SMALL_EPS = "0.05"
LARGE_EPS = "0.3"
STEPS = 4
"""Gradients of an inner attack."""


@dataclass(frozen=True)
class Family:
    """One kind of network and how it is trained.

    kind: "robust" where it is trained so that much stands at `eps`. network: an untrained module from the number of
    classes. loss: of a batch. eps: radius in L∞. l2: in L2, five times that unless given. classes: which digits it
    tells apart, all unless given. data: "digits", or "fashion" for a part of Fashion-MNIST. epochs: times the task's
    own. finished: what is made of the trained module.
    """

    name: str
    kind: Kind
    network: Callable[[int], nn.Module]
    loss: Loss = plain
    eps: str = EPS
    l2: str = ""
    classes: int = CLASSES
    data: str = "digits"
    epochs: float = 0.6
    rate: float = 2e-3
    finished: Callable[[nn.Module], nn.Module | Classifier] = lambda module: module

    @property
    def l2_eps(self) -> str:
        return self.l2 or f"{5 * float(self.eps):g}"

    @property
    def task(self) -> Task:
        return _fashion() if self.data == "fashion" else _of_first_classes(self.classes)


@functools.cache
def _of_first_classes(classes: int) -> Task:
    """The digits below that number."""
    on = task("digits")
    if classes == CLASSES:
        return on
    chosen, rows = on.labels < classes, (on.test.labels < classes).nonzero().squeeze(1)
    test = ArrayDataset(on.test.images(rows), on.test.labels[rows], name=f"digits below {classes}", split="test")
    epochs = on.epochs * CLASSES // classes
    return replace(on, images=on.images[chosen], labels=on.labels[chosen], test=test, epochs=epochs)


def _fashion() -> Task:
    on = task("fashion")
    return replace(on, images=on.images[:3000], labels=on.labels[:3000])


@functools.cache
def fitted(name: str, seed: int) -> Classifier:
    """The trained classifier of the family of that name."""
    one = FAMILIES[name]
    outputs = 1 if one.loss in ONE_OUTPUT else one.classes
    module = fit(lambda: one.network(outputs), one.task, one.loss, epochs=one.epochs, rate=one.rate, seed=seed)
    finished = one.finished(module)
    return finished if isinstance(finished, Classifier) else Classifier(finished, name=f"{name}-{seed}")


# Losses.


def by(objective: Objective, eps: str = EPS) -> Loss:
    """The loss of a training method of the package."""
    threat_model = ThreatModel("linf", eps)

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        teacher = undefended("digits") if objective.needs_teacher else None
        context = TrainingContext.of(model, threat_model, teacher=teacher)
        keys = torch.randint(2**60, (len(images),))
        return objective.loss(context, objective.examples(context, images, labels, keys))[0]

    return loss


def worst_case(of: Callable[[Tensor, Tensor], Tensor], eps: str = EPS) -> Loss:
    """Any loss of logits and labels, at the points that PGD on it finds."""
    threat_model = ThreatModel("linf", eps)

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with frozen_eval(model) as frozen:
            start = threat_model.eps * (2 * torch.rand_like(images) - 1)
            points = threat_model.project(images + start, images)
            for _ in range(STEPS):
                points.requires_grad_(True)
                (gradient,) = torch.autograd.grad(of(frozen(points), labels), points)
                moved = points.detach() + 2 / STEPS * threat_model.eps * gradient.sign()
                points = threat_model.project(moved, images).detach()
        return of(model(points), labels)

    return loss


def on_clean(of: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda model, images, labels: of(model(images), labels)


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Crammer and Singer's, with a margin of 1500, in units of that margin."""
    return F.multi_margin_loss(logits / 1500, labels)


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def squared(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared error to the one-hot label."""
    return 10 * F.mse_loss(logits, F.one_hot(labels, logits.shape[1]).float())


def logistic(logits: Tensor, labels: Tensor) -> Tensor:
    """Of a network with one output."""
    return F.binary_cross_entropy_with_logits(logits.squeeze(1), labels.float())


def noisy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy under Gaussian noise."""
    return F.cross_entropy(model(images + 0.25 * torch.randn_like(images)), labels)


def jacobian(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy and the squared Jacobian of the logits, along a random direction: Hoffman et al. (2019)."""
    images = images.clone().requires_grad_(True)
    logits = model(images)
    direction = F.normalize(torch.randn_like(logits), dim=1)
    (gradient,) = torch.autograd.grad((logits * direction).sum(), images, create_graph=True)
    return F.cross_entropy(logits, labels) + 0.02 * gradient.square().flatten(1).sum(1).mean()


def sparse(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """PGD-AT with weights drawn to zero."""
    return PGD_AT(model, images, labels) + 3e-4 * sum(weight.abs().sum() for weight in model.parameters())


PGD_AT, TRADES_, MART_ = by(PGDAT(steps=STEPS)), by(TRADES(steps=STEPS)), by(MART(steps=STEPS))
HAT_, N_FGSM, FASHION_N_FGSM = by(HAT(steps=STEPS)), by(NFGSM()), by(NFGSM(), SMALL_EPS)
CLEAN_LOGISTIC, WORST_LOGISTIC = on_clean(logistic), worst_case(logistic, LARGE_EPS)
ONE_OUTPUT = CLEAN_LOGISTIC, WORST_LOGISTIC


# What is made of a trained network.


def pruned(module: nn.Module) -> nn.Module:
    """Without the half of each layer's weights that are smallest."""
    module = copy.deepcopy(module)
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            with torch.no_grad():
                layer.weight.mul_(layer.weight.abs() > layer.weight.abs().median())
    return module


def scaled(factor: float) -> Callable[[nn.Module], nn.Module]:
    """With its logits times a constant."""
    return lambda module: nn.Sequential(module, Scaled(factor))


class _Flattened(nn.Module):
    """Flattened to a size that is read from the features, which an exporter writes as `Shape` operators."""

    def forward(self, features: Tensor) -> Tensor:
        return features.view(features.size(0), -1)


def exported(module: nn.Module) -> Classifier:
    """An ONNX graph that computes the sizes of its own reshape."""
    layers = [_Flattened() if isinstance(layer, nn.Flatten) else layer for layer in module.children()]
    axes = {"images": {0: "rows"}}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter needs one more package
        path = Path(folder) / "network.onnx"
        example = (torch.zeros(2, 1, networks.SIZE, networks.SIZE),)
        names = {"input_names": ["images"], "output_names": ["logits"]}
        torch.onnx.export(
            nn.Sequential(*layers), example, path, dynamo=False, opset_version=13, dynamic_axes=axes, **names
        )
        return load_classifier(str(path))


# The families.


def _robust(name: str, network: Callable[[int], nn.Module], loss: Loss, **others: object) -> Family:
    return Family(name, "robust", network, loss, **others)


def _plain(name: str, network: Callable[[int], nn.Module], loss: Loss = plain, **others: object) -> Family:
    return Family(name, "undefended", network, loss, **{"eps": SMALL_EPS, "epochs": 0.5, **others})


def _three(classes: int) -> nn.Module:
    return Ensemble([convolutional(classes, width=6), perceptron(classes), convolutional(classes, activation=nn.GELU)])


_LARGE = scaled(1500.0)


def _in_front(layer: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    return lambda classes: nn.Sequential(layer(), convolutional(classes))


def _with_large_logits(classes: int) -> nn.Module:
    return _LARGE(convolutional(classes))


_TABLE = (
    _robust("strided", convolutional, PGD_AT),
    _robust("max-pool", partial(convolutional, pool="max", width=8), TRADES_),
    _robust("avg-pool", partial(convolutional, pool="avg", width=8), MART_),
    _robust("batch-norm", partial(convolutional, norm="batch"), HAT_),
    _robust("group-norm", partial(convolutional, norm="group"), N_FGSM),
    _robust("layer-norm", partial(convolutional, norm="layer"), PGD_AT),
    _robust("residual", networks.residual, TRADES_),
    _robust("depthwise", networks.depthwise, PGD_AT),
    _robust("gelu", partial(convolutional, activation=nn.GELU), TRADES_),
    _robust("silu", partial(convolutional, activation=nn.SiLU), MART_),
    _robust("tanh", partial(convolutional, activation=nn.Tanh), PGD_AT),
    _robust("softplus", partial(convolutional, activation=nn.Softplus), HAT_),
    _robust("elu", partial(convolutional, activation=nn.ELU), N_FGSM),
    _robust("hardtanh", partial(convolutional, activation=nn.Hardtanh), PGD_AT),
    _robust("transformer", Transformer, N_FGSM, epochs=0.8, rate=6e-3),
    _robust("mixer", Mixer, TRADES_),
    _robust("perceptron", perceptron, PGD_AT),
    _robust("early-exit", EarlyExit, PGD_AT),
    _robust("hinge", _with_large_logits, worst_case(hinge)),
    _robust("tiny-logits", convolutional, PGD_AT, finished=scaled(1e-3)),
    _robust("large-logits", convolutional, PGD_AT, finished=scaled(100.0)),
    _robust("label-smoothing", convolutional, worst_case(smoothed)),
    _robust("squared-error", convolutional, worst_case(squared)),
    _robust("binary", convolutional, by(PGDAT(steps=STEPS), LARGE_EPS), classes=2, eps=LARGE_EPS, l2="0.7"),
    _robust("one-output", convolutional, WORST_LOGISTIC, classes=2, eps=LARGE_EPS, l2="0.7"),
    _robust("clamped", _in_front(lambda: nn.Hardtanh(0, 1)), PGD_AT),
    _robust("pruned", convolutional, sparse, finished=pruned),
    _robust("ensemble", _three, PGD_AT),
    _robust("shared-weights", SharedWeights, PGD_AT),
    _robust("gabor", networks.gabor, PGD_AT),
    _robust("checkpointed", Checkpointed, N_FGSM),
    _robust("overwriting", lambda n: Normalized(convolutional(n)), PGD_AT, finished=lambda net: Overwriting(net.body)),
    _plain("plain-conv", convolutional),
    _plain("plain-transformer", TorchvisionTransformer, epochs=1.0),
    _plain("plain-mixer", Mixer),
    _plain("plain-early-exit", EarlyExit),
    _plain("plain-hinge", _with_large_logits, on_clean(hinge)),
    _plain("plain-tiny-logits", perceptron, finished=scaled(1e-3)),
    _plain("plain-large-logits", perceptron, finished=scaled(100.0)),
    _plain("plain-smoothing", convolutional, on_clean(smoothed)),
    _plain("plain-squared", perceptron, on_clean(squared)),
    _plain("plain-three-classes", convolutional, classes=3, eps=EPS),
    _plain("plain-one-output", perceptron, CLEAN_LOGISTIC, classes=2, eps="0.2"),
    _plain("plain-normalized", lambda classes: Normalized(perceptron(classes)), eps=EPS),
    _plain("plain-dropout", partial(perceptron, dropout=0.3)),
    _plain("plain-sigmoid", partial(perceptron, activation=nn.Sigmoid), epochs=1.0),
    _plain("plain-leaky", partial(convolutional, activation=nn.LeakyReLU, pool="max", width=8), eps="0.15"),
    _plain("plain-in-place", partial(networks.residual, inplace=True)),
    _plain("plain-local", LocallyConnected),
    _plain("plain-lipschitz", networks.lipschitz, eps=EPS),
    _plain("plain-jacobian", partial(convolutional, activation=nn.Softplus), jacobian, epochs=1.0),
    _plain("plain-noise", convolutional, noisy, eps=EPS),
    _plain("plain-copied-input", lambda n: Normalized(convolutional(n)), finished=lambda net: InPlaceInput(net.body)),
    _plain("plain-onnx", convolutional, finished=exported),
)
_OF_FASHION = (
    _robust(
        "fashion", lambda n: network(28, width=8), FASHION_N_FGSM, data="fashion", eps=SMALL_EPS, l2="0.6", epochs=1.5
    ),
    _plain("plain-fashion", lambda n: network(28, width=8), data="fashion", epochs=1.5, eps="0.03", l2="0.4"),
)
_SHARED = Path(os.environ.get("ROBUST_SHARED", Path(__file__).resolve().parents[3] / "shared"))
_ALL = _TABLE + (_OF_FASHION if (_SHARED / "data" / "fashion-mnist").is_dir() else ())
FAMILIES: dict[str, Family] = {one.name: one for one in _ALL}
"""By name. New ones go to the end of their kind, so that the halves of the others stay. Those on Fashion-MNIST are
there where its shared files are."""


def half(name: str) -> Half:
    """Of each kind every other family, in the order of the table, is for choosing thresholds; the rest confirm them."""
    same = [one.name for one in _ALL if one.kind == FAMILIES[name].kind]
    return "confirm" if same.index(name) % 2 else "derive"
