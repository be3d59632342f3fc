"""One process behaves as if it were alone; several processes share results and errors."""

import pytest
import torch
from torch import distributed, multiprocessing

from robustbench_local.errors import UserError
from robustbench_local.runtime.distributed import (
    broadcast,
    device_for,
    gather,
    on_rank_zero,
    process_group,
    raise_on_all_ranks,
    rank_and_world,
    require_process_group,
)


def test_a_process_alone_needs_no_group():
    assert rank_and_world() == (0, 1)
    assert gather([1, 2]) == [[1, 2]]
    assert broadcast("x") == "x"
    with process_group() as rank:
        assert rank == 0
    require_process_group("evaluate")
    assert device_for("cpu") == torch.device("cpu")


@pytest.mark.parametrize("text", ["two", "", "-1", "9" * 5000, "²"])
def test_an_environment_that_torchrun_did_not_set_is_refused(monkeypatch, text):
    monkeypatch.setenv("WORLD_SIZE", text)
    for call in (lambda: require_process_group("evaluate"), lambda: process_group().__enter__()):
        with pytest.raises(UserError, match="WORLD_SIZE") as caught:
            call()
        assert caught.value.slug == "invalid-environment"


def test_processes_without_a_group_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="evaluate") as caught:
        require_process_group("evaluate")
    assert caught.value.slug == "process-group-missing"


def test_an_error_keeps_its_slug():
    with pytest.raises(UserError) as caught:
        raise_on_all_ranks(UserError("it is full", slug="disk-full"))
    assert caught.value.slug == "disk-full"


class Refusing:
    def __enter__(self):
        raise UserError("it is full", slug="disk-full")

    def __exit__(self, *_):
        pass


def work(rank, path, outcomes):
    """Joins the group and records what this process sees."""
    store = distributed.FileStore(path, 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    gathered = gather([rank])
    first = broadcast(f"from {rank}")
    try:
        with on_rank_zero(Refusing()):
            slug = "none"
    except UserError as error:
        slug = error.slug
    outcomes.put((rank, gathered, first, slug))
    distributed.destroy_process_group()


def test_two_processes_share_results_and_errors(tmp_path):
    context = multiprocessing.get_context("fork")
    outcomes = context.Queue()
    processes = [context.Process(target=work, args=(rank, str(tmp_path / "store"), outcomes)) for rank in range(2)]
    for process in processes:
        process.start()
    seen = sorted(outcomes.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert seen == [(rank, [[0], [1]], "from 0", "disk-full") for rank in range(2)]
