"""A plain function as an attack: `(model, images, labels, threat_model, generator or seed) -> images`.

From Python `evaluate(..., attacks=[function])`, on the command line `--attack path/file.py:function` or
`--attack package.module:function`; settings follow as `:key=value,key=value` and are passed as keyword arguments.
The model counts its passes, every image returned is verified, and a model that the function changes is restored.
The function sees a batch at a time, so its outcome may depend on the batch size; results say so.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from robustbench_local.attacks.attack import Attack, Model, Rows, State, initial_state
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.engine.model_snapshot import ModelSnapshot
from robustbench_local.engine.random_state import seeded
from robustbench_local.engine.verify import ROUNDING
from robustbench_local.errors import UserError
from robustbench_local.io.escape import plain
from robustbench_local.models.loaders.user_code import load_function
from robustbench_local.models.metered import ModelFailure
from robustbench_local.results.checks import ATTACK_BATCH_INDEPENDENT, POINTS_ALLOWED
from robustbench_local.results.schema import AttackReport, Diagnostic
from robustbench_local.runtime.device import is_out_of_memory
from robustbench_local.specs import FunctionSpec, build

AttackFunction = Callable[..., Tensor]
ARGUMENTS = ("model", "images", "labels", "threat_model")
USAGE = "write (model, images, labels, threat_model), and generator or seed where it draws random numbers"


@dataclass(frozen=True)
class FunctionSource:
    """A function, the keyword arguments it is called with, and how it takes random numbers."""

    function: AttackFunction
    arguments: dict[str, object]
    random_argument: str | None


class FunctionAttack:
    """One call of a function per batch. `function_attack` makes a subclass for every function."""

    name: ClassVar[str]
    source: ClassVar[FunctionSource]
    code_sha256: ClassVar[str]
    steps: ClassVar[int] = 1
    restarts: ClassVar[int] = 1
    targets: ClassVar[int] = 0
    needs_untouched_model: ClassVar[bool] = True
    depends_on_batch: ClassVar[bool] = True

    def start(self, threat_model: ThreatModel, rows: Rows) -> State:  # noqa: ARG002
        return initial_state(rows, rows.images)

    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State:
        points = self._checked(self._call(model, threat_model, state), state["images"], threat_model)
        return {**state, "points": points, "step": state["step"] + 1}

    def _call(self, model: Model, threat_model: ThreatModel, state: State) -> object:
        """What the function returns. Raises UserError where it fails or changes the model."""
        assert isinstance(model, nn.Module)
        images, labels, seed = state["images"].clone(), state["labels"].clone(), int(state["keys"][0]) % 2**31
        more = dict(self.source.arguments)
        if self.source.random_argument == "generator":
            more["generator"] = torch.Generator(images.device).manual_seed(seed)
        elif self.source.random_argument == "seed":
            more["seed"] = seed
        snapshot = ModelSnapshot(model)
        try:
            with seeded(seed), torch.enable_grad():
                output = self.source.function(model, images, labels, threat_model, **more)
        except (Exception, SystemExit) as error:
            snapshot.restore()
            if is_out_of_memory(error):
                raise
            raise self._failure(error) from error
        changes = snapshot.restore()
        if changes:
            raise UserError(
                f"attack {self.name} changed the model ({', '.join(changes)}): let it work on copy.deepcopy(model)",
                slug="attack-changed-model",
            )
        return output

    def _failure(self, error: BaseException) -> UserError:
        frames = traceback.extract_tb(error.__traceback__)
        file = getattr(getattr(_innermost(self.source.function), "__code__", None), "co_filename", None)
        own = [frame for frame in frames if frame.filename == file]
        place = f", {own[-1].filename} line {own[-1].lineno}" if own else ""
        if isinstance(error, ModelFailure):
            return UserError(f"attack {self.name} failed in the model{place}: {error}", slug="attack-function-failed")
        reason = (str(error).strip() or "no message").splitlines()[0]
        return UserError(
            f"attack {self.name} failed: {type(error).__name__}: {reason}{place}", slug="attack-function-failed"
        )

    def _checked(self, output: object, images: Tensor, threat_model: ThreatModel) -> Tensor:
        """The images returned, as float like `images`. Raises UserError where they are no images of that shape.

        Whether they are in the ball and the box is verified as for any other attack; pixels outside the box by a
        rounding error are clamped here.
        """
        if not isinstance(output, Tensor):
            raise UserError(
                f"attack {self.name} returned {type(output).__name__}, but must return a torch.Tensor of images",
                slug="attack-returns-no-tensor",
            )
        if output.shape != images.shape:
            raise UserError(
                f"attack {self.name} returned images of shape {tuple(output.shape)}, but must return one for every "
                f"image: {tuple(images.shape)}",
                slug="attack-returns-wrong-shape",
            )
        if not output.is_floating_point():
            raise UserError(
                f"attack {self.name} returned {output.dtype}, but must return floating-point images in "
                f"[{threat_model.box[0]:g}, {threat_model.box[1]:g}]",
                slug="attack-returns-wrong-dtype",
            )
        points = output.detach().to(images)
        boxed = points.clamp(*threat_model.box)
        return torch.where((boxed - points).abs() <= ROUNDING, boxed, points)


def as_attack(candidate: Attack | AttackFunction) -> Attack:
    """The attack, or the function as an attack.

    Raises UserError for anything else, and for a function that cannot be called as an attack.
    """
    if isinstance(candidate, type):
        raise UserError(
            f"{candidate.__name__} is a class, but an attack is an instance: write {candidate.__name__}()",
            slug="attack-is-a-class",
        )
    if hasattr(candidate, "start") and hasattr(candidate, "step"):
        return cast(Attack, candidate)
    if not callable(candidate):
        raise UserError(
            f"{candidate!r} is no attack: give attacks such as PGD(), or functions of (model, images, labels, "
            "threat_model); resolve_attack reads names such as 'pgd:steps=50'",
            slug="not-an-attack",
        )
    function = _innermost(candidate)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return function_attack(candidate, f"{getattr(function, '__module__', 'function')}:{name}")


def load_function_attack(spec: FunctionSpec) -> Attack:
    """The function that a spec names, as an attack.

    Raises UserError where it cannot be loaded or called as an attack, and for unknown settings.
    """
    where, name = spec.where, spec.function
    if not name.isidentifier():
        raise UserError(
            f"--attack {plain(where)} names no function: write path/file.py:FUNCTION or package.module:FUNCTION",
            slug="function-not-named",
        )
    function = load_function(where, name)
    is_file = where.endswith(".py")
    code = hashlib.sha256(Path(where).expanduser().read_bytes()).hexdigest() if is_file else _code_sha256(function)
    return function_attack(function, plain(f"{where}:{name}"), spec.settings, code)


def function_attack(
    function: AttackFunction, name: str, settings: dict[str, str] | None = None, code_sha256: str | None = None
) -> Attack:
    """A function as an attack of that name.

    settings: further keyword arguments, as text. code_sha256: identifies the code; by default a hash of its source.
    Raises UserError where the function does not take the arguments of an attack, or not these settings.
    """
    options, random_argument = _parameters(function, name)
    kind = dataclasses.make_dataclass("settings", [(key, type_, default) for key, (type_, default) in options.items()])
    values = dataclasses.asdict(build(kind, settings or {}, f"--attack {name}"))
    arguments = {key: value for key, value in values.items() if value != options[key][1]}
    settings_text = ",".join(f"{key.replace('_', '-')}={value}" for key, value in arguments.items())
    namespace = {
        "name": f"{name}:{settings_text}" if settings_text else name,
        "source": FunctionSource(function, arguments, random_argument),
        "code_sha256": code_sha256 or _code_sha256(function),
    }
    kind = dataclasses.make_dataclass("Function", [], bases=(FunctionAttack,), frozen=True, namespace=namespace)
    return kind()  # type: ignore[no-any-return]  # make_dataclass cannot say what it makes


def _parameters(function: AttackFunction, name: str) -> tuple[dict[str, tuple[type, Any]], str | None]:
    """The settings of a function, by name their type and default, and the argument for random numbers."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = [inspect.Parameter("arguments", inspect.Parameter.VAR_POSITIONAL)]
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    variadic = any(each.kind == each.VAR_POSITIONAL for each in parameters)
    if len(positional) < len(ARGUMENTS) and not variadic:
        raise UserError(
            f"attack {name} takes {len(positional)} positional arguments, but must take {len(ARGUMENTS)}: {USAGE}",
            slug="attack-function-signature",
        )
    options: dict[str, tuple[type, Any]] = {}
    random_argument = None
    for each in parameters:
        if each in positional[: len(ARGUMENTS)] or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            continue
        if each.name in ("generator", "seed") and random_argument is None and each.kind != each.POSITIONAL_ONLY:
            random_argument = each.name
        elif each.default is inspect.Parameter.empty or each.kind == each.POSITIONAL_ONLY:
            raise UserError(
                f"attack {name} needs an argument {each.name!r}, which has no default: {USAGE}",
                slug="attack-function-signature",
            )
        elif isinstance(each.default, bool | int | float | str):
            options[each.name] = type(each.default), each.default
    return options, random_argument


