"""Whether a model, before anything else, shifts or scales its input by constants: whether it normalizes by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from robustbench_local.errors import UserError
from robustbench_local.models.metered import Metered

_NEUTRAL = {"add": 0.0, "sub": 0.0, "rsub": None, "mul": 1.0, "div": 1.0, "true_divide": 1.0}
"""Operations that shift or scale, with the constant that changes nothing."""


@torch.no_grad()
def own_scaling(model: Metered, image: Tensor, given: Tensor) -> str:
    """The operations by which the model shifts or scales what its classifier gives it, as `sub 0.5, div 0.25`, or "".

    image: float [1, C, H, W], as the dataset has it. given: the same image, normalized by the classifier. Constants are
    numbers, and tensors with a value for each channel, that do not depend on the image.
    """
    watch = _ScalingWatch(given)
    try:
        with watch:
            model(image)
    except (RuntimeError, NotImplementedError, UserError):  # a compiled program may not be watched
        return ""
    return "" if watch.used_unscaled else ", ".join(watch.found)


class _ScalingWatch(TorchDispatchMode):
    """Follows one image through the first operations of a forward pass.

    found: the name and the constant of each that shifts or scales it. used_unscaled: another operation uses the image
    as it is given, so scaling it is no normalization.
    """

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.found: list[str] = []
        self.used_unscaled = False
        self._given = given.flatten()
        self._channels = given.shape[1]
        self._computed: dict[int, Tensor] = {}  # kept, so that no id is used twice
        self._scaled: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        image, values = self._scaling(func.overloadpacket.__name__.rstrip("_"), args)
        given = [each for each in args if isinstance(each, Tensor) and self._is_given(each)]
        depends = any(isinstance(each, Tensor) and self._depends(each) for each in args)
        result = func(*args, **(kwargs or {}))
        parts = [
            part for part in (result if isinstance(result, (tuple, list)) else (result,)) if isinstance(part, Tensor)
        ]
        if depends:
            self._computed |= {id(part): part for part in parts}
        if image is not None:
            self._scaled.add(id(result))
            self.found += values
        elif given and not all(self._is_given(part) for part in parts):
            self.used_unscaled = True
        return result

    def _scaling(self, name: str, args: tuple[Any, ...]) -> tuple[Tensor | None, list[str]]:
        """The image and the text of an operation that shifts or scales it by a constant; else None."""
        for image, constant in (args[:2], args[1::-1]) if name in _NEUTRAL and len(args) > 1 else ():
            values, neutral = self._constant(constant), _NEUTRAL[name]
            if values is None or not isinstance(image, Tensor):
                continue
            if id(image) in self._scaled or self._is_given(image):
                changes = neutral is None or bool((values != neutral).any())
                text = f"{name} {','.join(f'{value:.3g}' for value in values.tolist())}"
                return image, [text] if changes else []
        return None, []

    def _constant(self, value: Any) -> Tensor | None:
        if isinstance(value, (int, float)):
            return torch.tensor([float(value)])
        if not isinstance(value, Tensor) or value.numel() not in (1, self._channels) or self._depends(value):
            return None
        return value.detach().flatten().float().cpu()

    def _depends(self, value: Tensor) -> bool:
        return id(value) in self._computed or self._is_given(value)

    def _is_given(self, value: Tensor) -> bool:
        return value.numel() == self._given.numel() and torch.equal(value.flatten().to(self._given), self._given)
