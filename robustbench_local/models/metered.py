"""Counts the forward and backward passes of a run, in images."""

from __future__ import annotations

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
            raise _model_failure(self.model.name, images, error) from error
        self.passes.forward += len(images)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.passes.backward += len(gradient)

    def train(self, mode: bool = True) -> Metered:  # noqa: ARG002 – evaluation never trains
        return self


def _model_failure(name: str, images: Tensor, error: BaseException) -> ModelFailure:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    shape = "×".join(map(str, images.shape))
    failure = ModelFailure(
        f"{name} failed on a batch of {shape}: {type(error).__name__}: {reason}; fix its forward", slug="model-failed"
    )
    failure.reason = reason
    return failure
