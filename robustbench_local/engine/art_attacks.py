"""Every evasion attack of adversarial-robustness-toolbox as an attack of this engine: `art/NAME`.

Whatever the toolbox returns is projected into the ball and the box, then verified like any other success. Its attacks
draw from NumPy's global generator, so a sample's outcome depends on its batch; the generator is seeded from the run's
random keys and restored afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from robustbench_local.attacks.attack import Model, Rows, State, initial_state
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.engine.random_state import seeded
from robustbench_local.errors import UserError, nearest

_OURS = {"norm", "eps", "targeted", "batch_size", "verbose", "summary_writer", "classifier", "estimator", "self"}
"""Arguments that the threat model and the engine set."""
_NORMS = {"linf": np.inf, "l2": 2, "l1": 1}


class ArtAttack:
    """One call of `generate` on a batch. `art_attack` makes a subclass for every attack, its settings as fields."""

    name: ClassVar[str]
    steps: ClassVar[int] = 1
    restarts: ClassVar[int] = 1
    targets: ClassVar[int] = 0
    depends_on_batch: ClassVar[bool] = True
    kind: ClassVar[type]

    def start(self, threat_model: ThreatModel, rows: Rows) -> State:  # noqa: ARG002
        return initial_state(rows, rows.images)

    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State:
        images, labels = state["images"], state["labels"]
        if threat_model.eps == 0:  # which the toolbox refuses
            return {**state, "step": state["step"] + 1}
        if threat_model.target is not None:
            labels = torch.full_like(labels, threat_model.target)
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        with seeded(int(state["keys"][0])), self._errors():
            estimator = _estimator(model, images, classes, threat_model)
            attack = self.kind(estimator, **self._arguments(threat_model, images))
            onehot = np.eye(classes, dtype=np.float32)[labels.cpu().numpy()]
            output = attack.generate(x=images.cpu().numpy(), y=onehot)
        if not isinstance(output, np.ndarray) or output.shape != tuple(images.shape):
            raise UserError(
                f"{self.name} does not return one perturbed image for every image, so no norm bounds it: choose "
                "another attack",
                slug="toolbox-attack-unsupported",
            )
        points = torch.from_numpy(output.astype(np.float32)).to(images.device)
        points = torch.where(torch.isfinite(points), points, images)
        return {**state, "points": threat_model.project(points, images), "step": state["step"] + 1}

    def _arguments(self, threat_model: ThreatModel, images: Tensor) -> dict[str, Any]:
        """The attack's own settings, and those of the engine that the attack accepts."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        ours = {
            "norm": _NORMS[threat_model.norm],
            "eps": threat_model.eps,
            "batch_size": len(images),
            "verbose": False,
            "targeted": threat_model.target is not None,
            "summary_writer": False,
        }
        parameters = inspect.signature(self.kind).parameters
        if threat_model.target is not None and "targeted" not in parameters:
            raise UserError(
                f"{self.name} has no targeted mode: leave --target out or choose another attack",
                slug="toolbox-attack-untargeted",
            )
        if settings.get("eps_step", 0) is None:
            settings["eps_step"] = self._step_size(threat_model.eps)
        return {**settings, **{name: value for name, value in ours.items() if name in parameters}}

    def _step_size(self, eps: float) -> float:
        """A step size relative to eps, as in the attacks' papers: the toolbox's default of 0.1 exceeds most balls."""
        if self.kind.__name__ == "FastGradientMethod":
            return eps
        return 2 * eps if "Auto" in self.kind.__name__ else 2.5 * eps / getattr(self, "max_iter", 1)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{self.name} failed in adversarial-robustness-toolbox: {reason}", slug="toolbox-attack-failed"
            ) from error


def _estimator(model: Model, images: Tensor, classes: int, threat_model: ThreatModel) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model=model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=classes,
        clip_values=threat_model.box,
        device_type="gpu" if images.is_cuda else "cpu",
    )


def _toolbox() -> ModuleType:
    import art.attacks.evasion

    module: ModuleType = art.attacks.evasion
    return module


@functools.cache
def art_names() -> tuple[str, ...]:
    """The toolbox's attacks that work on a PyTorch image classifier and need nothing but settings."""
    from art.attacks.attack import EvasionAttack
    from art.estimators.classification import PyTorchClassifier

    names = []
    for name, kind in inspect.getmembers(_toolbox(), inspect.isclass):
        if not issubclass(kind, EvasionAttack) or name.endswith(("Numpy", "TensorFlowV2")) or "Patch" in name:
            continue
        arguments = list(inspect.signature(kind.__init__).parameters.values())[2:]
        needs_more = any(argument.default is inspect.Parameter.empty for argument in arguments)
        requirements = kind._estimator_requirements  # type: ignore[attr-defined]
        if requirements and not needs_more and all(issubclass(PyTorchClassifier, each) for each in requirements):
            names.append(name)
    return tuple(names)


@functools.cache
def art_attack(name: str) -> type[ArtAttack]:
    """The attack of that name; its fields are those of its settings that can be written as text.

    Raises UserError for a name that the toolbox does not have or that does not attack image classifiers.
    """
    if name not in art_names():
        raise UserError(
            f"adversarial-robustness-toolbox has no attack {name!r} on PyTorch image classifiers; "
            f"'robust list attacks' shows those it has.{nearest(name, art_names())}",
            slug="unknown-attack",
        )
    kind = getattr(_toolbox(), name)
    fields: list[tuple[str, Any, Any]] = []
    for argument in inspect.signature(kind.__init__).parameters.values():
        if argument.name in _OURS:
            continue
        if argument.name == "eps_step":
            fields.append(("eps_step", float | None, None))
        elif argument.default is None:
            fields.append((argument.name, str | None, None))
        elif isinstance(argument.default, bool | int | float | str):
            fields.append((argument.name, type(argument.default), argument.default))
    return dataclasses.make_dataclass(
        f"Art{name}",
        fields,
        bases=(ArtAttack,),
        frozen=True,
        kw_only=True,
        namespace={"name": f"art/{name}", "kind": kind},
    )
