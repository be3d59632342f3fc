"""Checkpoints that others published, where the shared folder is at hand."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from robustbench_local.errors import UserError
from robustbench_local.models import load_classifier

PUBLISHED = Path(os.environ.get("ROBUST_SHARED", "../shared")) / "published"
pytestmark = pytest.mark.skipif(
    not (PUBLISHED / "manifest.json").is_file(), reason="the published checkpoints are not here (set ROBUST_SHARED)"
)


def entries():
    if not (PUBLISHED / "manifest.json").is_file():
        return []
    return json.loads((PUBLISHED / "manifest.json").read_text())["models"]


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry["name"])
def test_every_published_checkpoint_loads(entry):
    path = PUBLISHED / entry["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
    scaling = entry["normalisation"]
    classifier = load_classifier(
        f"{PUBLISHED / 'architectures.py'}:{entry['architecture']}",
        checkpoint=path,
        normalize=":".join(",".join(map(str, scaling[key])) for key in ("mean", "std")),
    )
    assert classifier.normalization == scaling
    state = torch.load(path, weights_only=True)
    loaded = classifier.module.state_dict()
    assert set(state) == set(loaded)
    assert all(torch.equal(state[key], loaded[key]) for key in state)


def test_the_wrong_factory_is_explained():
    with pytest.raises(UserError, match="does not fit"):
        load_classifier(
            f"{PUBLISHED / 'architectures.py'}:cifar_cnn_base",
            checkpoint=PUBLISHED / "models" / "sdp_cifar_cnn_a_adv.pt",
        )
    with pytest.raises(UserError, match="Did you mean 'cifar_cnn_small'"):
        load_classifier(f"{PUBLISHED / 'architectures.py'}:cifar_cnn_smal")
