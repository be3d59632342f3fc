"""The interface of an add-on: a change to training steps that works with any method, as in `trades+awp`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

from torch import Tensor

from robustbench_local.attacks.registry import Registry


class AddOn(ABC):
    """Hyper-parameters are the fields of a frozen dataclass; no state is kept between batches."""

    name: ClassVar[str]

    def active(self, epoch: int) -> bool:  # noqa: ARG002
        """Whether it takes part in this epoch; epochs count from 1."""
        return True

    @abstractmethod
    def perturb(
        self, weights: Sequence[Tensor], gradients: Callable[[], Sequence[Tensor]]
    ) -> AbstractContextManager[None]:
        """A context in which the loss of one step is differentiated, with the weights changed in place.

        weights: the trained parameters, which are as before afterwards, bit for bit. gradients: computes the batch's
        gradient by those weights where they are now, one tensor for each, at the cost of a forward and a backward pass.
        """


ADD_ONS: Registry[AddOn] = Registry()
"""Every add-on of this package, by name."""
