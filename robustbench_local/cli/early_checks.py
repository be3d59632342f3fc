"""Checks of options that need no torch: a mistyped value is answered at once, not after seconds of imports.

Each check raises UserError with the same slug as the code that uses the value later.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from robustbench_local.data import require_files, require_known
from robustbench_local.errors import UserError, nearest

_DEVICE = re.compile(r"cpu|mps|cuda(:\d{1,3})?")


def check_options(options: Mapping[str, Any]) -> None:
    """Check the value of every option that has a check, then the options that exclude each other.

    options: values by the name of the parameter, None where not given; names without a check are ignored.
    """
    for name, check in CHECKS.items():
        value = options.get(name)
        for each in value if isinstance(value, tuple | list) else (value,):
            if each is not None:
                check(str(each))
    for model in (options.get("model") or options.get("arch"), options.get("teacher")):
        if model is not None:
            check_model(str(model), options.get("arch") if model == options.get("model") else None)
    if options.get("eps") is not None:
        check_eps(str(options["eps"]), str(options.get("norm") or "linf"))
    _check_combinations(options)


def check_eps(text: str, norm: str) -> None:
    """`--eps`: a number in pixel units that suits the norm."""
    from robustbench_local.numbers import parse_eps

    try:
        parse_eps(text, norm)
    except ValueError as error:
        raise UserError(f"--eps: {error}", slug="invalid-eps") from None


def check_suite(text: str) -> None:
    """`--suite NAME[/VERSION]`."""
    from robustbench_local.results.protocol_order import SUITE_HASHES

    name, slash, version = text.partition("/")
    versions = [f"{suite}/{number}" for suite, number in SUITE_HASHES]
    names = list(dict.fromkeys(suite for suite, _ in SUITE_HASHES))
    if name not in names:
        raise UserError(
            f"--suite: unknown suite {name!r}: choose one of {', '.join(names)}.{nearest(name, names)}",
            slug="unknown-suite",
        )
    if slash and f"{name}/{version}" not in versions:
        available = ", ".join(each for each in versions if each.startswith(f"{name}/"))
        raise UserError(
            f"--suite: there is no version {text!r}: the versions of this suite are {available}",
            slug="unknown-suite-version",
        )


def check_attack(text: str) -> None:
    """`--attack NAME[:KEY=VALUE,…]` or `path/file.py:FUNCTION`: the name, and the names and types of the settings."""
    from robustbench_local.cli.source_registry import attack_settings, toolbox_attack_names
    from robustbench_local.specs import build, parse_function_spec, parse_spec

    available = attack_settings()
    if function := parse_function_spec(text, available):
        if function.where.endswith(".py"):
            _check_code(function.where, function.function, text)
        return
    name, settings = parse_spec(text)
    if name.startswith("art/"):
        toolbox = toolbox_attack_names()
        if toolbox and name.removeprefix("art/") not in toolbox:
            raise UserError(
                f"--attack: adversarial-robustness-toolbox has no attack {name.removeprefix('art/')!r}; 'robust list "
                f"attacks' shows those it has.{nearest(name.removeprefix('art/'), toolbox)}",
                slug="unknown-attack",
            )
        return
    if name not in available:
        raise UserError(
            f"--attack: unknown attack {name!r}: choose one of {', '.join(available)}, art/NAME from "
            f"adversarial-robustness-toolbox, or path/file.py:FUNCTION.{nearest(name, available)}",
            slug="unknown-attack",
        )
    build(available[name], settings, f"--attack {name}")


def check_method(text: str) -> None:
    """`--method NAME[:KEY=VALUE,…][+ADD-ON…]`: the names, and the names and types of the settings."""
    from robustbench_local.cli.source_registry import add_on_settings, method_settings
    from robustbench_local.specs import build, parse_spec

    methods, add_ons = method_settings(), add_on_settings()
    for number, part in enumerate(text.split("+")):
        name, settings = parse_spec(part)
        if number == 0 and name in add_ons:
            raise UserError(
                f"--method {name}: {name} is an add-on; write it behind a method, as in trades+{name} "
                f"({', '.join(methods)})",
                slug="add-on-without-method",
            )
        if number == 0 and name not in methods:
            raise UserError(
                f"--method: unknown method {name!r}: choose one of {', '.join(methods)}.{nearest(name, methods)}",
                slug="unknown-method",
            )
        if number > 0 and name not in add_ons:
            raise UserError(
                f"--method {text}: {name!r} is not an add-on: choose from {', '.join(add_ons)}."
                f"{nearest(name, add_ons)}",
                slug="unknown-add-on",
            )
        build((add_ons if number else methods)[name], settings, f"--method {name}")


def check_defense(text: str) -> None:
    """`--defense NAME[:KEY=VALUE,…]`: the name, and the names and types of the settings."""
    from robustbench_local.cli.source_registry import input_defense_settings
    from robustbench_local.specs import build, parse_spec

    name, settings = parse_spec(text)
    available = input_defense_settings()
    if name not in available:
        raise UserError(
            f"--defense: unknown input defense {name!r}: choose one of {', '.join(available)}."
            f"{nearest(name, available)}",
            slug="unknown-input-defense",
        )
    build(available[name], settings, f"--defense {name}")


def check_data(spec: str) -> None:
    """`--data SPEC`: the name of the dataset, or the file or directory after `npz:` or `imagefolder:`."""
    from robustbench_local.io.safe_read import printable

    require_known(spec)
    kind, _, rest = spec.partition(":")
    if not rest:
        return
    path = Path(rest).expanduser()
    if kind == "npz":
        if not path.is_file():
            what = "is a directory" if path.is_dir() else "does not exist"
            raise UserError(
                f"the data file {printable(path)} {what}: npz:PATH needs an .npz file", slug="npz-not-a-file"
            )
    elif kind == "imagefolder" and not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(
            f"the directory {printable(path)} {what}; imagefolder:PATH names a directory with one directory per class",
            slug="imagefolder-not-a-directory",
        )


def check_model(model: str, arch: str | None = None) -> None:
    """MODEL with `--arch`: a known name, an existing file, or code in an existing file; and the package it needs."""
    from robustbench_local.io.safe_read import require_plain_file
    from robustbench_local.models.catalog import check_model_name

    check_model_name(model, arch)
    for text in filter(None, (model, arch)):
        where, _, name = text.rpartition(":")
        if text.startswith("timm/"):
            _check_extra("timm", "timm", text)
        elif where.endswith(".py"):
            _check_code(where, name, text)
    if model.lower().endswith(".onnx"):
        require_plain_file(Path(model).expanduser())
        _check_extra("onnx2torch", "onnx", model)


def check_checkpoint(text: str) -> None:
    """`--checkpoint FILE`."""
    from robustbench_local.io.safe_read import require_plain_file

    require_plain_file(Path(text).expanduser())


def check_image(text: str) -> None:
    """An IMAGE of `predict`, a file or a directory."""
    from robustbench_local.io.safe_read import printable

    if not Path(text).expanduser().exists():
        raise UserError(f"there is no image {printable(text)}: check the path", slug="file-not-found")


def check_normalize(text: str) -> None:
    """`--normalize NAME|MEAN:STD`."""
    from robustbench_local.models.normalization import parse_normalization

    parse_normalization(text)


def check_resize(text: str) -> None:
    """`--resize SIZE[:CROP]`."""
    from robustbench_local.data.resize import Resize

    Resize.parse(text)


def check_device(text: str) -> None:
    """`--device`: how it is written; whether this machine has it is known later."""
    if not _DEVICE.fullmatch(text):
        raise UserError(
            f"--device is {text!r}, but must be cpu, mps, cuda or cuda:N, such as cuda:1", slug="unknown-device"
        )


def check_batch_size(text: str) -> None:
    """`--batch-size auto|N`."""
    if text != "auto" and not (text.isdecimal() and len(text) < 10 and int(text) >= 1):
        raise UserError(
            f"--batch-size is {text!r}, but must be auto or a whole number of at least 1", slug="invalid-batch-size"
        )


def check_gate(text: str) -> None:
    """`--until-gate NAME|FILE`."""
    from robustbench_local.cli.config_kinds import GATE, require_kind_of_file
    from robustbench_local.gates.config import read_gate

    require_kind_of_file(text, GATE, "--until-gate")
    read_gate(text, option="--until-gate")


CHECKS: dict[str, Callable[[str], None]] = {
    "checkpoint": check_checkpoint,
    "images": check_image,
    "normalize": check_normalize,
    "defenses": check_defense,
    "data": check_data,
    "eval_data": check_data,
    "resize": check_resize,
    "attacks": check_attack,
    "suite": check_suite,
    "method": check_method,
    "device": check_device,
    "batch_size": check_batch_size,
    "until_gate": check_gate,
}
"""The name of an option's parameter -> its check."""


