"""Counts the forward and backward passes of a run, in images."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from robustbench_local.errors import UserError
from robustbench_local.models.classifier import Classifier
from robustbench_local.runtime.device import is_out_of_memory


class ModelFailure(UserError):
    """The model itself raised: its error in one sentence, without a traceback. reason: the error's first line."""

    reason: str


@dataclass
class Passes:
    """How many images have passed through a model, forward and backward."""

    forward: int = 0
    backward: int = 0

    def since(self, earlier: Passes) -> Passes:
        return Passes(self.forward - earlier.forward, self.backward - earlier.backward)

    def copy(self) -> Passes:
        return Passes(self.forward, self.backward)


class Metered(nn.Module):
    """A model that counts the images that pass through it. Several may share one count."""

    model: Classifier

    def __init__(self, model: Classifier, passes: Passes | None = None) -> None:
        super().__init__()
        self.model = model
        self.passes = Passes() if passes is None else passes

    def forward(self, images: Tensor) -> Tensor:
        try:
            # A copy, because a model that works in place must not change the caller's images.
            logits: Tensor = self.model(images.clone())
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise
            if len(images) != 1 or not self.model.refuses_one:
                raise _model_failure(self.model.name, images, error) from error
            logits = self._beside_itself(images, error)
        self.passes.forward += len(images)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _beside_itself(self, image: Tensor, error: BaseException) -> Tensor:
        """The logits of a single image that the model refused alone, from a batch that holds it twice."""
        try:
            logits: Tensor = self.model(image.repeat(2, *[1] * (image.dim() - 1)))[:1]
        except Exception as again:
            if is_out_of_memory(again):
                raise
            raise _model_failure(self.model.name, image, error) from error
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.passes.backward += len(gradient)

    def train(self, mode: bool = True) -> Metered:  # noqa: ARG002 – evaluation never trains
        return self


@contextlib.contextmanager
def backward_failures(name: str) -> Iterator[None]:
    """Turn an error of the backward pass inside the block into a `ModelFailure` of the model of that name.

    `Metered` does the same for the forward pass. A lack of memory passes as it is, because a smaller batch may help.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error) or not _raised_in_backward(error):
            raise
        raise _failure(f"{name} failed in its backward pass", error, "fix its backward") from error


def _raised_in_backward(error: Exception) -> bool:
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(module.startswith("torch.autograd") for module in modules)


def _model_failure(name: str, images: Tensor, error: BaseException) -> ModelFailure:
    shape = "×".join(map(str, images.shape))
    return _failure(f"{name} failed on a batch of {shape}", error, "fix its forward")


def _failure(what: str, error: BaseException, fix: str) -> ModelFailure:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    failure = ModelFailure(f"{what}: {type(error).__name__}: {reason}; {fix}", slug="model-failed")
    failure.reason = reason
    return failure
