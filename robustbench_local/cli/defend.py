"""`robust defend`: train a robust classifier. `robust train`: train one on clean images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_local.cli.config_kinds import RECIPE, require_kind_of_file
from robustbench_local.cli.early_checks import check_options
from robustbench_local.cli.recipe_options import recipe_options
from robustbench_local.errors import UserError
from robustbench_local.training.recipe import Recipe, list_recipes, resolve_recipe
from robustbench_local.training.settings import RuntimeSettings

if TYPE_CHECKING:
    from rich.console import Console

RUN_OPTIONS = (
    click.option(
        "--config",
        metavar="NAME|FILE",
        help="Recipe: a bundled one or a YAML file; command-line options take precedence.",
    ),
    click.option(
        "--data-dir", type=click.Path(path_type=Path), help="Dataset directory.  [default: $ROBUST_DATA or data]"
    ),
    click.option("--download", is_flag=True, help="Download the dataset if it is missing."),
    click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: the best available]"),
    click.option(
        "--workers", type=click.IntRange(min=0), help="Number of processes that decode images.  [default: automatic]"
    ),
    click.option("--compile", "compiled", is_flag=True, help="Use torch.compile; faster on GPUs."),
    click.option(
        "--search",
        multiple=True,
        metavar="KEY=V1,V2,…",
        help="Grid search: train with every combination of values; the hold-out chooses the best. Repeatable.",
    ),
    click.option("--tensorboard", is_flag=True, help="Also write the training curves for TensorBoard."),
    click.option("--output", type=click.Path(path_type=Path), help="Output directory.  [default: a new one in runs/]"),
    click.option("--resume", is_flag=True, help="Continue the interrupted training in --output."),
)
"""Options that are not settings of the recipe: where and how it runs."""


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(RUN_OPTIONS):
        command = option(command)
    return command


@click.command("defend")
@recipe_options()
@_run_options
def defend_command(**options: Any) -> None:
    """Make MODEL more robust by adversarial training, or train an architecture from scratch.

    A tenth of the training images is held out and chooses the epoch; the test images are used only for the final
    evaluation. The output directory gets model.safetensors and model.json, metrics.jsonl with a line for every epoch,
    curves.png and result.json.

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
@recipe_options(without=("method", "teacher"))
@_run_options
def train_command(**options: Any) -> None:
    """Train a classifier on clean images: fine-tune MODEL, or train an architecture from scratch.

    The same as 'robust defend --method standard'. Class names are kept in the checkpoint, and 'robust predict' uses
    them. The final evaluation measures clean and robust accuracy.

    \b
    robust train --data imagefolder:photos --arch torchvision/resnet18 --pretrained \\
        --eps 4/255 --epochs 10 --freeze-epochs 2 --lr 0.01 --augment flip,resized-crop=0.5
    robust train --data fashion-mnist --arch cnn-small --epochs 10 --lr 0.05
    """
    _train({**options, "method": "standard"})


def _train(options: dict[str, Any]) -> None:
    config, output = options["config"], options["output"]
    if config is not None:
        require_kind_of_file(config, RECIPE, "--config")
    recipe = resolve_recipe(config, {name: options.get(name) for name in Recipe.model_fields})
    run_options = {name: value for name, value in options.items() if name not in Recipe.model_fields}
    check_options({**run_options, **recipe.model_dump(), "config": None})
    # A bundled recipe that options have changed is no longer that recipe.
    bundled = config in dict(list_recipes()) and recipe == resolve_recipe(config, {})
    if options["tensorboard"]:
        from robustbench_local.training.curves import tensorboard_writer

        tensorboard_writer()  # if it is missing, say so before hours of training
    if options["resume"] and output is None:
        raise UserError("--resume needs the --output of the interrupted training", slug="resume-without-output")
    runtime = RuntimeSettings(**{name: options[name] for name in RuntimeSettings.__dataclass_fields__})
    _run(recipe, output, runtime, options, trained_by=config if bundled else None)


def _run(
    recipe: Recipe, output: Path | None, runtime: RuntimeSettings, options: dict[str, Any], *, trained_by: str | None
) -> None:
    """Search if requested, then train and evaluate, in every process of torchrun."""
    from robustbench_local.display.console import console
    from robustbench_local.runtime.distributed import broadcast, process_group
    from robustbench_local.training.run import is_resumable, new_folder

    resume = options["resume"]
    with process_group() as rank:
        screen = console(quiet=rank > 0)
        output = output or broadcast(new_folder(recipe))
        try:
            if options["search"]:
                from robustbench_local.display.training import SearchDisplay
                from robustbench_local.training.grid_search import SearchSettings, grid_search

                settings = SearchSettings(runtime, resume)
                recipe = grid_search(recipe, options["search"], output, settings, observer=SearchDisplay(screen))
                # The winner's training is finished; its evaluation is left.
                resume, trained_by = True, None
            _train_and_evaluate(
                recipe,
                output,
                runtime,
                screen,
                trained_by=trained_by,
                resume=resume,
                tensorboard=options["tensorboard"],
            )
        except (KeyboardInterrupt, UserError):
            if is_resumable(output) and not (options["resume"] and isinstance(sys.exception(), UserError)):
                screen.print(
                    f"training so far is saved: the same command with --output {output} --resume continues it",
                    soft_wrap=True,
                    markup=False,
                )
            raise


def _train_and_evaluate(
    recipe: Recipe,
    output: Path,
    runtime: RuntimeSettings,
    screen: Console,
    *,
    trained_by: str | None,
    resume: bool,
    tensorboard: bool,
) -> None:
    from robustbench_local.display.evaluation import ProgressObserver, show_result
    from robustbench_local.display.training import EpochTable, show_training
    from robustbench_local.training.curves import draw_curves, write_tensorboard
    from robustbench_local.training.run import run_training

    curves = None
    with EpochTable(screen) as table:
        run = run_training(recipe, output, runtime, trained_by=trained_by, resume=resume, observer=table)
    if not screen.quiet:
        curves = draw_curves(run.reports, output)
        if tensorboard:
            write_tensorboard(run.reports, output)
    with ProgressObserver(screen, recipe.eval_samples or len(run.eval_data)) as observer:
        evaluated = run.evaluate_checkpoints(observer)
    show_result(screen, evaluated.result)
    show_training(screen, evaluated.run, curves=curves)
