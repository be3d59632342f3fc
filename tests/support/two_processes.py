"""Trainings shared between processes as torchrun starts them, each process's outcome in a file of its own."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from small_trainings import Stop, Training, network

import robustbench_local.training.loop as loop
from robustbench_local.defenses import Standard
from robustbench_local.runtime.distributed import process_group
from robustbench_local.training.snapshot import TrainingState

HEAD = {"head": ("5.weight", "5.bias")}
PLAIN = {"dropout": 0.0, "norm": False}
TRAININGS = {
    "plain": {},
    "accumulate": {"accumulate": 4},
    "trades": {"method": "trades:steps=2"},
    "awp": {"method": "pgd-at:steps=2+awp:gamma=0.01", "accumulate": 2},
    "free": {"method": "free:replays=2"},
    "freeze": {"freeze_epochs": 1},
    "average": {"average": 0.8},
    "clip": {"clip_norm": 0.3},
    "augment": {"augment": "crop=1,flip", "optimizer": "adamw", "lr": 0.01},
    "gaussian": {"method": "gaussian"},
}
NORMED = {"average": 0.8, "epochs": 3}


def training(name: str) -> Training:
    return Training(network(**PLAIN), train_with=HEAD, **TRAININGS[name])


class Bad(Standard):
    """A loss that is no number, but only in the process that has image 3 in its batch."""

    def loss(self, learner, examples):
        loss, parts = super().loss(learner, examples)
        return (loss * float("nan") if (examples.keys == self.key).any() else loss), parts


def told(done: Training) -> dict:
    return {
        "reports": [report.model_dump_json(exclude={"seconds", "images_per_second"}) for report in done.reports],
        "kept": done.kept[-1][1] if done.kept else {},
        "network": done.model.state_dict(),
    }


def run_rank(rank: int, port: int, folder: Path) -> None:
    """All trainings, as one of two processes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    with process_group() as rank:
        found = {name: told(training(name).run()) for name in TRAININGS}
        # Batch norm and dropout differ between processes, but what is kept may not.
        found["normed"] = told(Training(train_with=HEAD, freeze_epochs=1, **NORMED).run())
        begun = Training(train_with=HEAD, freeze_epochs=1, **NORMED)
        try:
            begun.run(observer=Stop(7))
        except KeyboardInterrupt:
            if rank == 0:
                begun.saved[-1].write(folder / "state", {})
        torch.distributed.barrier()
        snapshot, _ = TrainingState.read(folder / "state")
        found["resumed"] = told(Training(train_with=HEAD, freeze_epochs=1, **NORMED).run(resume=snapshot))
        object.__setattr__(bad := Bad(), "key", loop_key())
        found["skipped"] = told(Training(network(**PLAIN), objective=bad).run())
        loop.is_catastrophic = lambda report, earlier: len(earlier) == 1
        found["undone"] = told(Training(method="fgsm-rs", average=0.8).run())
        torch.save(found, folder / f"{rank}.pt")


def loop_key() -> int:
    from small_trainings import parts

    from robustbench_local.attacks.randomness import sample_keys

    return int(sample_keys(0, parts()[0].indices[3:4], "train/1", 0))
