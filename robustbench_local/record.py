"""What is known of every sample, and the file it is appended to at the moment it is decided."""
from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from robustbench_local.files import writable, write_atomically
from robustbench_local.result import SampleRecord


def record_path(output: Path) -> Path:
    """`runs/x.json` -> `runs/x.samples.jsonl`. Another ending stays: `eps-0.1` and `eps-0.2` are two runs."""
    return output.with_name(output.name.removesuffix(".json") + ".samples.jsonl")


def partial_path(output: Path) -> Path:
    """Where decided samples are appended while a run is under way; what an interrupted run leaves behind."""
    return record_path(output).with_suffix(".jsonl.partial")


class Record:
    """The per-sample record of one run: lines appended in the order of decision, sorted by index when it is complete.

    Without an output the lines are kept in memory.
    """

    def __init__(self, output: Path | None):
        self.output = output
        self._lines: list[str] = []
        self._file: TextIO | None = None
        if output is not None:
            with writable(partial_path(output)):
                partial_path(output).parent.mkdir(parents=True, exist_ok=True)
                self._file = partial_path(output).open("w", encoding="utf-8", buffering=1)

    def append(self, sample: SampleRecord) -> None:
        line = sample.model_dump_json()
        if self._file is None:
            self._lines.append(line)
            return
        with writable(partial_path(self.output)):  # type: ignore[arg-type]
            self._file.write(line + "\n")

    def close(self) -> None:
        """Leave the partial record as it is: what an interrupted run has decided stays readable."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def discard(self) -> None:
        """Nothing half-written stays after an error that a user can mend."""
        self.close()
        if self.output is not None:
            partial_path(self.output).unlink(missing_ok=True)

    def complete(self) -> list[SampleRecord] | None:
        """Sort the record and put it in its place beside the result; without an output, return the samples."""
        self.close()
        if self.output is None:
            samples = [SampleRecord.model_validate_json(line) for line in self._lines]
            return sorted(samples, key=lambda sample: sample.index)
        with writable(partial_path(self.output)):
            lines = partial_path(self.output).read_text(encoding="utf-8").splitlines()
        lines.sort(key=lambda line: json.loads(line)["index"])
        write_atomically(record_path(self.output), "".join(f"{line}\n" for line in lines))
        partial_path(self.output).unlink(missing_ok=True)
        return None


class Ledger:
    """Every sample's standing during a run. Positions count the samples of the run, from 0."""

    def __init__(self, indices: Tensor, labels: Tensor, record: Record):
        n = len(labels)
        self.indices, self.labels, self.record = indices, labels, record
        self.hashes: list[str] = [""] * n
        self.clean_prediction = torch.full((n,), -1)
        self.clean_margin = torch.full((n,), float("nan"), dtype=torch.float64)
        self.margin = torch.full((n,), float("inf"), dtype=torch.float64)
        self.not_numbers = 0
        """Points under attack at which the model's logits were not numbers."""
        self.correct = torch.zeros(n, dtype=torch.bool)
        self.standing = torch.zeros(n, dtype=torch.bool)

    def enter_clean(self, positions: Tensor, hashes: list[str], predictions: Tensor, margins: Tensor) -> None:
        """The clean pass over some samples; those it misclassifies are decided by it."""
        self.clean_prediction[positions], self.clean_margin[positions] = predictions, margins.double()
        self.margin[positions] = margins.double()
        self.correct[positions] = self.standing[positions] = predictions == self.labels[positions]
        for position, digest in zip(positions.tolist(), hashes, strict=True):
            self.hashes[position] = digest
            if not self.correct[position]:
                self._decide(position, robust=False)

    def enter_broken(
        self, position: int, *, attack: str, restart: int, step: int, prediction: int, margin: float,
        distance: dict[str, float],
    ) -> None:
        """A verified adversarial example has been found."""
        if not self.standing[position]:
            raise RuntimeError(f"sample {int(self.indices[position])} is broken a second time")
        self.standing[position] = False
        self.margin[position] = min(margin, float(self.margin[position]))
        self._decide(
            position, robust=False, adversarial_prediction=prediction, broken_by=attack, restart=restart, step=step,
            distance=distance,
        )

    def enter_survived(self, position: int) -> None:
        """The last attack has passed and the sample stands."""
        self._decide(position, robust=True)

    def _decide(self, position: int, *, robust: bool, **found: object) -> None:
        nothing = dict.fromkeys(("adversarial_prediction", "broken_by", "restart", "step", "distance"))
        self.record.append(
            SampleRecord.model_validate({
                "index": int(self.indices[position]),
                "input_sha256": self.hashes[position],
                "label": int(self.labels[position]),
                "clean_prediction": int(self.clean_prediction[position]),
                "robust": robust,
                "clean_margin": float(self.clean_margin[position]),
                "margin": float(self.margin[position]),
                **nothing,
                **found,
            })
        )


def summed_hash(hashes: list[str], labels: Tensor) -> str:
    """sha256 over the samples' own hashes and labels, in the order of the run."""
    digest = hashlib.sha256()
    for sample, label in zip(hashes, labels.tolist(), strict=True):
        digest.update(f"{sample} {label}\n".encode())
    return digest.hexdigest()