def _innermost(function: AttackFunction) -> AttackFunction:
    """The function inside partials and decorators."""
    while isinstance(function, functools.partial):
        function = function.func
    inner: AttackFunction = inspect.unwrap(function)
    return inner


def _code_sha256(function: AttackFunction) -> str:
    """A hash of the function's source; of its bytecode, or else its name, where there is no source."""
    inner = _innermost(function)
    try:
        content = inspect.getsource(inner if inspect.isroutine(inner) else type(inner))
    except (OSError, TypeError):
        code = getattr(inner, "__code__", None)
        content = repr(inner) if code is None else f"{code.co_code.hex()} {code.co_names}"
    if isinstance(function, functools.partial):
        content += f" {function.args} {function.keywords}"
    return hashlib.sha256(content.encode()).hexdigest()


def attack_findings(attacks: Sequence[Attack], reports: Sequence[AttackReport]) -> list[Diagnostic]:
    """What a result says about attacks that work on whole batches: functions, and those of the toolbox.

    attacks: those of the run. reports: theirs.
    """
    batched = list(dict.fromkeys(each.name for each in attacks if getattr(each, "depends_on_batch", False)))
    outside, attacked = sum(report.outside for report in reports), sum(report.attacked for report in reports)
    findings = []
    if batched:
        findings.append(
            Diagnostic(
                slug=ATTACK_BATCH_INDEPENDENT,
                status="skipped",
                advice=f"{', '.join(batched)}: called with whole batches, so the outcome may depend on the batch size",
            )
        )
    if batched or outside:
        names = ", ".join(report.name for report in reports if report.outside)
        findings.append(
            Diagnostic(
                slug=POINTS_ALLOWED,
                status="warn" if outside else "pass",
                value=float(outside),
                threshold=0.0,
                n=attacked,
                advice=f"{names} returned {outside} images outside the ball or the pixel range, or not finite: they do "
                "not count as successes, so the attack is weaker than it could be"
                if outside
                else "",
            )
        )
    return findings
