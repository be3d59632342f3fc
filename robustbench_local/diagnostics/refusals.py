"""What makes an evaluation impossible: each stops the run with one sentence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.data.dataset import Dataset
from robustbench_local.diagnostics.gradient_flow import GradientTrace
from robustbench_local.errors import UserError
from robustbench_local.models.classifier import Classifier
from robustbench_local.models.metered import Metered, ModelFailure


def require_box(dataset: Dataset, threat_model: ThreatModel) -> None:
    """The box must contain every image."""
    (low, high), (lowest, highest) = dataset.raw_range, threat_model.box
    if max(low, 0.0) < lowest or min(high, 1.0) > highest:
        raise UserError(
            f"the images of {dataset.name} have pixels from {low:.4g} to {high:.4g}, but the threat model's box is "
            f"[{lowest:g}, {highest:g}]: choose a box that contains every image",
            slug="images-outside-box",
        )


def require_finite_weights(classifier: Classifier) -> None:
    """No weight may be NaN or infinite."""
    for name, tensor in classifier.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"weight {name!r} of {classifier.name} contains NaN or infinity: the checkpoint is damaged or its "
                "training diverged; use another checkpoint",
                slug="weights-not-finite",
            )


def first_logits(model: Metered, images: Tensor, dataset: Dataset) -> Tensor:
    """The logits of a few images, which the model must take, one row for each."""
    classifier = model.model
    try:
        with torch.no_grad():
            logits: Tensor = model(images)
    except ModelFailure as failure:
        raise _cannot_classify(classifier, images, dataset, failure.reason) from None
    if len(logits) != len(images):
        raise UserError(
            f"{classifier.name} returned {len(logits)} rows of logits for {len(images)} images: its forward must "
            "return one row per image",
            slug="logits-wrong-rows",
        )
    return logits


def _cannot_classify(classifier: Classifier, images: Tensor, dataset: Dataset, reason: str) -> UserError:
    shape = "×".join(map(str, images.shape[1:]))
    channels = _input_channels(classifier)
    if channels is not None and channels != images.shape[1]:
        return UserError(
            f"{classifier.name} takes images with {channels} channel{'s' * (channels != 1)}, but those of "
            f"{dataset.name} have {images.shape[1]} ({shape}): choose data like the model's training data",
            slug="wrong-channels",
        )
    other_dtypes = {tensor.dtype for tensor in classifier.parameters() if tensor.is_floating_point()} - {torch.float32}
    if other_dtypes:
        dtypes = ", ".join(sorted(map(str, other_dtypes)))
        return UserError(
            f"{classifier.name} has {dtypes} weights and cannot classify the float32 images of {dataset.name} "
            f"({reason}): convert it to float32 with .float(), or convert the images in its forward",
            slug="wrong-dtype",
        )
    return UserError(
        f"{classifier.name} cannot classify the {shape} images of {dataset.name} ({reason}): check --arch, --data and "
        "--resize",
        slug="images-not-classifiable",
    )


def _input_channels(classifier: Classifier) -> int | None:
    """The number of input channels, if the model declares it or its first layer is a convolution."""
    if classifier.input_shape is not None:
        return classifier.input_shape[0]
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if isinstance(module, nn.Linear):
            return None
    return None


def require_finite_logits(classifier: Classifier, logits: Tensor, dataset: Dataset, positions: Tensor) -> None:
    """No logit may be NaN or infinite."""
    broken = (~torch.isfinite(logits)).any(1).cpu()
    if broken.any():
        raise UserError(
            f"{classifier.name} returns NaN or infinite logits for sample {int(dataset.indices[positions[broken][0]])} "
            f"of {dataset.name}: leave that sample out, or fix the model",
            slug="logits-not-finite",
        )


def require_classes(logits: Tensor, dataset: Dataset, threat_model: ThreatModel) -> int:
    """The number of classes, which the labels and the threat model must fit."""
    classes = logits.shape[1]
    least = 2 if threat_model.reject is None else 3
    if classes < least:
        raise UserError(
            f"the model has {classes} classes, but an attack needs at least {least}, a reject class included",
            slug="too-few-classes",
        )
    highest = int(dataset.labels.max())
    if highest >= classes:
        raise UserError(
            f"{dataset.name} has label {highest}, but the model has {classes} classes (labels 0 to {classes - 1}): "
            "choose the dataset that the model was trained on, or labels that start at 0",
            slug="label-out-of-range",
        )
    if threat_model.reject is not None and bool((dataset.labels == threat_model.reject).any()):
        raise UserError(
            f"class {threat_model.reject} means that an image is rejected, but {dataset.name} has images of it: choose "
            "the class that no image belongs to",
            slug="reject-class-in-data",
        )
    special_classes = ("target", threat_model.target), ("source", threat_model.source), ("reject", threat_model.reject)
    for role, label in special_classes:
        if label is not None and not 0 <= label < classes:
            raise UserError(
                f"the {role} class is {label}, but the model's classes are 0 to {classes - 1}", slug="unknown-class"
            )
    return classes


def require_gradients_of_input(classifier: Classifier, trace: GradientTrace) -> None:
    """Reentrant checkpoints give gradients of weights only, so that an attack would fail or see none."""
    if trace.reentrant:
        raise UserError(
            f"{classifier.name} uses reentrant checkpointing, through which torch gives no gradient of the image: set "
            "use_reentrant=False where its forward calls torch.utils.checkpoint.checkpoint",
            slug="reentrant-checkpointing",
        )
