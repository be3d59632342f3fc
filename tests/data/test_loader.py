"""Batches from memory and from worker processes, and the cut between training and hold-out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from small_trainings import CPU, Training, parts, same

from robustbench_local.data import load_dataset
from robustbench_local.data.holdout import cut_holdout
from robustbench_local.data.loader import BatchLoader, fits_in_memory, shuffled_batches
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError


def test_every_image_comes_once_an_epoch_in_full_batches_and_another_order():
    generator = torch.Generator().manual_seed(0)
    first, second = (shuffled_batches(165, 32, generator) for _ in range(2))
    assert all(len(positions) == 32 for positions in first)
    assert len(first) == 5
    flat = torch.cat(first)
    assert len(flat.unique()) == 160
    assert set(flat.tolist()) <= set(range(165))
    assert not torch.equal(flat, torch.cat(second))


def batches(dataset, workers=None):
    positions = torch.arange(len(dataset)).flip(0).split(7)
    return list(BatchLoader(dataset, CPU, workers=workers).batches(positions))


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_are_those_from_memory(workers, monkeypatch):
    data = parts()[0].subset(range(30))
    resident = batches(data)
    assert torch.equal(resident[0].images, data.images(range(29, 22, -1)))
    assert torch.equal(resident[0].indices, data.indices[23:].flip(0))
    monkeypatch.setattr("robustbench_local.data.loader.RESIDENT_BYTES", 0)
    assert not fits_in_memory(data)
    random = torch.get_rng_state()
    streamed = batches(data, workers)
    assert torch.equal(torch.get_rng_state(), random), "dropout and resuming rely on them"
    assert len(streamed) == len(resident) == 5
    for one, other in zip(resident, streamed, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "labels", "indices"))


def test_training_from_worker_processes_gives_the_same_weights(monkeypatch):
    one = Training(epochs=1, data=parts(80)).run()
    monkeypatch.setattr("robustbench_local.data.loader.RESIDENT_BYTES", 0)
    other = Training(epochs=1, data=parts(80)).run(workers=1)
    assert same(one.model, other.model)
    assert one.told == other.told


def test_a_damaged_file_is_one_sentence_from_a_worker_too(tmp_path, monkeypatch):
    monkeypatch.setattr("robustbench_local.data.loader.RESIDENT_BYTES", 0)
    for kind, number in itertools.product("ab", range(3)):
        (tmp_path / kind).mkdir(exist_ok=True)
        Image.new("RGB", (12, 12), "red").save(tmp_path / kind / f"{number}.png")
    data = load_dataset(f"imagefolder:{tmp_path}", resize=Resize(8, 8))
    (tmp_path / "b" / "1.png").write_bytes(b"no picture")
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"1\.png") as caught:
            batches(data, workers)
        assert "\n" not in str(caught.value)


def test_hold_out_and_training_are_disjoint_and_keep_the_classes_shares():
    labels = load_dataset("digits", split="train").labels
    training, holdout = cut_holdout(labels, 0.1, seed=0)
    assert len(holdout) == 144
    assert torch.equal(torch.cat([training, holdout]).sort().values, torch.arange(len(labels)))
    shares = labels[holdout].bincount(minlength=10) - 0.1 * labels.bincount(minlength=10)
    assert shares.abs().max() <= 1
    assert not torch.equal(cut_holdout(labels, 0.1, seed=1)[1], holdout)


@pytest.mark.parametrize("groups", [None, torch.arange(20) // 2])
@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_hold_out_that_leaves_nothing_is_refused(share, groups):
    with pytest.raises(UserError) as caught:
        cut_holdout(torch.arange(20) % 2, share, seed=0, groups=groups)
    assert caught.value.slug == "holdout-empty"


def test_the_frames_of_one_film_stay_on_one_side():
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(0, 50, (600,), generator=generator) * 1000 - 7
    labels = (groups + 7) // 1000 % 3
    training, holdout = cut_holdout(labels, 0.2, seed=0, groups=groups)
    assert torch.equal(torch.cat([training, holdout]).sort().values, torch.arange(600))
    assert not set(groups[training].tolist()) & set(groups[holdout].tolist())
    assert len(groups[holdout].unique()) == round(0.2 * len(groups.unique()))
    counts = [int((labels[holdout] == kind).sum()) for kind in range(3)]
    assert min(counts) > 0, "films of every class are held out"
    assert not torch.equal(cut_holdout(labels, 0.2, seed=1, groups=groups)[1], holdout)


def test_groups_of_an_npz_file_reach_the_cut(tmp_path, monkeypatch):
    from robustbench_local.training.recipe import resolve_recipe
    from robustbench_local.training.run import run_training
    from robustbench_local.training.settings import RuntimeSettings

    digits = load_dataset("digits", split="train").subset(range(120))
    images = (digits.images(range(120)) * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "films.npz", images=images, labels=digits.labels.numpy(), groups=np.arange(120) // 4)
    seen = []

    def train(network, training, holdout, *_, **__):
        seen.append((training, holdout))
        raise KeyboardInterrupt

    monkeypatch.setattr("robustbench_local.training.run.train", train)
    settings = {"eps": "0.1", "samples": "100", "batch_size": "32"}
    recipe = resolve_recipe(None, {"data": f"npz:{tmp_path / 'films.npz'}", **settings})
    with pytest.raises(KeyboardInterrupt):
        run_training(recipe, tmp_path / "out", runtime=RuntimeSettings(device="cpu"))
    ((training, holdout),) = seen
    assert len(training) + len(holdout) == 100
    assert len(holdout) > 0
    films = [set((part.indices // 4).tolist()) for part in (training, holdout)]
    assert not films[0] & films[1]
