"""Small files that claim gigabytes, read by a process that has not got them."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import valid_files
from test_archives import ZEROS, deflated_zeros, header, member, stretched
from test_images import png
from test_text import bomb

GIGABYTES = 4 * 2**30


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of memory")
def test_claims_of_gigabytes_are_refused_within_little_memory(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    with zipfile.ZipFile(folder / "header.npz", "w") as archive:
        archive.writestr("images.npy", member(f"(1000, {GIGABYTES // 1000}, 1, 1)"))
        archive.writestr("labels.npy", member("(1000,)", body=bytes(1000)))
    zeros = deflated_zeros({"m/models/model.json": 2 * ZEROS}, {"m/data.pkl": b"x", "m/archive_format": b"pt2"})
    files = {
        "bomb.npz": zeros,
        "bomb.pt": zeros,
        "bomb.pt2": zeros,
        "stretched.pt": valid_files.torch_zip({"conv1.weight": stretched(2**15, 2**15)}),
        "header.safetensors": header(0, w={"dtype": "F32", "shape": [2**30], "data_offsets": [0, GIGABYTES]}),
        "laughs.yaml": bomb(12).encode(),
        "flat.png": png(65_535, 1),
        "large.png": png(60_000, 60_000),
        "deep.json": b"[" * 2**20,
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for suffix in (".json", ".pt", ".safetensors", ".npz", ".yaml", ".png", ".pt2"):
        with (folder / f"sparse{suffix}").open("wb") as file:
            file.truncate(GIGABYTES)
    assert torch.tensor([len(content) for content in files.values()]).max() < 2 * 2**20
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("bounded.py")), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(list(folder.iterdir())), done.stdout
    assert all(": refused: " in line for line in lines), done.stdout
