"""Run by a test: reads every hostile file of a folder with little memory left, and prints what became of each."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from robustbench_local.data import load_dataset
from robustbench_local.data.imagefolder import Decoding, FolderDataset
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.models import load_classifier
from robustbench_local.results.reading import read_result
from robustbench_local.training.recipe import read_config

LEFT = 400 * 2**20
"""More than the 256 MiB that an archive may unpack to unasked, and far less than any of the files claims."""


def read(path: Path) -> object:
    if path.suffix == ".json":
        return read_result(path)
    if path.suffix == ".yaml":
        return read_config(str(path))
    if path.suffix == ".npz":
        return load_dataset(f"npz:{path}")
    if path.suffix == ".png":
        return FolderDataset(
            [path], torch.zeros(1, dtype=torch.int64), name="it", decoding=Decoding(Resize(256, 224))
        ).images([0])
    return load_classifier(str(path), arch=None if path.suffix == ".pt2" else "resnet18")


def main(folder: str) -> None:
    torch.set_num_threads(1)
    load_classifier("digits-cnn")  # what is imported late is not held against the files
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LEFT, used + LEFT))
    for path in sorted(Path(folder).iterdir()):
        try:
            read(path)
            print(f"{path.name}: read")
        except UserError as error:
            print(f"{path.name}: refused: {str(error).splitlines()[0]}")
        except MemoryError:
            print(f"{path.name}: out of memory")


if __name__ == "__main__":
    main(sys.argv[1])
