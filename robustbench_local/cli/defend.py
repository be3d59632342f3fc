"""`robust defend`: train a classifier that resists."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("defend")
@click.argument("model", required=False)
@click.option("--checkpoint", help="File with MODEL's weights.")
@click.option("--arch", help="Architecture to start from scratch with, or that of MODEL's file.")
@click.option("--normalize", metavar="NAME|MEAN:STD", help="What the model expects its input scaled by.")
@click.option("--method", metavar="NAME[:KEY=VALUE,…]", help="Training method.  [default: pgd-at]")
@click.option("--config", metavar="NAME|FILE", help="Recipe: a shipped one or a YAML file; flags win over it.")
@click.option("--data", metavar="SPEC", help="Data set; its train split is used.  [default: digits]")
@click.option("--eval-data", metavar="SPEC", help="Another data set for the final evaluation.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets lie.  [default: data]")
@click.option("--download", is_flag=True, help="Fetch the data set where it is missing.")
@click.option("--samples", metavar="N", help="Train on a seeded, stratified subset.  [default: all]")
@click.option("--norm", type=click.Choice(["linf", "l2", "l1"]), help="Norm of the ball.  [default: linf]")
@click.option("--eps", help="Radius in pixels of [0, 1], such as 8/255.  [default: by data set]")
@click.option("--epochs", metavar="N", help="Passes over the training images.  [default: 30]")
@click.option("--batch-size", metavar="N", help="Images at a time.  [default: 128]")
@click.option("--lr", metavar="RATE", help="Highest learning rate of the one cycle.  [default: 0.1]")
@click.option("--seed", metavar="N", help="Seed of everything random.  [default: 0]")
@click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: the best there is]")
@click.option("--suite", metavar="NAME[/VERSION]", help="Protocol of the final evaluation.  [default: fast]")
@click.option("--output", type=click.Path(path_type=Path), help="Folder to make.  [default: a new one in runs/]")
def defend_command(**options: Any) -> None:
    """Train MODEL, or an architecture from scratch, to be more robust.

    A tenth of the training images is held out and chooses the epoch; the test images only judge the end. The output
    folder gets model.safetensors and model.json, metrics.jsonl with a line for every epoch, and result.json.

    \b
    robust defend
    robust defend --config digits-cnn-robust --output runs/robust-digits
    robust defend net.safetensors --arch resnet18 --data cifar10 \\
        --method pgd-at:steps=7,epochs=20 --lr 0.05
    """
    from robustbench_local.defending import harden, new_folder
    from robustbench_local.display import ProgressObserver, console, show_result
    from robustbench_local.recipes import list_recipes, resolve_recipe
    from robustbench_local.training_display import EpochTable

    config = options["config"]
    own = ("config", "data_dir", "download", "device", "output")
    recipe = resolve_recipe(config, {key: value for key, value in options.items() if key not in own})
    # A shipped recipe that flags have changed is not that recipe any more.
    shipped = config in dict(list_recipes()) and recipe == resolve_recipe(config, {})
    output = options["output"] or new_folder(recipe)
    screen = console()
    try:
        with EpochTable(screen) as table:
            hardened = harden(
                recipe, output, trained_by=config if shipped else None, device=options["device"],
                data_dir=options["data_dir"], download=options["download"], observer=table,
            )
    except KeyboardInterrupt:
        if (output / "model.safetensors").exists():
            screen.print(f"interrupted; the best checkpoint so far is in {output}", soft_wrap=True)
        raise
    with ProgressObserver(screen, len(hardened.judged)) as observer:
        evaluation = hardened.judge(observer)
    show_result(screen, evaluation.result)
    if hardened.card.chosen:
        screen.print(f"epoch {hardened.card.chosen.epoch} of {recipe.epochs} was chosen on the hold-out")
    screen.print(f"result: {output / 'result.json'}", soft_wrap=True)
    screen.print(f"checkpoint: {output / 'model.safetensors'}", soft_wrap=True)
