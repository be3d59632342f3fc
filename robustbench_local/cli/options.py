"""Options that several commands share, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robustbench_local.errors import UserError

if TYPE_CHECKING:
    from robustbench_local.attacks import ThreatModel
    from robustbench_local.data.dataset import Dataset
    from robustbench_local.models import Classifier

F = TypeVar("F", bound=Callable[..., Any])


def _all(options: list[Callable[[F], F]]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _config(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:  # noqa: ARG001
    """Settings of a YAML file become the defaults of the command, so flags win over them."""
    if value is not None:
        ctx.default_map = {**(ctx.default_map or {}), **read_options(ctx.command, value)}
    return value


def read_options(command: click.Command, path: Path) -> dict[str, Any]:
    """The options of a command in a YAML file, by the name of the parameter and as the command line would give them.

    Raises UserError for what `read_settings` refuses, an unknown option, and a value that is not text, number or list.
    """
    from robustbench_local.io.settings import read_settings, reject_unknown

    names = {parameter.opts[0].lstrip("-"): str(parameter.name) for parameter in command.params}
    del names["config"]
    where = f"--config {path}"
    settings = {key.replace("_", "-"): value for key, value in read_settings(path, where).items()}
    reject_unknown(settings, names, where)
    multiple = {parameter.name for parameter in command.params if getattr(parameter, "multiple", False)}
    return {names[key]: _as_typed(value, names[key] in multiple, f"{path}: {key}") for key, value in settings.items()}


def _as_typed(value: Any, multiple: bool, where: str) -> Any:
    """A setting as the command line would have had it: text, a switch, or for a repeatable option several texts."""
    if multiple:
        return [_as_typed(each, False, where) for each in (value if isinstance(value, list) else [value])]
    if not isinstance(value, str | int | float):
        from robustbench_local.io.safe_read import quoted

        raise UserError(f"--config {where} is {quoted(value)}, but must be a single text or number")
    return value if isinstance(value, bool) else str(value)


config_option = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    is_eager=True,
    callback=_config,
    help="YAML file of options, named as here; flags win over it.",
)

model_options = _all(
    [
        click.argument("model", required=False),
        click.option("--checkpoint", type=click.Path(path_type=Path), help="File with the model's weights."),
        click.option("--arch", help="Architecture of a file that holds weights alone."),
        click.option("--normalize", metavar="NAME|MEAN:STD", help="What the model expects its input scaled by."),
        click.option(
            "--num-classes", type=click.IntRange(min=2), help="Classes of the architecture, where not inferred."
        ),
        click.option(
            "--defense",
            "defenses",
            multiple=True,
            metavar="NAME[:KEY=VALUE,…]",
            help="Input defense in front of the model, such as jpeg:quality=75; repeatable. Attacks go through it "
            "(BPDA).",
        ),
    ]
)

data_options = _all(
    [
        click.option("--data", metavar="SPEC", help="Data set; 'robust list datasets' shows them.  [default: digits]"),
        click.option("--split", default="test", show_default=True, help="Split of the data set."),
        click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets lie.  [default: data]"),
        click.option("--download", is_flag=True, help="Fetch the data set where it is missing."),
        click.option("--resize", metavar="SIZE[:CROP]", help="Resize and centre-crop images from files."),
    ]
)

threat_options = _all(
    [
        click.option(
            "--norm",
            type=click.Choice(["linf", "l2", "l1"], case_sensitive=False),
            default="linf",
            show_default=True,
            help="Norm of the ball.",
        ),
        click.option("--eps", help="Radius in pixels of [0, 1], such as 8/255.  [default: by data set]"),
        click.option("--target", type=int, help="Class that images must be taken for."),
        click.option("--source", type=int, help="With --target: the class whose images are attacked."),
        click.option(
            "--reject", type=int, help="Class that stands for a refusal: fooled is who is misread and accepted."
        ),
    ]
)

run_options = _all(
    [
        click.option("--samples", type=click.IntRange(min=1), help="Seeded, stratified subset.  [default: all]"),
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random."
        ),
        click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: the best there is]"),
        click.option("--batch-size", default="auto", show_default=True, metavar="auto|N", help="Images at a time."),
    ]
)


def batch_size(text: str) -> int | None:
    """`auto` as None, a number as itself."""
    if text == "auto":
        return None
    if not str(text).isdecimal() or int(text) < 1:
        raise UserError(f"--batch-size is {text!r}, but must be auto or a whole number of at least 1")
    return int(text)


def load_model(options: dict[str, Any]) -> Classifier:
    """The classifier that the shared options name, behind its input defenses."""
    from robustbench_local.models import load_classifier
    from robustbench_local.models.preprocessing import with_preprocessing

    classifier = load_classifier(
        options["model"],
        checkpoint=options["checkpoint"],
        arch=options["arch"],
        normalize=options["normalize"],
        num_classes=options["num_classes"],
    )
    return with_preprocessing(classifier, options["defenses"])


def load_model_and_data(options: dict[str, Any]) -> tuple[Classifier, Dataset]:
    """The classifier and the data set that the shared options name."""
    from robustbench_local.data import load_dataset, require_files
    from robustbench_local.data.resize import Resize

    spec = options["data"]
    if options["model"] is None:
        if options["checkpoint"] is not None or options["arch"] is not None:
            raise UserError("name the model: 'robust attack FILE --arch NAME', or a factory with --checkpoint FILE")
        if spec not in (None, "digits"):
            raise UserError(f"name the model that is to be attacked on {spec}: without one, the bundled digits-cnn is")
    name = options["model"] or "digits-cnn"
    classifier = load_model({**options, "model": name})
    if spec is None and not name.startswith("digits-cnn"):
        raise UserError("say with --data which images to use; 'robust list datasets' shows what there is")
    resize = classifier.resize
    if options["resize"]:
        require_files(spec or "digits")
        resize = Resize.parse(options["resize"])
    dataset = load_dataset(
        "digits" if spec is None else spec,
        split=options["split"],
        data_dir=options["data_dir"],
        download=options["download"],
        resize=resize,
        class_names=classifier.class_names,
    )
    return classifier, dataset


def load_threat_model(options: dict[str, Any]) -> ThreatModel:
    """The threat model; eps by data set where it is not given."""
    from robustbench_local.attacks import ThreatModel
    from robustbench_local.data import default_eps

    data = "digits" if options["data"] is None else options["data"]
    eps = options["eps"] if options["eps"] is not None else default_eps(data, options["norm"])
    if eps is None:
        raise UserError(
            f"there is no usual {options['norm']} eps for {data}: give one in units of pixels in [0, 1], "
            f"such as --eps {'8/255' if options['norm'] == 'linf' else '0.5'}"
        )
    try:
        return ThreatModel(
            options["norm"],
            str(eps),  # type: ignore[arg-type]  # parsed from its text
            target=options["target"],
            source=options["source"],
            reject=options["reject"],
        )
    except ValueError as error:
        raise UserError(str(error)) from None