def _check_combinations(options: Mapping[str, Any]) -> None:
    """Options that exclude each other, or that need another one."""
    values = {name: value for name, value in options.items() if value not in (None, (), False)}
    if "resize" in values and "data" in options:
        require_files(values.get("data", "digits"))
    if "tensorboard" in values:
        _check_extra("tensorboard", "tensorboard", "--tensorboard")
    if "suite" in values and "attacks" in values:
        raise UserError(
            "give --suite or --attack, not both: with other attacks in it, a protocol cannot keep its name",
            slug="suite-and-attacks",
        )
    if "resume" in values and "output" not in values:
        raise UserError(
            "--resume needs the --output of the interrupted run: give the same command again with --resume",
            slug="resume-without-output",
        )
    if "until_gate" in values and "samples" in values:
        raise UserError(
            "with --until-gate the evaluation chooses the number of samples: leave out --samples or --until-gate",
            slug="samples-and-stopping-rule",
        )
    if "source" in values and "target" not in values:
        raise UserError(
            "--source needs --target: the class that its images are to be classified as", slug="source-without-target"
        )
    if values.get("precision") == "tf32" and values.get("device") in ("cpu", "mps"):
        raise UserError("--precision tf32 needs an NVIDIA GPU: choose auto, fp32 or bf16", slug="precision-needs-cuda")


def _check_code(file: str, name: str, text: str) -> None:
    """`path/file.py:NAME`: the file exists, and NAME can be a name."""
    from robustbench_local.io.safe_read import require_plain_file

    require_plain_file(Path(file).expanduser())
    if not name.isidentifier():
        raise UserError(f"{text!r} names no function: write path/file.py:FUNCTION", slug="function-not-named")


def _check_extra(package: str, extra: str, text: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{text} needs the package {package}: pip install 'robustbench-local[{extra}]'", slug="missing-extra"
        )
