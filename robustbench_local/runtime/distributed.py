"""Several processes on one evaluation: each searches its share, and all know what each has found."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from robustbench_local.errors import UserError
from robustbench_local.runtime.device import choose_device

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) outside torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def require_process_group(what: str) -> None:
    """Raises UserError where torchrun has started several processes that each believe to be alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and rank_and_world()[1] == 1:
        raise UserError(
            f"torchrun has started several processes, but they have not met: call {what} inside "
            "'with robustbench_local.runtime.distributed.process_group()'"
        )


def gather(mine: list[T]) -> list[list[T]]:
    """Every process's list, by rank. Waits for all of them."""
    _, world = rank_and_world()
    if world == 1:
        return [mine]
    gathered: list[list[T]] = [[] for _ in range(world)]
    with _in_company():
        dist.all_gather_object(gathered, mine)
    return gathered


@contextlib.contextmanager
def _in_company() -> Iterator[None]:
    """Turns the end of another process into a sentence for the user."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            "another process of this run has ended, and this one cannot go on without it: start the same command with "
            "--resume, with as many processes as you like"
        ) from None


def broadcast(value: T) -> T:
    """The first process's value, for all of them."""
    return gather([value])[0][0]


def raise_on_all_ranks(refusal: str | None) -> None:
    """Raises UserError in every process where any of them has a reason to refuse."""
    for (each,) in gather([refusal]):
        if each is not None:
            raise UserError(each)


@contextlib.contextmanager
def on_rank_zero(context: contextlib.AbstractContextManager[object]) -> Iterator[None]:
    """The context in the first process alone; what refuses that one refuses all of them."""
    with contextlib.ExitStack() as held:
        refusal = None
        if rank_and_world()[0] == 0:
            try:
                held.enter_context(context)
            except UserError as error:
                refusal = str(error)
        raise_on_all_ranks(refusal)
        yield


def _first_to_report(count: Callable[[str, int], int], message: str) -> bool:
    """Whether no other process has reported this message: the same error in several processes is printed once.

    count: adds to a counter that all processes share, and gives its new value.
    """
    try:
        return count(hashlib.sha256(message.encode()).hexdigest(), 1) == 1
    except RuntimeError:  # the process that keeps the store has ended
        return True


@contextlib.contextmanager
def process_group() -> Iterator[int]:
    """Join the group that torchrun has set up, if it has; gives this process's number.

    An evaluation's events travel as small objects, by gloo on every device; gradients between GPUs by nccl.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield 0
        return
    # Processes wait for each other at the end of every stage, which can take as long as a stage; torchrun itself ends
    # those whose fellows have died.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    store, rank, world = next(rendezvous("env://"))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=datetime.timedelta(days=30))
    try:
        with _in_company():
            yield rank
    except UserError as error:
        error.reported_elsewhere = not _first_to_report(store.add, str(error))
        raise
    finally:
        dist.destroy_process_group()


def device_for(name: str | None) -> torch.device:
    """The device of that name; without one the GPU that torchrun means for this process, else the best there is.

    Raises UserError for a device that this machine does not have.
    """
    if name is None and rank_and_world()[1] > 1 and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return choose_device(name)
