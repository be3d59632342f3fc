"""Where and how a training runs, whatever its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RuntimeSettings:
    """Settings of the machine, not of the result.

    device: `cpu`, `cuda`, `cuda:1` or `mps`; None for the best there is. data_dir: the dataset directory; None for
    `data`. download: fetch a dataset that is missing. workers: processes that decode images; None for an automatic
    number. compiled: compile the network with torch.compile.
    """

    device: str | None = None
    data_dir: Path | None = None
    download: bool = False
    workers: int | None = None
    compiled: bool = False
