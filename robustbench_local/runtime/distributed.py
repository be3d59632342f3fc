"""Several processes on one run, started by torchrun: each works on its share and learns the results of all."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from robustbench_local.errors import UserError
from robustbench_local.numbers import parse_count
from robustbench_local.runtime.device import choose_device

T = TypeVar("T")
_GLOO = re.compile(r"\bgloo\b")
"""Gloo raises a plain RuntimeError that names its source file when another process closes its connection."""


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def require_process_group(what: str) -> None:
    """Raises UserError where torchrun has started several processes that have not joined a group."""
    if _environment_number("WORLD_SIZE", 1) > 1 and rank_and_world()[1] == 1:
        raise UserError(
            f"torchrun has started several processes, but they have not joined a group: call {what} inside "
            "'with robustbench_local.runtime.distributed.process_group()'",
            slug="process-group-missing",
        )


def _environment_number(name: str, default: int) -> int:
    """A number that torchrun sets in the environment.

    Raises UserError for anything else.
    """
    text = os.environ.get(name, str(default))
    try:
        return parse_count(text)
    except ValueError as error:
        raise UserError(
            f"the environment variable {name}: {error}; unset it, or start with torchrun", slug="invalid-environment"
        ) from None


def gather(mine: list[T]) -> list[list[T]]:
    """Every process's list, by rank. Waits for all of them."""
    _, world = rank_and_world()
    if world == 1:
        return [mine]
    gathered: list[list[T]] = [[] for _ in range(world)]
    with _report_lost_process():
        dist.all_gather_object(gathered, mine)
    return gathered


@contextlib.contextmanager
def _report_lost_process() -> Iterator[None]:
    """Turn the error that the end of another process causes into a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and _GLOO.search(str(error)) is None:
            raise
        raise UserError(
            "another process of this run has ended, and this one cannot continue without it: start the same command "
            "with --resume, with any number of processes",
            slug="process-lost",
        ) from None


def broadcast(value: T) -> T:
    """The first process's value, in every process."""
    return gather([value])[0][0]


def raise_on_all_ranks(error: UserError | None) -> None:
    """Raise the error of the first process that has one, in every process."""
    for (each,) in gather([error]):
        if each is not None:
            raise each


@contextlib.contextmanager
def on_rank_zero(context: contextlib.AbstractContextManager[object]) -> Iterator[None]:
    """Enter the context in the first process alone. Its UserError is raised in every process."""
    with contextlib.ExitStack() as stack:
        refusal = None
        if rank_and_world()[0] == 0:
            try:
                stack.enter_context(context)
            except UserError as error:
                refusal = error
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
    """Join the group that torchrun has set up, if any, and yield this process's rank.

    An evaluation's events are small objects, sent by gloo on every device; gradients go between GPUs by nccl.
    """
    if _environment_number("WORLD_SIZE", 1) < 2:
        yield 0
        return
    # Processes wait for each other at the end of every stage, for as long as a stage takes. torchrun itself ends the
    # others when one has died.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    store, rank, world = next(rendezvous("env://"))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=datetime.timedelta(days=30))
    try:
        with _report_lost_process():
            yield rank
    except UserError as error:
        error.reported_elsewhere = not _first_to_report(store.add, str(error))
        raise
    finally:
        dist.destroy_process_group()


def device_for(name: str | None) -> torch.device:
    """The device of that name; without a name the GPU that torchrun assigns to this process, else the best one.

    Raises UserError for a device that this machine does not have.
    """
    if name is None and rank_and_world()[1] > 1 and torch.cuda.is_available():
        return torch.device("cuda", _environment_number("LOCAL_RANK", 0) % torch.cuda.device_count())
    return choose_device(name)
