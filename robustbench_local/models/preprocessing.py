"""Input defenses in front of a classifier, attacked adaptively.

The transformations are adversarial-robustness-toolbox's own, as they would be deployed. JPEG compression, bit-depth
reduction and the like have no useful gradient, which hides adversarial examples but removes none. So the backward pass
uses a surrogate's gradient instead: BPDA, of Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of
security" (ICML 2018). The surrogate is the identity, except for the median, which has a gradient of its own. The
gradient of a random transformation is averaged over several draws (EOT, ibid.). All of this is part of the model, so
every attack of every suite is adaptive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_local.attacks.bpda import StraightThroughFunction
from robustbench_local.errors import UserError
from robustbench_local.models.catalog import INPUT_DEFENSES, load_entry, require_input_defense
from robustbench_local.models.classifier import Classifier, ClassifierInfo
from robustbench_local.models.input_defenses.input_defense import BOX, InputDefense
from robustbench_local.specs import build, parse_spec


def input_defense_type(name: str) -> type[InputDefense]:
    """The defense's class. Raises UserError for an unknown name, with the nearest one."""
    require_input_defense(name)
    kind: type[InputDefense] = load_entry(INPUT_DEFENSES, name, "input_defenses")
    return kind


def input_defense(spec: str) -> InputDefense:
    """The defense that a text such as `jpeg:quality=75` names.

    Raises UserError for an unknown name or setting and for a value that the defense refuses.
    """
    name, settings = parse_spec(spec)
    return build(input_defense_type(name), settings, name)


def spec_text(defense: InputDefense) -> str:
    """The defense as the command line writes it, with every setting, so that a changed default changes the text."""
    fields = dataclasses.fields(defense)  # type: ignore[arg-type]  # the protocol does not say that it is a dataclass
    settings = ",".join(f"{field.name.replace('_', '-')}={getattr(defense, field.name)}" for field in fields)
    return f"{defense.name}:{settings}"


def apply_defenses(images: Tensor, defenses: Sequence[InputDefense], draw: int = 0) -> Tensor:
    """The images after all defenses, first to last, with the gradients of their surrogates.

    images: float [rows, channels, height, width], clipped to [0, 1]. draw: number of the random draw.
    Returns the same shape, dtype and device. Raises UserError for images of another rank.
    """
    if images.dim() != 4:
        raise UserError(
            f"input defenses are for images of N×C×H×W, not for {images.dim()} dimensions", slug="input-defense-rank"
        )
    for defense in defenses:
        # In float32 whatever the search computes in: numpy has no bfloat16.
        pixels = images.detach().to("cpu", torch.float32).clamp(*BOX).contiguous().numpy()
        exact = torch.from_numpy(np.ascontiguousarray(defense.transform(pixels, draw), dtype=np.float32)).to(images)
        differentiable = torch.is_grad_enabled() and images.requires_grad
        images = StraightThroughFunction.apply(defense.surrogate(images), exact) if differentiable else exact
    return images


class DefendedModule(nn.Module):
    """A classifier that receives every image through defenses.

    Its logits are those of draw 0. With a random defense, the gradient is that of the mean of the logits over the draws
    0 to eot - 1; this costs eot passes and counts as one.
    """

    def __init__(self, classifier: Classifier, defenses: Sequence[InputDefense]) -> None:
        super().__init__()
        self.classifier = classifier
        self.defenses = tuple(defenses)
        self.eot = max(defense.eot for defense in defenses)
        device = next(classifier.parameters(), torch.empty(0)).device
        # A buffer, so that the model's fingerprint distinguishes the defenses.
        settings = torch.tensor(list(self.extra_repr().encode()), dtype=torch.uint8, device=device)
        self.register_buffer("settings", settings)

    def extra_repr(self) -> str:
        return ", then ".join(map(spec_text, self.defenses))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(apply_defenses(images, self.defenses))
        if self.eot == 1 or not logits.requires_grad:
            return logits
        others = [self.classifier(apply_defenses(images, self.defenses, draw)) for draw in range(1, self.eot)]
        mean = torch.stack([logits, *others]).mean(0)
        return logits.detach() + (mean - mean.detach())


def with_preprocessing(classifier: Classifier, specs: Sequence[str]) -> Classifier:
    """The classifier behind the named defenses; the first in the list is applied first. With none, itself.

    It shares the weights, and attacks on it are adaptive (see above). Raises UserError like `input_defense`.
    """
    defenses = [input_defense(spec) for spec in specs]
    if not defenses:
        return classifier
    module = DefendedModule(classifier, defenses)
    return Classifier(
        module,
        name=f"{classifier.name} behind {module.extra_repr()}",
        class_names=classifier.class_names,
        input_shape=classifier.input_shape,
        info=ClassifierInfo(resize=classifier.resize, weights=classifier.weights, notes=classifier.notes),
        copy=False,
    )
