"""The state of a training, complete enough to resume it: tensors and JSON in one safetensors file, no code."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from robustbench_local.errors import UserError
from robustbench_local.io.atomic_write import write_atomically
from robustbench_local.io.safe_read import reason, require_plain_file

STATE = "training.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """tensors: by name. facts: JSON values. rollback: the state to go back to if this epoch overfits."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    rollback: TrainingState | None = field(default=None)

    def write(self, path: Path, about: dict[str, Any]) -> None:
        """Write the file.

        about: recipe and data of the training, which are compared before it is resumed. Raises UserError when the file
        cannot be written; an earlier file is then intact.
        """
        tensors = {f"now.{name}": tensor for name, tensor in self.tensors.items()}
        facts = {"about": about, "now": self.facts}
        if self.rollback is not None:
            tensors |= {f"rollback.{name}": tensor for name, tensor in self.rollback.tensors.items()}
            facts["rollback"] = self.rollback.facts
        owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_atomically(path, safetensors.torch.save(owned, {"training": json.dumps(facts)}))

    @classmethod
    def read(cls, path: Path) -> tuple[TrainingState, dict[str, Any]]:
        """The state, and what it is about. Raises UserError for a file that is not such a state."""
        try:
            require_plain_file(path)
            with safetensors.safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            rollback = None
            for name in ("rollback", "healthy"):  # the second is what version 0.1 called it
                if name in facts:
                    rollback = cls(part(tensors, f"{name}."), facts[name])
            return cls(part(tensors, "now."), facts["now"], rollback), facts["about"]
        except Exception as error:  # a file of another kind, or a damaged one, leads anywhere
            raise UserError(
                f"{path} is not the state of a training ({reason(error)}): remove it and start again, or name another "
                "--output",
                slug="bad-training-state",
            ) from None


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
