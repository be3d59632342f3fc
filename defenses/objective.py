"""What a training method is: a batch in, a loss and its named parts out."""

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
    """The model in eval mode with frozen parameters, for an attack on it; afterwards every part is as it was.

    Batch norm in eval mode lets an attack neither depend on the batch nor move the running statistics, and frozen
    parameters spare it the gradients that nobody asks for.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        yield model
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class TrainingContext:
    """Who learns, and from whom.

    model: float [rows, ...] in the box -> logits [rows, classes], in train mode, its parameters to be differentiated
    by. frozen_model: a context in which the same function stands still, in eval mode and with frozen parameters, for inner
    attacks. teacher: a fixed classifier, for the methods that learn from one. label_smoothing: the share of a label's
    mass that cross-entropies spread over all classes.
    """

    model: Model
    threat_model: ThreatModel
    frozen_model: Callable[[], AbstractContextManager[Model]]
    teacher: Model | None = None
    label_smoothing: float = 0.0

    @classmethod
    def of(cls, network: nn.Module, threat_model: ThreatModel, *, teacher: Model | None = None) -> TrainingContext:
        """A network as it is, attacked in its own arithmetic."""
        return cls(network, threat_model, lambda: frozen_eval(network), teacher)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def logits(self, images: Tensor) -> Tensor:
        """The context's logits, float32: on CPUs autocast would leave the softmax of a loss in bfloat16."""
        return self.model(images).float()

    def teacher_logits(self, images: Tensor) -> Tensor:
        """The teacher's logits, float32."""
        assert self.teacher is not None, "recipes give a teacher to every method that needs one"
        with torch.no_grad():
            return self.teacher(images).float()


@dataclass(frozen=True)
class Examples:
    """A batch to be learnt from. adversarial: float like images, where an inner attack has led them, else the images.

    images: float [rows, ...] in the box. labels: int64 [rows]. keys: int64 [rows], the only source of random numbers.
    replay: how often the weights have been updated with this batch before. reference_logits: float [rows, classes], the logits on
    the images that the inner attack led away from, where it is one that does.
    """

    images: Tensor
    labels: Tensor
    keys: Tensor
    adversarial: Tensor
    replay: int = 0
    reference_logits: Tensor | None = None


class Objective(ABC):
    """Hyper-parameters are the fields of a frozen dataclass; nothing is kept from one batch to the next.

    validation_metric: which accuracy on held-out images says that one epoch's weights are better than another's. needs_teacher: the
    method learns from a teacher.
    """

    name: ClassVar[str]
    validation_metric: ClassVar[Literal["clean", "robust", "noisy"]] = "robust"
    needs_teacher: ClassVar[bool] = False

    def examples(self, context: TrainingContext, images: Tensor, labels: Tensor, keys: Tensor) -> Examples:  # noqa: ARG002
        """The batch after the inner attack; without one, as it is. No gradient flows through this."""
        return Examples(images, labels, keys, images)

    @abstractmethod
    def loss(self, context: TrainingContext, examples: Examples) -> tuple[Tensor, Parts]:
        """The mean loss of a batch, to be differentiated by the parameters, and its parts, detached scalars."""

    def next_replay(self, context: TrainingContext, examples: Examples) -> Examples | None:  # noqa: ARG002
        """What to learn from next with the same images, after the loss has been differentiated; None: fresh images."""
        return None

    def fallback(self) -> Objective | None:
        """The method to go on with when this one has overfitted to its own single step; None: there is none."""
        return None

    def own_teacher(self) -> Objective | None:
        """How the teacher is trained where none is given; None: one has to be given."""
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
    """The loss is cross-entropy at the points."""

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
    seen_as: Callable[[Model], Model] | None = None,
) -> Tensor:
    """Where one run of the attack ends, float like images: `attack.steps` forward and backward passes, no more.

    The last point and not the best one, because training pays for its forward pass anyway. reference: probabilities
    [rows, classes] that the attack leads away from, where it is one that does. seen_as: what the attack is to be led by
    instead of the network itself.
    """
    with context.frozen_model() as still:
        model = seen_as(still) if seen_as else still
        state = attack.start(context.threat_model, Rows(images, labels, keys, labels))
        if reference is not None:
            state["reference"] = reference
        state = run_steps(attack, model, context.threat_model, state)
    return state["points"].detach()


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(reference || softmax(logits)), [rows]. reference: log-probabilities [rows, classes]."""
    return F.kl_div(logits.log_softmax(1), reference, reduction="none", log_target=True).sum(1)
