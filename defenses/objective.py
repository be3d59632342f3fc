"""The interface of a training method: from a batch to a loss and its named parts."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_local.attacks.attack import Attack, Model, Rows, run_steps
from robustbench_local.attacks.registry import Registry
from robustbench_local.attacks.threat_model import ThreatModel

Parts = dict[str, Tensor]


@contextlib.contextmanager
def frozen_eval(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with frozen parameters, for an attack; afterwards every module is as before.

    With batch norm in eval mode, an attack neither depends on the batch nor changes the running statistics. Frozen
    parameters save the computation of their gradients.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield model
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in trainable:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class TrainingContext:
    """The model being trained and everything else that a loss depends on.

    model: float [rows, ...] in the box -> logits [rows, classes], in train mode, with trainable parameters.
    frozen_model: a context with the same function in eval mode and with frozen parameters, for inner attacks. teacher:
    a fixed classifier, for distillation methods. label_smoothing: the fraction of a label's probability that
    cross-entropies distribute over all classes.
    """

    model: Model
    threat_model: ThreatModel
    frozen_model: Callable[[], AbstractContextManager[Model]]
    teacher: Model | None = None
    label_smoothing: float = 0.0

    @classmethod
    def of(cls, network: nn.Module, threat_model: ThreatModel, *, teacher: Model | None = None) -> TrainingContext:
        """The context of a network that is trained and attacked in its own precision."""
        return cls(network, threat_model, lambda: frozen_eval(network), teacher)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def logits(self, images: Tensor) -> Tensor:
        """The model's logits, float32: on CPUs autocast would compute the softmax of a loss in bfloat16."""
        return self.model(images).float()

    def teacher_logits(self, images: Tensor) -> Tensor:
        """The teacher's logits, float32."""
        assert self.teacher is not None, "recipes require a teacher for every method that needs one"
        with torch.no_grad():
            return self.teacher(images).float()


@dataclass(frozen=True)
class Examples:
    """A batch after the inner attack.

    images: float [rows, ...] in the box. labels: int64 [rows]. keys: int64 [rows], the only source of random numbers.
    adversarial: float like images, the result of the inner attack; without one, the images. replay: number of previous
    weight updates with this batch. reference_logits: float [rows, classes], the clean images' logits from which the
    inner attack maximized the divergence, if it did.
    """

    images: Tensor
    labels: Tensor
    keys: Tensor
    adversarial: Tensor
    replay: int = 0
    reference_logits: Tensor | None = None


class Objective(ABC):
    """Hyper-parameters are the fields of a frozen dataclass; no state is kept between batches.

    validation_metric: the accuracy on the hold-out by which the best epoch is selected. needs_teacher: whether the
    method learns from a teacher.
    """

    name: ClassVar[str]
    validation_metric: ClassVar[Literal["clean", "robust", "noisy"]] = "robust"
    needs_teacher: ClassVar[bool] = False

    def examples(self, context: TrainingContext, images: Tensor, labels: Tensor, keys: Tensor) -> Examples:  # noqa: ARG002
        """The batch after the inner attack, if the method has one. No gradient flows through it."""
        return Examples(images, labels, keys, images)

    @abstractmethod
    def loss(self, context: TrainingContext, examples: Examples) -> tuple[Tensor, Parts]:
        """The mean loss of a batch, differentiable with respect to the parameters, and its parts, detached scalars."""

    def next_replay(self, context: TrainingContext, examples: Examples) -> Examples | None:  # noqa: ARG002
        """The examples for another step with the same images, after the backward pass; None for the next batch."""
        return None

    def fallback(self) -> Objective | None:
        """The method to continue with after catastrophic overfitting; None if there is none."""
        return None

    def own_teacher(self) -> Objective | None:
        """The method that trains a missing teacher; None if the user must provide one."""
        return None

    def training_defaults(self) -> dict[str, Any]:
        """Settings of the training loop that this method needs, for recipes that do not set them."""
        return {}

    def validation_noise(self) -> float:
        """Standard deviation, in pixel units, of the noise on hold-out images where `validation_metric` is noisy.

        By default the method's field `sigma`. Raises TypeError for a method without one.
        """
        sigma = getattr(self, "sigma", None)
        if sigma is None:
            raise TypeError(
                f"{self.name} is validated under noise: give it a field sigma, or override validation_noise"
            )
        return float(sigma)


OBJECTIVES: Registry[Objective] = Registry()
"""Every training method of this package, by name."""


class AdversarialCrossEntropy(Objective):
    """Cross-entropy at the adversarial points."""

    def loss(self, context: TrainingContext, examples: Examples) -> tuple[Tensor, Parts]:
        loss = context.cross_entropy(context.logits(examples.adversarial), examples.labels)
        return loss, {"adversarial": loss.detach()}


def inner_attack(
    attack: Attack,
    context: TrainingContext,
    images: Tensor,
    labels: Tensor,
    keys: Tensor,
    *,
    reference: Tensor | None = None,
    surrogate: Callable[[Model], Model] | None = None,
) -> Tensor:
    """The last iterate of one run of the attack, float like images: `attack.steps` forward and backward passes.

    The last iterate, not the best one: evaluating it would cost another forward pass. reference: probabilities
    [rows, classes] for an attack that maximizes the divergence from them. surrogate: turns the network into the model
    to attack, such as a smoothed one.
    """
    with context.frozen_model() as network:
        model = surrogate(network) if surrogate else network
        state = attack.start(context.threat_model, Rows(images, labels, keys, labels))
        if reference is not None:
            state["reference"] = reference
        state = run_steps(attack, model, context.threat_model, state)
    return state["points"].detach()


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(reference || softmax(logits)), [rows]. reference: log-probabilities [rows, classes]."""
    return F.kl_div(logits.log_softmax(1), reference, reduction="none", log_target=True).sum(1)
