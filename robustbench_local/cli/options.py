"""Options that several commands share, and the objects that they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robustbench_local.cli.early_checks import check_batch_size
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
    from robustbench_local.cli.config_kinds import require_kind
    from robustbench_local.io.settings import read_settings, reject_unknown

    names = {parameter.opts[0].lstrip("-"): str(parameter.name) for parameter in command.params}
    del names["config"]
    where = f"--config {path}"
    values = read_settings(path, where)
    require_kind(values, {name.replace("-", "_") for name in names}, where)
    settings = {key.replace("_", "-"): value for key, value in values.items()}
    reject_unknown(settings, names, where)
    multiple = {parameter.name for parameter in command.params if getattr(parameter, "multiple", False)}
    return {names[key]: _as_typed(value, names[key] in multiple, f"{path}: {key}") for key, value in settings.items()}


def _as_typed(value: Any, multiple: bool, where: str) -> Any:
    """A setting as the command line gives it: text, a switch, or several texts for a repeatable option."""
    if multiple:
        return [_as_typed(each, False, where) for each in (value if isinstance(value, list) else [value])]
    if not isinstance(value, str | int | float):
        from robustbench_local.io.safe_read import quoted

        raise UserError(
            f"--config {where} is {quoted(value)}, but must be a single text or number", slug="invalid-setting"
        )
    return value if isinstance(value, bool) else str(value)


config_option = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    is_eager=True,
    callback=_config,
    help="YAML file with this command's options by name. Options on the command line take precedence.",
)
device_option = click.option("--device", help="cpu, mps, cuda or cuda:N.  [default: CUDA, else MPS, else CPU]")

model_options = _all(
    [
        click.argument("model", required=False),
        click.option("--checkpoint", type=click.Path(path_type=Path), help="File with the model's weights."),
        click.option(
            "--checkpoint-key",
            metavar="KEY",
            help="Where in the file the weights are, such as state_dict_ema; needed where several different ones fit.",
        ),
        click.option("--arch", help="Architecture, where MODEL is a file with weights only."),
        click.option(
            "--normalize", metavar="NAME|MEAN:STD", help="Normalization that the model expects, such as cifar10."
        ),
        click.option(
            "--num-classes", type=click.IntRange(min=2), help="Number of classes.  [default: read from the weights]"
        ),
        click.option(
            "--defense",
            "defenses",
            multiple=True,
            metavar="NAME[:KEY=VALUE,…]",
            help="Input defense in front of the model, such as jpeg:quality=75; repeatable. Attacks are adapted to it "
            "(BPDA).",
        ),
    ]
)

data_options = _all(
    [
        click.option("--data", metavar="SPEC", help="Dataset; see 'robust list datasets'.  [default: digits]"),
        click.option("--split", default="test", show_default=True, help="Split of the dataset."),
        click.option(
            "--data-dir", type=click.Path(path_type=Path), help="Dataset directory.  [default: $ROBUST_DATA or data]"
        ),
        click.option("--download", is_flag=True, help="Download the dataset if it is missing."),
        click.option(
            "--resize", metavar="SIZE[:CROP]", help="Resize image files: the shorter side to SIZE, then a center crop."
        ),
    ]
)

threat_options = _all(
    [
        click.option(
            "--norm",
            type=click.Choice(["linf", "l2", "l1"], case_sensitive=False),
            default="linf",
            show_default=True,
            help="Norm of the perturbation.",
        ),
        click.option(
            "--eps",
            help="Radius: the largest norm of a perturbation of pixels in [0, 1], such as 8/255.  [default: by "
            "dataset]",
        ),
        click.option("--target", type=int, help="Targeted attack: the class that counts as success."),
        click.option("--source", type=int, help="With --target: attack only images of this class."),
        click.option(
            "--reject",
            type=int,
            help="Class by which the model rejects an image: an image counts as fooled if it is misclassified and not "
            "rejected.",
        ),
    ]
)

run_options = _all(
    [
        click.option(
            "--samples", type=click.IntRange(min=1), help="Size of a random, stratified subset.  [default: all]"
        ),
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random numbers."
        ),
        device_option,
        click.option("--batch-size", default="auto", show_default=True, metavar="auto|N", help="Images per batch."),
    ]
)


def batch_size(text: str) -> int | None:
    """`auto` as None, a number as itself. Raises UserError for other text."""
    check_batch_size(text)
    return None if text == "auto" else int(text)


def load_model(options: dict[str, Any]) -> Classifier:
    """The classifier that the shared options name, with its input defenses in front.

    Prints what was decided while loading, such as which weights of the file were taken.
    """
    from robustbench_local.models import load_classifier
    from robustbench_local.models.preprocessing import with_preprocessing

    classifier = load_classifier(
        options["model"],
        checkpoint=options["checkpoint"],
        checkpoint_key=options["checkpoint_key"],
        arch=options["arch"],
        normalize=options["normalize"],
        num_classes=options["num_classes"],
    )
    _tell(classifier.notes)
    return with_preprocessing(classifier, options["defenses"])


def require_model_and_data(options: Mapping[str, Any]) -> None:
    """Raise UserError where MODEL or `--data` is missing; only without both the bundled digits classifier is meant."""
    model, data = options["model"], options["data"]
    if model is None and (options["checkpoint"] is not None or options["arch"] is not None):
        raise UserError(
            "name the model: 'robust attack FILE --arch NAME', or a factory with --checkpoint FILE",
            slug="model-missing",
        )
    if model is None and data not in (None, "digits"):
        raise UserError(
            f"name the model to evaluate on {data}: the default, digits-cnn, fits digits only", slug="model-missing"
        )
    if data is None and model is not None and not model.startswith("digits-cnn"):
        raise UserError("give the images with --data; 'robust list datasets' shows the datasets", slug="data-missing")


def load_model_and_data(options: dict[str, Any]) -> tuple[Classifier, Dataset]:
    """The classifier and the dataset that the shared options name."""
    from robustbench_local.data import load_dataset, require_files
    from robustbench_local.data.resize import Resize

    spec = options["data"] or "digits"
    classifier = load_model({**options, "model": options["model"] or "digits-cnn"})
    resize = classifier.resize
    if options["resize"]:
        require_files(spec)
        resize = Resize.parse(options["resize"])
    dataset = load_dataset(
        spec,
        split=options["split"],
        data_dir=options["data_dir"],
        download=options["download"],
        resize=resize,
        class_names=classifier.class_names,
    )
    if dataset.left_out is not None and dataset.left_out.text:
        _tell([dataset.left_out.text])
    return classifier, dataset


def _tell(notes: Sequence[str]) -> None:
    """Print what was decided while loading, on one rank."""
    from robustbench_local.runtime.distributed import rank_and_world

    for note in notes if rank_and_world()[0] == 0 else ():
        click.echo(note, err=True)


def require_eps(options: Mapping[str, Any]) -> str:
    """The text of `--eps`, or the usual radius of the dataset and norm. Raises UserError where there is none."""
    from robustbench_local.data import default_eps

    data, norm = options["data"] or "digits", options["norm"]
    eps = options["eps"] if options["eps"] is not None else default_eps(data, norm)
    if eps is None:
        raise UserError(
            f"there is no usual {norm} radius for {data}: give one for pixels in [0, 1], such as --eps "
            f"{'8/255' if norm == 'linf' else '0.5'}",
            slug="eps-missing",
        )
    return str(eps)


def load_threat_model(options: Mapping[str, Any]) -> ThreatModel:
    """The threat model of the shared options, with the usual radius of the dataset where none is given."""
    from robustbench_local.attacks import ThreatModel

    try:
        return ThreatModel(
            options["norm"],
            require_eps(options),  # type: ignore[arg-type]  # parsed from its text
            target=options["target"],
            source=options["source"],
            reject=options["reject"],
        )
    except ValueError as error:
        raise UserError(str(error), slug="bad-threat-model") from None
