"""What a training method is: a batch in, a loss and its named parts out."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from robustbench_local.attacks.attack import Attack, Rows
from robustbench_local.attacks.threat_model import ThreatModel


@runtime_checkable
class Objective(Protocol):
    """Hyper-parameters are the fields of a frozen dataclass; nothing is kept from one batch to the next.

    judged_by: which accuracy on held-out images says that one epoch's weights are better than another's.
    """

    name: ClassVar[str]
    judged_by: ClassVar[Literal["clean", "robust"]]

    def loss(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat_model: ThreatModel, keys: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of a batch, to be differentiated by the parameters, and its parts for people to watch.

        model: float [rows, ...] in the box -> logits [rows, classes], in train mode. images: float [rows, ...] in the
        box. labels: int64 [rows]. keys: int64 [rows], the only source of random numbers. Parts are detached scalars.
        """
        ...


@contextlib.contextmanager
def held_still(model: nn.Module) -> Iterator[nn.Module]:
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


def last_points(
    attack: Attack, model: nn.Module, threat_model: ThreatModel, images: Tensor, labels: Tensor, keys: Tensor
) -> Tensor:
    """Where one run of the attack ends, float like images: `attack.steps` forward and backward passes, no more.

    The last point and not the best one, because training pays for its forward pass anyway.
    """
    with held_still(model):
        state = attack.start(threat_model, Rows(images, labels, keys, labels))
        for _ in range(attack.steps):
            state = attack.step(model, threat_model, state)
    return state["points"].detach()
