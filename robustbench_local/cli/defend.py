"""`robust defend`: train a classifier that resists. `robust train`: train one at all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from robustbench_local.cli.config_kinds import RECIPE, require_kind_of_file
from robustbench_local.cli.early_checks import check_options
from robustbench_local.errors import UserError

OPTIONS = (
    click.argument("model", required=False),
    click.option("--checkpoint", help="File with MODEL's weights, or with --pretrained those of --arch."),
    click.option("--arch", help="Architecture to start from scratch with, or that of MODEL's file."),
    click.option("--pretrained", is_flag=True, default=None, help="Start from --arch's published weights."),
    click.option("--normalize", metavar="NAME|MEAN:STD", help="What the model expects its input scaled by."),
    click.option("--config", metavar="NAME|FILE", help="Recipe: a shipped one or a YAML file; flags win over it."),
    click.option("--data", metavar="SPEC", help="Data set; its train split is used.  [default: digits]"),
    click.option("--eval-data", metavar="SPEC", help="Another data set for the final evaluation."),
    click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets lie.  [default: data]"),
    click.option("--download", is_flag=True, help="Fetch the data set where it is missing."),
    click.option("--resize", metavar="SIZE[:CROP]", help="Resize and centre-crop images from files."),
    click.option("--samples", metavar="N", help="Train on a seeded, stratified subset.  [default: all]"),
    click.option("--eval-samples", metavar="N", help="Evaluate on a subset at the end.  [default: all]"),
    click.option(
        "--norm",
        type=click.Choice(["linf", "l2", "l1"], case_sensitive=False),
        help="Norm of the ball.  [default: linf]",
    ),
    click.option("--eps", help="Radius in pixels of [0, 1], such as 8/255.  [default: by data set]"),
    click.option("--epochs", metavar="N", help="Passes over the training images.  [default: 30]"),
    click.option("--freeze-epochs", metavar="N", help="First epochs that train the last layer alone.  [default: 0]"),
    click.option("--batch-size", metavar="N", help="Images of one step, over all processes.  [default: 128]"),
    click.option("--accumulate", metavar="N", help="Parts to take a batch through in.  [default: 1]"),
    click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), help="What follows the gradient.  [default: sgd]"),
    click.option("--lr", metavar="RATE", help="Highest learning rate.  [default: 0.1]"),
    click.option("--momentum", metavar="SHARE", help="Nesterov's; of adamw the first beta.  [default: 0.9]"),
    click.option("--weight-decay", metavar="RATE", help="[default: 5e-4]"),
    click.option(
        "--schedule",
        type=click.Choice(["onecycle", "cosine", "piecewise", "constant"]),
        help="How the learning rate falls.  [default: onecycle]",
    ),
    click.option("--warmup", metavar="SHARE", help="Share of training in which lr rises.  [default: 0]"),
    click.option("--eps-warmup", metavar="SHARE", help="Share of training in which eps rises.  [default: 0]"),
    click.option("--clip-norm", metavar="LENGTH", help="Longest gradient that is followed; 0: any.  [default: 0]"),
    click.option("--label-smoothing", metavar="SHARE", help="[default: 0]"),
    click.option("--average", metavar="DECAY", help="Average the weights (EMA), such as 0.999.  [default: 0]"),
    click.option("--augment", metavar="LIST", help="Such as crop=4,flip,cutout=8.  [default: none]"),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16"]),
        help="Arithmetic of training.  [default: bf16 on GPUs that have it, else fp32]",
    ),
    click.option("--compile", "compiled", is_flag=True, help="Compile the network; pays on GPUs."),
    click.option("--workers", type=click.IntRange(min=0), help="Processes that decode images.  [default: automatic]"),
    click.option("--holdout", metavar="SHARE", help="Of the training images, to choose the epoch by.  [default: 0.1]"),
    click.option("--seed", metavar="N", help="Seed of everything random.  [default: 0]"),
    click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: the best there is]"),
    click.option("--suite", metavar="NAME[/VERSION]", help="Protocol of the final evaluation.  [default: standard]"),
    click.option(
        "--search",
        multiple=True,
        metavar="KEY=V1,V2,…",
        help="Try these values of a setting, all combinations; the hold-out judges. Repeatable.",
    ),
    click.option("--tensorboard", is_flag=True, help="Write the curves for TensorBoard too."),
    click.option("--output", type=click.Path(path_type=Path), help="Folder to make.  [default: a new one in runs/]"),
    click.option("--resume", is_flag=True, help="Go on with the interrupted training of this --output."),
)
OWN = ("config", "data_dir", "download", "device", "output", "resume", "search", "tensorboard", "compiled", "workers")
"""Options that are no settings of the recipe: they say where and how, not what."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command("defend")
@click.option(
    "--method",
    metavar="NAME[:KEY=VALUE,…]",
    help="Training method, 'robust list defenses' shows them; +awp can be added.  [default: pgd-at]",
)
@click.option("--teacher", metavar="MODEL", help="Classifier to learn from, for the methods that have a teacher.")
@_options
def defend_command(**options: Any) -> None:
    """Train MODEL, or an architecture from scratch, to be more robust.

    A tenth of the training images is held out and chooses the epoch; the test images only judge the end. The output
    folder gets model.safetensors and model.json, metrics.jsonl with a line for every epoch, curves.png and result.json.

    \b
    robust defend
    robust defend --config digits-cnn-robust --output runs/robust-digits
    robust defend --arch resnet18 --data cifar10 --method trades:beta=6+awp \\
        --epochs 50 --augment crop=4,flip --average 0.999
    robust defend --method n-fgsm --search lr=0.05,0.1,0.2 --search epochs=10,20
    torchrun --nproc-per-node 4 -m robustbench_local defend --config cifar10-resnet18
    """
    _train(options)


