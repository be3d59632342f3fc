"""Training curves: a picture, and TensorBoard files where they are requested."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustbench_local.errors import UserError
from robustbench_local.io.atomic_write import write_atomically
from robustbench_local.training.metrics import EpochReport, best

CURVES = "curves.png"
ACCURACIES = {
    "clean_accuracy": ("clean", "#1b6ca8"),
    "robust_accuracy": ("robust, PGD-10", "#c0392b"),
    "fgsm_accuracy": ("robust, FGSM", "#e59866"),
    "noisy_accuracy": ("under noise", "#7d3c98"),
}


def draw_curves(reports: Sequence[EpochReport], folder: Path) -> Path | None:
    """Plot losses and hold-out accuracies by epoch in `curves.png`; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    kept = [report for report in reports if not report.undone]
    epochs = [report.epoch for report in kept]
    losses_by_name = {"loss": [report.loss for report in kept]}
    for name in kept[0].parts if len(kept[0].parts) > 1 else ():
        losses_by_name[name] = [report.parts.get(name, float("nan")) for report in kept]
    for name, values in losses_by_name.items():
        losses.plot(epochs, values, marker=".", label=name)
    losses.set(xlabel="epoch", ylabel="training loss")
    losses.legend(frameon=False)
    for field, (name, color) in ACCURACIES.items():
        measured = [getattr(report, field) for report in kept]
        if any(measured):
            percents = [100 * accuracy.value if accuracy else float("nan") for accuracy in measured]
            accuracies.plot(epochs, percents, marker=".", color=color, label=name)
    if best_report := best(reports):
        accuracies.axvline(best_report.epoch, color="0.6", linestyle=":", label=f"chosen: epoch {best_report.epoch}")
    accuracies.set(xlabel="epoch", ylabel="accuracy on the hold-out, %", ylim=(0, 100))
    accuracies.legend(frameon=False, fontsize="small")
    for axes in (losses, accuracies):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    path = folder / CURVES
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    write_atomically(path, picture.getvalue())
    return path


def write_tensorboard(reports: Sequence[EpochReport], folder: Path) -> None:
    """Write the same numbers for TensorBoard to `folder`/tensorboard. Raises UserError where it is not installed."""
    writer = tensorboard_writer()(str(folder / "tensorboard"))
    for step, report in enumerate(reports, start=1):
        values: dict[str, Any] = {"loss": report.loss, "learning rate": report.learning_rate}
        values |= {f"loss/{name}": value for name, value in report.parts.items()}
        for field, (name, _) in ACCURACIES.items():
            if (accuracy := getattr(report, field)) is not None:
                values[f"hold-out/{name}"] = accuracy.value
        for name, value in values.items():
            writer.add_scalar(name, value, step)
    writer.close()


def tensorboard_writer() -> Any:
    """The class that writes TensorBoard files. Raises UserError where TensorBoard, an extra, is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "--tensorboard needs the tensorboard package: pip install 'robustbench-local[tensorboard]'",
            slug="missing-extra",
        ) from None
    return SummaryWriter
