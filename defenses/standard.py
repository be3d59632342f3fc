"""Standard training: cross-entropy on the images as they are. The baseline that every defense is measured against."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_local.attacks.threat_model import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Standard:
    """Cross-entropy on the images as they are; the threat model plays no part in it."""

    name: ClassVar[str] = "standard"
    judged_by: ClassVar[Literal["clean", "robust"]] = "clean"

    def loss(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat_model: ThreatModel, keys: Tensor  # noqa: ARG002
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss = F.cross_entropy(model(images), labels)
        return loss, {"clean": loss.detach()}
