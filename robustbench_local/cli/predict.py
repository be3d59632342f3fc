"""`robust predict`: classify image files."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from robustbench_local.cli.early_checks import check_options
from robustbench_local.cli.options import load_model, model_options


@click.command("predict")
@model_options
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--resize",
    metavar="SIZE[:CROP]",
    help="Resize and center-crop the images.  [default: as in the model's training; where that is unknown, "
    "the whole image is resized to the size that the model takes]",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=1, show_default=True, help="Number of classes to show for an image."
)
@click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: the best available]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on stdout.")
def predict_command(images: tuple[Path, ...], top: int, as_json: bool, **options: Any) -> None:
    """Predict the class of every IMAGE, a file or a directory of files, with its probability.

    MODEL is named as for 'robust attack'; a directory that 'robust defend' wrote is one.

    \b
    robust predict runs/my-model cat.jpg dog.jpg
    robust predict torchvision/resnet50 photos --top 5 --json
    """
    check_options({**options, "images": images})
    import json
    from dataclasses import asdict

    from robustbench_local.data.resize import Resize
    from robustbench_local.display.console import write_json
    from robustbench_local.models.predict import find_images, predict
    from robustbench_local.runtime.device import choose_device

    resize = Resize.parse(options["resize"]) if options["resize"] else None
    device = choose_device(options["device"])
    files = find_images(images)
    # What a model's own code prints is for people; stdout is for the predictions.
    with contextlib.redirect_stdout(sys.stderr):
        predictions = predict(load_model(options).to(device), files, top=top, resize=resize)
    if as_json:
        write_json(json.dumps([asdict(prediction) for prediction in predictions], indent=2))
        return
    for prediction in predictions:
        guesses = ", ".join(f"{guess.name or guess.label} {guess.probability:.1%}" for guess in prediction.guesses)
        click.echo(f"{click.format_filename(prediction.path)}: {guesses}")
