"""Networks whose forward branches, reorders or shares: all but the last answer as the bundled digits network does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_local import Classifier, load_classifier


class Digits(nn.Module):
    """The bundled digits network, with its parts at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.net = load_classifier("digits-cnn").module

    def hidden(self, images: Tensor) -> Tensor:
        maps = F.relu(self.net.conv2(F.relu(self.net.conv1(images))))
        return F.relu(self.net.linear1(maps.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.net.linear2(self.hidden(images))


class EarlyExit(Digits):
    """Rows whose first head is sure leave there; only the others reach the last layer."""

    def __init__(self, sure: float = 8.0) -> None:
        super().__init__()
        self.sure, self.last = sure, nn.Linear(64, 10)
        self.last.load_state_dict(self.net.linear2.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images)
        logits = self.net.linear2(hidden)
        highest = logits.detach().topk(2, 1).values
        unsure = highest[:, 0] - highest[:, 1] < self.sure
        if not unsure.any():
            return logits
        logits = logits.clone()
        logits[unsure] = 1.5 * self.last(hidden[unsure])
        return logits


class AloneDiffers(Digits):
    """A batch of one gets other logits."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 1:
            return -super().forward(images)
        return super().forward(images)


class AloneOnAnotherHead(Digits):
    """A batch of one is answered by a convolution, the same function as the last linear layer."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 1:
            weight = self.net.linear2.weight[:, :, None, None]
            return F.conv2d(self.hidden(images)[:, :, None, None], weight, self.net.linear2.bias).flatten(1)
        return super().forward(images)


class GradModeBranches(Digits):
    """With gradients the last layer sees half of its input."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images)
        if torch.is_grad_enabled():
            half = torch.cat([hidden[:, :32], torch.zeros_like(hidden[:, 32:])], 1)
            return torch.cat([self.net.linear2(row[None]) for row in half])
        return self.net.linear2(hidden)


class Gated(Digits):
    """The brighter half of a batch is answered by another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = nn.Linear(64, 10)
        self.dim.load_state_dict(self.net.linear2.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        hidden, bright = self.hidden(images), images.flatten(1).mean(1)
        first = bright >= bright.median()
        logits = hidden.new_zeros(len(hidden), 10)
        logits[first] = self.net.linear2(hidden[first])
        if not first.all():
            logits[~first] = 0.1 * self.dim(hidden[~first]).flip(1)
        return logits


class Twice(Digits):
    """The last layer is called twice: on the image and on its shifted copy."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + super().forward(images.roll(1, -1)) * 0.1


class Tokens(Digits):
    """The last layer gets tokens, whose logits are averaged."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images)
        return self.net.linear2(torch.stack([hidden, 0.5 * hidden], 1)).mean(1)


class Sorted(Digits):
    """The forward sorts the rows by brightness and puts the logits back in order."""

    def forward(self, images: Tensor) -> Tensor:
        order = images.flatten(1).sum(1).argsort()
        return super().forward(images[order])[order.argsort()]


class NeverAlone(Digits):
    """A batch of one is refused, as by batch norm in train mode."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 1:
            raise ValueError("expected more than 1 value per channel")
        return super().forward(images)


class Unused(Digits):
    """The last linear layer is a head for training, which the forward leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(64, 10)


class InPlace(Digits):
    """The input is normalized in place, which autograd does not see: gradients are 0.4 times the true ones."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            images.sub_(0.3).div_(0.4)
        return super().forward(0.4 * images + 0.3)


HONEST = {
    "early exit": EarlyExit,
    "shared": Twice,
    "tokens": Tokens,
    "sorted": Sorted,
    "unused head": Unused,
    "in place": InPlace,
}
"""Answers of one image depend on that image alone."""
DEPENDENT = {"batch of one": AloneDiffers, "grad mode": GradModeBranches, "gated": Gated, "never alone": NeverAlone}
"""Answers depend on the batch or on the mode, or there is none."""
SAME_ANSWER = {"alone on another head": AloneOnAnotherHead}
"""Another path for a batch of one, the same answer."""


def unusual(name: str) -> Classifier:
    return Classifier({**HONEST, **DEPENDENT, **SAME_ANSWER}[name](), name=name)
