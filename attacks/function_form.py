"""Attacks as functions: `pgd(model, images, labels, threat_model, steps=20)`."""

from __future__ import annotations

import inspect
import typing
from typing import Protocol

from torch import Tensor

from robustbench_local.attacks.attack import Attack, Model, run
from robustbench_local.attacks.threat_model import ThreatModel

_POSITIONAL, _KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
Setting = int | float | str | bool | None


class AttackFunction(Protocol):
    """An attack on one batch; the settings are the fields of the attack's dataclass."""

    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        threat_model: ThreatModel,
        *,
        seed: int = 0,
        indices: Tensor | None = None,
        **settings: Setting,
    ) -> Tensor: ...


_DOCSTRING = """{kind}: {summary}

model: float [N, ...] in the box -> logits [N, classes], in eval mode. images: float [N, ...] in the box. labels: int64
[N]. indices: int64 [N], the samples' positions in their dataset, by default 0, 1, ...; with the seed they decide the
random numbers. Returns float [N, ...] in ball and box: for each image the point nearest to success, over all runs.
Raises TypeError for an unknown setting and ValueError for a setting out of range.

{details}"""


def attack_function(kind: type[Attack]) -> AttackFunction:
    """The function form of an attack: one batch, settings as keyword arguments.

    Signature, annotations, defaults and docstring are those of the dataclass.
    """

    def attack(
        model: Model,
        images: Tensor,
        labels: Tensor,
        threat_model: ThreatModel,
        *,
        seed: int = 0,
        indices: Tensor | None = None,
        **settings: Setting,
    ) -> Tensor:
        return run(kind(**settings), model, threat_model, images, labels, seed=seed, indices=indices)

    parameters = _parameters(kind)
    summary, _, details = inspect.cleandoc(kind.__doc__ or "").partition("\n")
    attack.__name__ = attack.__qualname__ = str(kind.name).replace("-", "_")
    attack.__module__ = kind.__module__
    attack.__doc__ = _DOCSTRING.format(kind=kind.__name__, summary=summary, details=details.strip()).strip()
    attack.__annotations__ = {**{each.name: each.annotation for each in parameters}, "return": Tensor}
    attack.__signature__ = inspect.Signature(parameters, return_annotation=Tensor)  # type: ignore[attr-defined]
    return attack


def _parameters(kind: type[Attack]) -> list[inspect.Parameter]:
    """model, images, labels and threat_model, then by keyword the dataclass's fields, seed and indices."""
    hints, own = typing.get_type_hints(kind), inspect.signature(kind).parameters
    positional = {"model": Model, "images": Tensor, "labels": Tensor, "threat_model": ThreatModel}
    settings = {name: (hints[name], parameter.default) for name, parameter in own.items()}
    keywords = {**settings, "seed": (int, 0), "indices": (Tensor | None, None)}
    return [
        *(inspect.Parameter(name, _POSITIONAL, annotation=hint) for name, hint in positional.items()),
        *(
            inspect.Parameter(name, _KEYWORD, annotation=hint, default=default)
            for name, (hint, default) in keywords.items()
        ),
    ]
