"""The file that a training goes on from: data alone, whole or refused, and never half written."""

from __future__ import annotations

import errno
import json
import os

import pytest
import safetensors.torch
import torch
from small_trainings import Training, same

from robustbench_local.errors import UserError
from robustbench_local.models import load_classifier
from robustbench_local.training.snapshot import TrainingState


def snapshot(**more) -> TrainingState:
    tensors = {"a.b": torch.arange(6).view(2, 3), "c": torch.tensor(2.5), "bf16": torch.ones(2, dtype=torch.bfloat16)}
    return TrainingState(tensors, {"number": 0.1, "list": [1, None], "nan": float("inf")}, **more)


def test_what_is_written_is_read_back(tmp_path):
    inner = TrainingState({"now.x": torch.tensor([1.0])}, {"rollback": "yes"})
    snapshot(rollback=inner).write(tmp_path / "state", {"recipe": {"lr": 0.1}})
    read, about = TrainingState.read(tmp_path / "state")
    assert about == {"recipe": {"lr": 0.1}}
    assert read.facts == snapshot().facts
    assert same(read.tensors, snapshot().tensors)
    assert all(read.tensors[name].dtype == tensor.dtype for name, tensor in snapshot().tensors.items())
    assert same(read.rollback.tensors, inner.tensors)
    assert read.rollback.facts == inner.facts
    assert read.rollback.rollback is None
    snapshot().write(tmp_path / "state", {})
    assert TrainingState.read(tmp_path / "state")[0].rollback is None


def test_the_rollback_of_a_state_of_version_0_1_is_read(tmp_path):
    inner = snapshot()
    tensors = {f"{place}.{name}": each.clone() for place in ("now", "healthy") for name, each in inner.tensors.items()}
    facts = {"about": {}, "now": inner.facts, "healthy": inner.facts}
    safetensors.torch.save_file(tensors, tmp_path / "state", {"training": json.dumps(facts)})
    read, _ = TrainingState.read(tmp_path / "state")
    assert same(read.rollback.tensors, inner.tensors)
    assert read.rollback.facts == inner.facts


def test_a_real_trainings_snapshot_survives_the_disk(tmp_path):
    done = Training(method="fgsm-rs", average=0.9, optimizer="adamw", lr=0.01).run()
    for each in done.saved:
        each.write(tmp_path / "state", {})
        read, _ = TrainingState.read(tmp_path / "state")
        assert read.facts == json.loads(json.dumps(each.facts))
        assert same(read.tensors, each.tensors)
        assert read.rollback is None if each.rollback is None else same(read.rollback.tensors, each.rollback.tensors)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "other", "json", "list", "folder"])
def test_a_damaged_file_is_one_sentence(damage, tmp_path):
    path = tmp_path / "training.safetensors"
    snapshot().write(path, {})
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "other":
        import safetensors.torch

        safetensors.torch.save_file({"weight": torch.ones(2)}, path)
    elif damage in ("json", "list"):
        import safetensors.torch

        safetensors.torch.save_file({"weight": torch.ones(2)}, path, {"training": "{" if damage == "json" else "[]"})
    else:
        path.write_bytes({"truncated": content[:-7], "empty": b"", "garbage": os.urandom(300)}[damage])
    with pytest.raises(UserError, match="safetensors is not the state of a training") as caught:
        TrainingState.read(path)
    assert "\n" not in str(caught.value)
    assert "--output" in str(caught.value)


def test_a_full_disk_is_one_sentence_and_the_file_before_it_is_intact(tmp_path, monkeypatch):
    path = tmp_path / "state"
    snapshot().write(path, {"first": 1})
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        snapshot().write(path, {"second": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("writes", range(1, 10))
def test_a_disk_that_fills_up_during_training_leaves_the_last_good_checkpoint(writes, tmp_path, monkeypatch):
    """Whichever write fails, what lies in the folder is whole, and training goes on when there is room again."""
    from robustbench_local.training.recipe import resolve_recipe
    from robustbench_local.training.run import run_training
    from robustbench_local.training.settings import RuntimeSettings

    recipe = resolve_recipe(
        None, {"arch": "cnn-small", "samples": "80", "batch_size": "32", "epochs": "2", "method": "standard"}
    )
    sync, calls = os.fsync, [0]

    def filling(handle):
        calls[0] += 1
        if calls[0] >= writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", filling)
        with pytest.raises(UserError, match=r"cannot write .*No space left on device.*--output"):
            run_training(recipe, tmp_path / "out", runtime=RuntimeSettings(device="cpu"))
    assert not [path for path in (tmp_path / "out").glob("*") if path.name.startswith(".")]
    if (tmp_path / "out" / "model.json").exists():
        load_classifier(str(tmp_path / "out"))
    begun = (tmp_path / "out" / "training.safetensors").exists()
    hardened = run_training(recipe, tmp_path / "out", runtime=RuntimeSettings(device="cpu"), resume=begun)
    assert [report.epoch for report in hardened.reports] == [1, 2]
