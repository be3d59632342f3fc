"""Building the architectures of our own by name, and what is known of each without running it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from robustbench_local.errors import UserError
from robustbench_local.models.catalog import ARCHITECTURES, load_entry, require_architecture

Factory = Callable[..., nn.Module]


def find_architecture(name: str) -> Factory:
    """The architecture's class. Raises UserError for an unknown name, with the nearest one."""
    require_architecture(name)
    factory: Factory = load_entry(ARCHITECTURES, name, "architectures")
    return factory


def build_architecture(
    name: str, num_classes: int = 10, in_channels: int | None = None, **options: int | bool
) -> nn.Module:
    """A fresh network with random weights from torch's global generator (seed it to repeat them).

    `in_channels` is the architecture's own when not given: 1 for `digits-cnn`, 3 elsewhere. `options`: what else its
    class takes, such as `image_size` (28 or 32) for `cnn-small` and `final_norm` for `preact-resnet18`. Raises
    UserError for an unknown name or option.
    """
    factory = find_architecture(name)
    parameters = inspect.signature(factory).parameters
    if unknown := [option for option in options if option not in parameters]:
        raise UserError(
            f"architecture {name} takes no {unknown[0]}; it takes {', '.join(parameters)}",
            slug="unknown-architecture-option",
        )
    if in_channels is not None:
        options["in_channels"] = in_channels
    return factory(num_classes=num_classes, **options)


def options_from_weights(name: str, state: Mapping[str, Tensor]) -> dict[str, int | bool]:
    """Options that the weights' names and shapes imply, beside classes and channels.

    An architecture whose form depends on more than these has a static method `options_from_weights(state)`.
    """
    implied: Callable[[Mapping[str, Tensor]], dict[str, int | bool]] | None
    implied = getattr(find_architecture(name), "options_from_weights", None)
    return {} if implied is None else implied(state)


def input_shape(module: nn.Module) -> tuple[int, int, int] | None:
    """(C, H, W) that one of these networks is tied to, or None where it takes any image size.

    A network that is tied to one size states it as `image_size`.
    """
    size = getattr(module, "image_size", None)
    if not isinstance(size, int):
        return None
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    return first.in_channels, size, size


def count_parameters(name: str) -> int:
    """Number of weights of an architecture, without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_architecture(name).parameters())