@click.command("train")
@_options
def train_command(**options: Any) -> None:
    """Train a classifier on clean images: MODEL, or an architecture from scratch or from published weights.

    The same as 'robust defend --method standard'. Class names are kept in the checkpoint, and 'robust predict' uses
    them. The end is evaluated like any model: accuracy, and how little of it an adversary leaves.

    \b
    robust train --data imagefolder:photos --arch torchvision/resnet18 --pretrained \\
        --eps 4/255 --epochs 10 --freeze-epochs 2 --lr 0.01 --augment flip,resized-crop=0.5
    robust train --data fashion-mnist --arch cnn-small --epochs 10 --lr 0.05
    """
    _train({**options, "method": "standard"})


def _train(options: dict[str, Any]) -> None:
    from robustbench_local.training.recipe import list_recipes, resolve_recipe

    config, output = options["config"], options["output"]
    if config is not None:
        require_kind_of_file(config, RECIPE, "--config")
    recipe = resolve_recipe(config, {key: value for key, value in options.items() if key not in OWN})
    check_options({**{key: options[key] for key in OWN if key != "config"}, **recipe.model_dump()})
    from robustbench_local.display.console import console
    from robustbench_local.runtime.distributed import broadcast, process_group
    from robustbench_local.training.run import is_resumable, new_folder

    # A shipped recipe that flags have changed is not that recipe any more.
    shipped = config in dict(list_recipes()) and recipe == resolve_recipe(config, {})
    if options["tensorboard"]:
        from robustbench_local.training.curves import tensorboard_writer

        tensorboard_writer()  # its absence is found before hours of training
    if options["resume"] and output is None:
        raise UserError("--resume needs to know which training is to go on: give its --output")
    settings = {
        "trained_by": config if shipped else None,
        **{key: options[key] for key in ("device", "data_dir", "download", "workers", "compiled", "resume")},
    }
    with process_group() as rank:
        output = output or broadcast(new_folder(recipe))
        try:
            if options["search"]:
                from robustbench_local.training.grid_search import grid_search

                recipe, settings = grid_search(
                    recipe, options["search"], output, settings, screen=console(quiet=rank > 0)
                )
            _run(recipe, output, settings, tensorboard=options["tensorboard"], quiet=rank > 0)
        except (KeyboardInterrupt, UserError):
            if is_resumable(output) and not (options["resume"] and isinstance(sys.exception(), UserError)):
                console(quiet=rank > 0).print(
                    f"what was learnt so far is kept: the same command with --output {output} --resume goes on from "
                    "there",
                    soft_wrap=True,
                    markup=False,
                )
            raise


def _run(recipe: Any, output: Path, settings: dict[str, Any], *, tensorboard: bool, quiet: bool) -> None:
    """Train, evaluate, and show what came of it."""
    from robustbench_local.display.console import console
    from robustbench_local.display.evaluation import ProgressObserver, show_result
    from robustbench_local.display.training import EpochTable, show_training
    from robustbench_local.training.curves import draw_curves, write_tensorboard
    from robustbench_local.training.run import run_training

    screen = console(quiet=quiet)
    with EpochTable(screen) as table:
        hardened = run_training(recipe, output, observer=table, **settings)
    if not quiet:
        drawn = draw_curves(hardened.reports, output)
        if tensorboard:
            write_tensorboard(hardened.reports, output)
    with ProgressObserver(screen, recipe.eval_samples or len(hardened.eval_data)) as observer:
        evaluation = hardened.evaluate_checkpoints(observer)
    show_result(screen, evaluation.result)
    show_training(screen, hardened, drawn=None if quiet else drawn)
