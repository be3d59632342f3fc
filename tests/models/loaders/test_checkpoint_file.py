"""Reading checkpoints: every wrapping that the field uses, and refusals that run nothing."""

from __future__ import annotations

import argparse
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_networks import tiny
from torch import nn

from robustbench_local.errors import UserError
from robustbench_local.models.loaders.checkpoint import Checkpoint
from robustbench_local.models.loaders.checkpoint_file import read_checkpoint
from robustbench_local.models.loaders.state_dict import infer_size, load_weights


def same(left, right) -> bool:
    return set(left) == set(right) and all(torch.equal(left[key], right[key]) for key in left)


def prefixed(prefix: str, state):
    return {prefix + key: value for key, value in state.items()}


STATE = tiny().state_dict()
OTHER = tiny(seed=2).state_dict()
WRAPPINGS = {
    "bare": (STATE, ""),
    "state_dict": ({"state_dict": STATE, "epoch": 3}, "state_dict"),
    "model": ({"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.rand(9)}}, "param_groups": []}}, "model"),
    "net with accuracy": ({"net": STATE, "acc": 93.1, "best": torch.tensor(93.1)}, "net"),
    "nested": ({"checkpoint": {"model_state_dict": STATE}}, "checkpoint.model_state_dict"),
    "module.": (prefixed("module.", STATE), "module"),
    "module.model.": ({"state_dict": prefixed("module.model.", STATE)}, "state_dict.module.model"),
    "_orig_mod.module.": (prefixed("_orig_mod.module.", STATE), "_orig_mod.module"),
    "averaged": ({"n_averaged": torch.tensor(7), **prefixed("module.", STATE)}, "module"),
    "equal copies": ({"ema": {**STATE}, "model": {**STATE}}, "ema"),
    "only ema": ({"ema": prefixed("module.", STATE), "epoch": 1}, "ema.module"),
    "a discriminator beside": ({"D": {"weight": torch.rand(200, 200)}, "G": STATE}, "G"),
    "numpy and arguments beside": (
        {"state_dict": STATE, "acc": np.float64(0.9), "args": argparse.Namespace(lr=0.1)},
        "state_dict",
    ),
}


def weights(content) -> Checkpoint:
    return Checkpoint.from_content(content, "w.pt")


@pytest.mark.parametrize(("content", "key"), WRAPPINGS.values(), ids=WRAPPINGS)
def test_wrapped_weights_are_read(tmp_path, content, key):
    torch.save(content, tmp_path / "w.pt")
    module = tiny(seed=3)
    assert load_weights(module, read_checkpoint(tmp_path / "w.pt")).key == key
    assert same(module.state_dict(), STATE)


def test_the_module_decides_between_candidates(tmp_path):
    torch.save({"teacher": tiny(5).state_dict(), "student": prefixed("student.", STATE)}, tmp_path / "w.pt")
    module = tiny(seed=3)
    assert load_weights(module, read_checkpoint(tmp_path / "w.pt")).key == "student.student"
    assert same(module.state_dict(), STATE)


def test_a_prefix_that_the_module_has_is_put_back():
    wrapper = nn.Module()
    wrapper.model = tiny(seed=2)
    load_weights(wrapper, weights(STATE))
    assert same(wrapper.model.state_dict(), STATE)


def test_legacy_and_safetensors_files(tmp_path):
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(STATE, tmp_path / "new.safetensors")
    for name in ("old.pth", "new.safetensors"):
        (mapping,) = read_checkpoint(tmp_path / name).mappings
        assert same(mapping.state, STATE)


def test_old_files_without_batch_counters_load():
    load_weights(tiny(), weights({key: value for key, value in STATE.items() if "num_batches" not in key}))


def test_every_mismatch_is_named_with_its_nearest_key_and_both_shapes():
    state = dict(STATE)
    state["0.weights"] = state.pop("0.weight")
    state["5.weight"] = torch.zeros(10, 144)
    state["head.scale"] = torch.zeros(7)
    module = tiny()
    with pytest.raises(UserError) as caught:
        load_weights(module, Checkpoint.from_content(state, "some.pt"))
    text = str(caught.value)
    for part in (
        "some.pt does not fit",
        "4 of",
        "'5.weight' is 10×144 in the file, 3×144 in the model",
        "'0.weight' 4×1×3×3 is missing; nearest in the file: '0.weights' 4×1×3×3",
        "'0.weights' 4×1×3×3 is not in the model; nearest in the model: '0.weight' 4×1×3×3",
        "'head.scale' 7",
    ):
        assert part in text
    assert same(module.state_dict(), STATE), "nothing is loaded by halves"


def test_many_mismatches_are_counted():
    with pytest.raises(UserError) as caught:
        load_weights(tiny(), Checkpoint.from_content({f"part{i}.weight": torch.zeros(2) for i in range(30)}, "w.pt"))
    assert len(str(caught.value).splitlines()) <= 12
    assert "… and 28 more" in str(caught.value)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize(
    "write",
    [
        lambda content, path: torch.save(content, path),
        lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
        lambda content, path: torch.save(content, path, pickle_protocol=4),
        lambda content, path: path.write_bytes(pickle.dumps(content)),
        lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
    ],
    ids=["zip", "legacy", "zip, protocol 4", "pickle", "pickle, protocol 2"],
)
def test_nothing_is_unpickled(tmp_path, write):
    target = tmp_path / "executed"
    write({"state_dict": STATE, "extra": Evil(target)}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"not loaded.*torch\.save\(model\.state_dict\(\)") as caught:
        read_checkpoint(tmp_path / "evil.pt")
    assert not target.exists()
    assert "Traceback" not in str(caught.value)


def test_the_offending_class_is_named(tmp_path):
    torch.save(tiny(), tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.container\.Sequential"):
        read_checkpoint(tmp_path / "whole.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    with pytest.raises(UserError, match=r"pathlib"):
        read_checkpoint(tmp_path / "plain.pt")


def saved(value) -> bytes:
    import io

    torch.save(value, buffer := io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html><head><title>Sign in</title>", "is a web page, not a checkpoint"),
        (b"\n\n  <html lang='en'>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git-lfs pointer.*git lfs pull"),
        (b'{"error": "Repository not found"}', "is a text file"),
        (b"\x1f\x8b\x08\x00abc", "compressed or tar archive"),
        (b"", "is empty"),
        (saved(STATE)[:2000], "truncated, damaged"),
        (bytes(range(128, 256)) * 8, "is not a checkpoint"),
        (saved(3), "holds no weights, but a int"),
        (saved({}), "holds no weights, but an empty dict"),
        (saved({"epoch": 3, "losses": [1.0]}), "holds no weights, but a dict of 'epoch', 'losses'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_are_no_checkpoints(tmp_path, content, said, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    if suffix == ".safetensors" and not said.startswith(("is a", "git", "compressed", "is empty")):
        said = "not a readable safetensors file"
    with pytest.raises(UserError, match=said) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_truncated_files_of_every_format(tmp_path):
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(STATE, tmp_path / "new.safetensors")
    for name in ("old.pth", "new.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-9])
        with pytest.raises(UserError, match="truncated"):
            read_checkpoint(tmp_path / name)


def test_missing_files_folders_and_archives(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(UserError, match="is a directory"):
        read_checkpoint(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("run/readme.txt", "x")
    with pytest.raises(UserError, match=r"zip archive \(it holds 'run/readme.txt'\)"):
        read_checkpoint(tmp_path / "a.pt")
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        archive.add(tmp_path / "a.pt", "a.pt")
    with pytest.raises(UserError, match="compressed or tar archive"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["5.weight", "1.running_var"])
def test_weights_that_are_not_finite_are_named(key, value):
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    state[key].view(-1)[0] = value
    with pytest.raises(UserError, match=rf"1 of \d+ values of '{key}' are not finite"):
        load_weights(tiny(), Checkpoint.from_content(state, "w.pt"))


def test_something_else_among_the_weights_is_named(tmp_path):
    torch.save({**STATE, "note": {"a", "b"}}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="'note' is a set"):
        load_weights(tiny(), read_checkpoint(tmp_path / "w.pt"))


def test_sizes_are_read_off_the_weights():
    assert infer_size(weights(prefixed("module.", tiny(7).state_dict())), tiny, (10, 11)) == 7
    assert infer_size(weights({"other": torch.zeros(2)}), tiny, (10, 11)) is None
