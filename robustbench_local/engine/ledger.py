"""What is known about every sample during a run. Built from events alone, so a journal restores it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from robustbench_local.engine.events import AdversarialExample, CleanEvent, SearchEvent
from robustbench_local.io.atomic_write import write_all_or_none
from robustbench_local.results.schema import Result, SampleRecord


def record_path(output: Path) -> Path:
    """`runs/x.json` -> `runs/x.samples.jsonl`. Other suffixes stay: `eps-0.1` and `eps-0.2` are two runs."""
    return output.with_name(output.name.removesuffix(".json") + ".samples.jsonl")


class SampleStates:
    """The state of every sample. It changes by events only.

    indices, labels: int64 [samples]. correct: bool [samples], classified correctly without perturbation. robust: bool
    [samples], correct and not yet fooled. margin: float64 [samples], the smallest seen. rivals: by position, the wrong
    classes with the highest logits.
    """

    def __init__(self, indices: Tensor, labels: Tensor) -> None:
        n = len(labels)
        self.indices, self.labels = indices, labels
        self.hashes: list[str] = [""] * n
        self.clean_prediction = torch.full((n,), -1)
        self.clean_margin = torch.full((n,), float("nan"), dtype=torch.float64)
        self.margin = torch.full((n,), float("inf"), dtype=torch.float64)
        self.rivals: dict[int, list[int]] = {}
        self.correct = torch.zeros(n, dtype=torch.bool)
        self.robust = torch.zeros(n, dtype=torch.bool)
        self._successes: dict[int, tuple[str, int, AdversarialExample]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, n: int) -> SampleStates:
        """The states of the first n samples."""
        part = SampleStates(self.indices[:n], self.labels[:n])
        part.hashes, part.rivals, part._successes = self.hashes[:n], self.rivals, self._successes
        for name in ("clean_prediction", "clean_margin", "margin", "correct", "robust"):
            setattr(part, name, getattr(self, name)[:n])
        return part

    def apply_clean(self, event: CleanEvent) -> None:
        """Enter the clean pass over some samples. A misclassified sample is never attacked."""
        positions, predictions = torch.tensor(event.positions), torch.tensor(event.predictions)
        self.clean_prediction[positions] = predictions
        margins = torch.tensor(event.margins, dtype=torch.float64)
        self.clean_margin[positions] = self.margin[positions] = margins
        self.correct[positions] = self.robust[positions] = predictions == self.labels[positions]
        for position, digest, rivals in zip(event.positions, event.hashes, event.rivals, strict=True):
            self.hashes[position] = digest
            if rivals and self.correct[position]:
                self.rivals[position] = rivals

    def apply_search(self, event: SearchEvent, attack: str) -> None:
        """Enter one run of the attack on some samples, and its successes.

        Raises RuntimeError where a sample would be fooled a second time.
        """
        for position, margin in zip(event.positions, event.margins, strict=True):
            if margin is not None:
                self.margin[position] = min(margin, float(self.margin[position]))
        for success in event.breaks:
            position = success.position
            if not self.robust[position]:
                raise RuntimeError(f"sample {int(self.indices[position])} is fooled a second time")
            self.robust[position] = False
            self.margin[position] = min(success.margin, float(self.margin[position]))
            self._successes[position] = attack, event.run, success

    def samples(self) -> list[SampleRecord]:
        """One record for every sample, ordered by index."""
        records = [self._sample(position) for position in range(len(self))]
        return sorted(records, key=lambda record: record.index)

    def _sample(self, position: int) -> SampleRecord:
        attack, run, success = self._successes.get(position) or (None, None, None)
        return SampleRecord(
            index=int(self.indices[position]),
            input_sha256=self.hashes[position],
            label=int(self.labels[position]),
            clean_prediction=int(self.clean_prediction[position]),
            robust=bool(self.robust[position]),
            adversarial_prediction=success.prediction if success else None,
            broken_by=attack,
            restart=run,
            step=success.step if success else None,
            distance=success.distance if success else None,
            clean_margin=float(self.clean_margin[position]),
            margin=float(self.margin[position]),
        )


def write_outcome(output: Path, result: Result, samples: list[SampleRecord]) -> None:
    """Write the result, and the per-sample record beside it: both or neither."""
    record = "".join(f"{sample.model_dump_json()}\n" for sample in samples)
    write_all_or_none({record_path(output): record, output: result.to_json()})
