import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and published checkpoints; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("ROBUST_SHARED", ROOT.parent / "shared"))
    if not (folder / "published" / "manifest.json").is_file():
        pytest.skip(f"no published checkpoints in {folder.name}/ (set ROBUST_SHARED)")
    return folder
