"""One step of training: what a batch does to the weights, whatever the method."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robustbench_local.attacks.attack import Model
from robustbench_local.attacks.randomness import sample_keys
from robustbench_local.data.augmentation import Augmentation
from robustbench_local.data.loader import Batch
from robustbench_local.defenses.objective import Examples, Parts, TrainingContext
from robustbench_local.errors import Diverged, UserError
from robustbench_local.runtime.distributed import rank_and_world
from robustbench_local.training.ema import WeightEMA
from robustbench_local.training.optimizer import build_optimizer
from robustbench_local.training.precision import FrozenCopy, uses_bf16
from robustbench_local.training.schedule import learning_rate_schedule
from robustbench_local.training.snapshot import TrainingState, part
from robustbench_local.training.task import TrainingTask

MAX_SKIPPED_BATCHES = 5
"""Training stops after this many batches in a row without a finite gradient."""


class TrainingStep:
    """The network, and everything that a step changes with it: optimizer, schedule and averaged weights.

    steps: of the whole training, for the schedules. compiled: compile the network with torch.compile.
    """

    def __init__(self, task: TrainingTask, *, steps: int, compiled: bool = False):
        self.network, self.objective = task.network, task.objective
        self.done = 0
        self._task, self._recipe, self._steps, self._compiled = task, task.recipe, steps, compiled
        self.average = WeightEMA(self.network, self._recipe.average) if self._recipe.average else None
        self._trained = {name: value for name, value in self.network.named_parameters() if value.requires_grad}
        self._head = set(task.head)
        self._augment, self._add_ons = Augmentation.parse(self._recipe.augment), self._recipe.add_ons()
        self._device = next(self.network.parameters()).device
        self._frozen, self._skipped_in_a_row = False, 0
        self._bf16 = uses_bf16(self._recipe.precision, self._device)
        self._frozen_copy = FrozenCopy(self.network, bf16=self._bf16, compiled=compiled)
        self._optimizer = build_optimizer(self._trained.values(), self._recipe)
        self._schedule = learning_rate_schedule(self._optimizer, self._recipe, steps)
        self._model = self._wrap_model()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._schedule.get_last_lr()[0])

    def freeze(self, frozen: bool) -> None:
        """Train only the last layer from now on, or everything."""
        if frozen == self._frozen:
            return
        self._frozen = frozen
        for name, parameter in self._trained.items():
            parameter.requires_grad_(not frozen or name in self._head)
        self._model = self._wrap_model()

    def _wrap_model(self) -> Model:
        """The network as losses call it: distributed over torchrun's processes, compiled if requested."""
        model: nn.Module = self.network
        if rank_and_world()[1] > 1:
            devices = [self._device] if self._device.type == "cuda" else None
            model = nn.parallel.DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
        return torch.compile(model) if self._compiled else model

    def _context(self) -> TrainingContext:
        """What the method sees of this step: eps rises linearly during the recipe's `eps_warmup`."""
        warmup_steps = self._recipe.eps_warmup * self._steps
        threat_model = self._task.threat_model
        if self.done < warmup_steps:
            threat_model = threat_model.scaled((self.done + 1) / (warmup_steps + 1))
        return TrainingContext(
            self._model,
            threat_model,
            self._frozen_copy,
            teacher=self._task.teacher,
            label_smoothing=self._recipe.label_smoothing,
        )

    def train_batch(self, batch: Batch, epoch: int, number: int, *, settle: bool = False) -> dict[str, float]:
        """Train on one batch, with as many updates as the method makes; returns the last one's loss and its parts.

        number: of the batch in its epoch, from 1. settle: update the batch norm statistics of the averaged weights too.
        A gradient that is not finite changes nothing and returns {"skipped": 1.0}. Raises Diverged after
        `MAX_SKIPPED_BATCHES` of them in a row.
        """
        self.network.train(not self._frozen)
        context = self._context()
        buffers = [buffer.clone() for buffer in self.network.buffers()]
        chunks = self._examples(context, batch, epoch)
        self.done += 1
        while chunks:
            adversarial = chunks[-1].adversarial
            with self._perturbed_weights(context, chunks, epoch):
                parts = self._backward(context, chunks)
            updated, losses = self._update(parts)
            if not updated:
                self._restore_buffers(buffers)
                self._count_skipped(losses, epoch, number)
                losses, settle = {"skipped": 1.0}, False
                break
            self._skipped_in_a_row = 0
            replays = [self.objective.next_replay(context, chunk) for chunk in chunks]
            chunks = [chunk for chunk in replays if chunk is not None]
        with warnings.catch_warnings():
            # A first batch that was skipped is not a mistake in the order of calls.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self._schedule.step()
        if self.average is not None:
            self.average.update(self.network)
            if settle and not self._frozen:
                self.average.refresh_batch_norm(adversarial.detach())
        return losses

    def _examples(self, context: TrainingContext, batch: Batch, epoch: int) -> list[Examples]:
        """The batch after augmentation and inner attack, in the recipe's `accumulate` chunks."""
        seed = self._recipe.seed
        keys = sample_keys(seed, batch.indices, f"train/{epoch}", 0)
        images = self._augment(batch.images, sample_keys(seed, batch.indices, f"augment/{epoch}", 0))
        rows = zip(*(each.chunk(self._recipe.accumulate) for each in (images, batch.labels, keys)), strict=True)
        return [self.objective.examples(context, *row) for row in rows]

    def _backward(self, context: TrainingContext, chunks: list[Examples]) -> list[Parts]:
        """Every chunk's loss and its parts, still on the device; the gradients of the mean are left in `grad`."""
        self._optimizer.zero_grad(set_to_none=True)
        results = []
        for number, chunk in enumerate(chunks, start=1):
            with nullcontext() if number == len(chunks) else self._no_sync():
                loss, parts = self._loss(context, chunk)
                (loss / len(chunks)).backward()
            results.append({"loss": loss.detach(), **parts})
        return results

    def _loss(self, context: TrainingContext, chunk: Examples) -> tuple[Tensor, Parts]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            return self.objective.loss(context, chunk)

    def _no_sync(self) -> AbstractContextManager[None]:
        """Inside, processes do not yet exchange gradients."""
        model = self._model
        return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()

    @contextmanager
    def _perturbed_weights(self, context: TrainingContext, chunks: list[Examples], epoch: int) -> Iterator[None]:
        """Inside, the weights are where the add-ons that are active in this epoch put them."""
        weights = [parameter for parameter in self._trained.values() if parameter.requires_grad]
        with ExitStack() as stack:
            for add_on in self._add_ons:
                if add_on.active(epoch):
                    stack.enter_context(add_on.perturb(weights, lambda: self._gradients(context, chunks, weights)))
            yield

    def _gradients(self, context: TrainingContext, chunks: list[Examples], weights: list[nn.Parameter]) -> list[Tensor]:
        """The batch's gradient with respect to the weights, summed over chunks and processes."""
        local = replace(context, model=self.network)
        buffers = [buffer.clone() for buffer in self.network.buffers()]
        gradients = [torch.zeros_like(weight) for weight in weights]
        for chunk in chunks:
            parts = torch.autograd.grad(self._loss(local, chunk)[0], weights, allow_unused=True)
            for total, gradient in zip(gradients, parts, strict=True):
                if gradient is not None:
                    total += gradient
        # This pass trains nothing: batch norm's running statistics count the batch once.
        self._restore_buffers(buffers)
        if rank_and_world()[1] > 1:
            for total in gradients:
                dist.all_reduce(total)
        return gradients

    def _restore_buffers(self, saved: list[Tensor]) -> None:
        for buffer, value in zip(self.network.buffers(), saved, strict=True):
            buffer.copy_(value)

    def _update(self, chunks: list[Parts]) -> tuple[bool, dict[str, float]]:
        """Step the optimizer where the gradient is finite.

        chunks: the loss and its parts of every chunk. Returns whether the weights were updated, and the mean of the
        loss and of each part over all chunks.
        """
        weights = [parameter for parameter in self._trained.values() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(weights, self._recipe.clip_norm or math.inf)
        named = [each for parts in chunks for each in parts.items()]
        # Reading from a device waits for it, so everything is read at once.
        length, *values = torch.stack([norm, *(tensor for _, tensor in named)]).tolist()
        sums: Counter[str] = Counter()
        for (name, _), value in zip(named, values, strict=True):
            sums[name] += value
        losses = {name: total / len(chunks) for name, total in sums.items()}
        if not math.isfinite(length):
            return False, losses
        self._optimizer.step()
        self._frozen_copy.invalidate()
        return True, losses

    def _count_skipped(self, losses: dict[str, float], epoch: int, number: int) -> None:
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_BATCHES:
            raise Diverged(
                f"the loss was {losses['loss']:g} in epoch {epoch}, batch {number}, and the gradients of "
                f"{MAX_SKIPPED_BATCHES} batches in a row were not finite: lower --lr, or look for damaged images; the "
                "checkpoint of the best epoch so far, if there was one, is kept",
                slug="gradient-not-finite",
            )

    @property
    def validated_network(self) -> nn.Module:
        """The network that is validated and saved: the averaged one, where the recipe averages."""
        return self.average.network if self.average is not None else self.network

    def snapshot(self) -> TrainingState:
        """Everything that a step changes; the tensors are copies."""
        networks = {"network.": self.network} | ({"average.": self.average.network} if self.average else {})
        tensors = {
            prefix + name: value for prefix, each in networks.items() for name, value in each.state_dict().items()
        }
        state = self._optimizer.state_dict()
        for number, values in state["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
        facts: dict[str, Any] = {
            "groups": state["param_groups"],
            "schedule": _without_functions(self._schedule.state_dict()),
            "done": self.done,
            "updates": self.average.updates if self.average else 0,
        }
        return TrainingState({name: value.detach().clone() for name, value in tensors.items()}, facts)

    def restore(self, snapshot: TrainingState) -> None:
        """Continue from the snapshot. Raises UserError where it is of another network."""
        try:
            self.network.load_state_dict(part(snapshot.tensors, "network."))
            if self.average is not None:
                self.average.network.load_state_dict(part(snapshot.tensors, "average."))
                self.average.updates = snapshot.facts["updates"]
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in part(snapshot.tensors, "optimizer.").items():
                number, _, key = name.partition(".")
                # Loading keeps the tensors themselves, and training would change the snapshot.
                state.setdefault(int(number), {})[key] = tensor.clone()
            groups = [dict(group) for group in snapshot.facts["groups"]]
            self._optimizer.load_state_dict({"state": state, "param_groups": groups})
            self._schedule.load_state_dict(dict(snapshot.facts["schedule"]))
            self.done = snapshot.facts["done"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the interrupted training used another network ({reason}): name another --output",
                slug="state-of-another-network",
            ) from None
        self._frozen_copy.invalidate()


def _without_functions(state: dict[str, Any]) -> dict[str, Any]:
    """The schedule's state as JSON can hold it; its functions are created again."""
    return {name: value for name, value in state.items() if not callable(value)}
