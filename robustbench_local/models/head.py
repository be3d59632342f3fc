"""A network's head: the last layer, which gives the logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from robustbench_local.errors import UserError

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def head_parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of the head's parameters among `module.named_parameters()`.

    The head is what one of timm's networks calls its classifier, elsewhere the last registered linear or convolutional
    layer; empty where there is no such layer.
    """
    owned = {id(parameter) for layer in _head(module) for parameter in layer.parameters()}
    return tuple(name for name, parameter in module.named_parameters() if id(parameter) in owned)


def replace_head(module: nn.Module, num_classes: int) -> None:
    """Replace the last layer by a new one for `num_classes` classes, drawn from torch's global generator.

    Raises UserError for a network that does not end in a linear layer or a 1×1 convolution.
    """
    if _is_timm(module):
        module.reset_classifier(num_classes)  # type: ignore[operator]  # timm's own method
        return
    name = next((name for name, layer in reversed(list(module.named_modules())) if isinstance(layer, LAYERS)), "")
    old = module.get_submodule(name)
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d) and old.kernel_size == (1, 1):
        new = nn.Conv2d(old.in_channels, num_classes, 1, bias=old.bias is not None)
    else:
        raise UserError(
            f"a {type(module).__name__} does not end in a linear layer that could be replaced: give "
            "another --arch, or leave --pretrained out",
            slug="head-not-replaceable",
        )
    parent, _, key = name.rpartition(".")
    setattr(module.get_submodule(parent), key, new)


def _is_timm(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("pretrained_cfg", "get_classifier", "reset_classifier"))


def _head(module: nn.Module) -> Sequence[nn.Module]:
    if _is_timm(module):
        head = module.get_classifier()  # type: ignore[operator]  # timm's own method
        return [part for part in (head if isinstance(head, tuple) else (head,)) if isinstance(part, nn.Module)]
    return [layer for layer in module.modules() if isinstance(layer, LAYERS)][-1:]
