"""One step of training: what a batch does to the weights, whatever the method."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.attack import Model
from robustbench_local.attacks.randomness import sample_keys
from robustbench_local.data.augmentation import Augmentation
from robustbench_local.data.loader import Batch
from robustbench_local.defenses import Objective
from robustbench_local.defenses.objective import Examples, Parts, TrainingContext
from robustbench_local.errors import Diverged, UserError
from robustbench_local.runtime.distributed import rank_and_world
from robustbench_local.training.ema import WeightEMA
from robustbench_local.training.precision import FrozenCopy, uses_bf16
from robustbench_local.training.recipe import Recipe
from robustbench_local.training.snapshot import TrainingState, part

MAX_SKIPPED_BATCHES = 5
"""Batches in a row whose gradient may be no finite number before training is given up."""


class TrainingStep:
    """The network and everything that a step changes with it. steps: of the whole training, for schedules.

    teacher: images -> logits, for methods that learn from one. head: names of the parameters that a frozen step trains.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        threat_model: ThreatModel,
        recipe: Recipe,
        *,
        steps: int,
        teacher: Model | None = None,
        head: Sequence[str] = (),
        compiled: bool = False,
    ):
        self.network, self.objective = network, objective
        self.done = 0
        self.average = WeightEMA(network, recipe.average) if recipe.average else None
        self._threat_model, self._recipe, self._steps, self._teacher = threat_model, recipe, steps, teacher
        self._trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self._head = set(head)
        self._augment, self._add_ons = Augmentation.parse(recipe.augment), recipe.add_ons()
        self._device, self._compiled, self._frozen, self._bad = next(network.parameters()).device, compiled, False, 0
        self._bf16 = uses_bf16(recipe.precision, self._device)
        self._attacked = FrozenCopy(network, bf16=self._bf16, compiled=compiled)
        self._optimizer = _optimizer(list(self._trained.values()), recipe)
        self._schedule = _schedule(self._optimizer, recipe, steps)
        self._model = self._wrap_model()

    @property
    def rate(self) -> float:
        return float(self._schedule.get_last_lr()[0])

    def freeze(self, frozen: bool) -> None:
        """Whether only the last layer learns from now on."""
        if frozen == self._frozen:
            return
        self._frozen = frozen
        for name, parameter in self._trained.items():
            parameter.requires_grad_(not frozen or name in self._head)
        self._model = self._wrap_model()

    def _wrap_model(self) -> Model:
        """The network as losses see it: through torchrun's processes, compiled if asked for."""
        model: nn.Module = self.network
        if rank_and_world()[1] > 1:
            devices = [self._device] if self._device.type == "cuda" else None
            model = nn.parallel.DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
        return torch.compile(model) if self._compiled else model

    def _learner(self) -> TrainingContext:
        rising = self._recipe.eps_warmup * self._steps
        threat_model = self._threat_model
        if self.done < rising:
            threat_model = threat_model.scaled((self.done + 1) / (rising + 1))
        return TrainingContext(
            self._model,
            threat_model,
            self._attacked,
            teacher=self._teacher,
            label_smoothing=self._recipe.label_smoothing,
        )

    def train_batch(self, batch: Batch, epoch: int, number: int, *, settle: bool = False) -> dict[str, float]:
        """One batch, and as many steps as the method takes with it; the last one's loss and its parts.

        settle: the average's batch norm looks at the batch too. A gradient that is no finite number changes nothing and
        counts as "skipped"; raises Diverged after `SKIPS` of them in a row.
        """
        self.network.train(not self._frozen)
        learner, recipe = self._learner(), self._recipe
        keys = sample_keys(recipe.seed, batch.indices, f"train/{epoch}", 0)
        images = self._augment(batch.images, sample_keys(recipe.seed, batch.indices, f"augment/{epoch}", 0))
        rows = zip(*(each.chunk(recipe.accumulate) for each in (images, batch.labels, keys)), strict=True)
        statistics = [buffer.clone() for buffer in self.network.buffers()]
        chunks = [self.objective.examples(learner, *row) for row in rows]
        self.done += 1
        while chunks:
            points = chunks[-1].adversarial
            with self._perturbed_weights(learner, chunks, epoch):
                found = self._differentiate(learner, chunks)
            stepped, losses = self._step(found)
            if not stepped:
                for buffer, before in zip(self.network.buffers(), statistics, strict=True):
                    buffer.copy_(before)
                losses, settle = self._skipped(losses, epoch, number), False
                break
            self._bad = 0
            again = [self.objective.next_replay(learner, chunk) for chunk in chunks]
            chunks = [chunk for chunk in again if chunk is not None]
        with warnings.catch_warnings():
            # A first batch that was skipped is no mistake in the order of calls.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self._schedule.step()
        if self.average is not None:
            self.average.update(self.network)
            if settle and not self._frozen:
                self.average.refresh_batch_norm(points.detach())
        return losses

    def _differentiate(self, learner: TrainingContext, chunks: list[Examples]) -> list[Parts]:
        """Every chunk's loss and its parts, still on the device; the mean's gradients lie with the parameters."""
        self._optimizer.zero_grad(set_to_none=True)
        found = []
        for number, chunk in enumerate(chunks, start=1):
            with nullcontext() if number == len(chunks) else self._no_sync():
                loss, parts = self._loss(learner, chunk)
                (loss / len(chunks)).backward()
            found.append({"loss": loss.detach(), **parts})
        return found

    def _loss(self, learner: TrainingContext, chunk: Examples) -> tuple[Tensor, Parts]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            return self.objective.loss(learner, chunk)

    def _no_sync(self) -> AbstractContextManager[None]:
        """Inside, processes do not yet exchange gradients."""
        model = self._model
        return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()

    @contextmanager
    def _perturbed_weights(self, learner: TrainingContext, chunks: list[Examples], epoch: int) -> Iterator[None]:
        """Inside, the weights are where the add-ons that are active in this epoch put them."""
        weights = [parameter for parameter in self._trained.values() if parameter.requires_grad]
        with ExitStack() as stack:
            for add_on in self._add_ons:
                if add_on.active(epoch):
                    stack.enter_context(add_on.perturb(weights, lambda: self._gradients(learner, chunks, weights)))
            yield

    def _gradients(self, learner: TrainingContext, chunks: list[Examples], weights: list[Tensor]) -> list[Tensor]:
        """The batch's gradient by the weights, over all processes."""
        alone = replace(learner, model=self.network)
        before = [buffer.clone() for buffer in self.network.buffers()]
        gradients = [torch.zeros_like(weight) for weight in weights]
        for chunk in chunks:
            parts = torch.autograd.grad(self._loss(alone, chunk)[0], weights, allow_unused=True)
            for total, gradient in zip(gradients, parts, strict=True):
                if gradient is not None:
                    total += gradient
        # This pass trains nothing: batch norm's running statistics count the batch once.
        for buffer, old in zip(self.network.buffers(), before, strict=True):
            buffer.copy_(old)
        if rank_and_world()[1] > 1:
            for total in gradients:
                dist.all_reduce(total)
        return gradients

    def _step(self, found: list[Parts]) -> tuple[bool, dict[str, float]]:
        """Whether the gradient was a finite number, and the weights have followed it; all chunks' mean loss and parts.

        found: the loss and parts of every chunk.
        """
        weights = [parameter for parameter in self._trained.values() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(weights, self._recipe.clip_norm or math.inf)
        named = [each for parts in found for each in parts.items()]
        # Whoever reads from a device waits for it: everything is read at once.
        length, *values = torch.stack([norm, *(tensor for _, tensor in named)]).tolist()
        sums: Counter[str] = Counter()
        for (name, _), value in zip(named, values, strict=True):
            sums[name] += value
        losses = {name: total / len(found) for name, total in sums.items()}
        if not math.isfinite(length):
            return False, losses
        self._optimizer.step()
        self._attacked.invalidate()
        return True, losses

    def _skipped(self, losses: dict[str, float], epoch: int, number: int) -> dict[str, float]:
        self._bad += 1
        if self._bad >= MAX_SKIPPED_BATCHES:
            raise Diverged(
                f"the loss became {losses['loss']:g} in epoch {epoch}, batch {number}, and the gradient of {MAX_SKIPPED_BATCHES} "
                "batches in a row was no finite number: lower --lr, or look for damaged images; the checkpoint of the "
                "best epoch so far, if there was one, is intact"
            )
        return {"skipped": 1.0}

    @property
    def validated_network(self) -> nn.Module:
        """The network whose weights are kept: the averaged one, where there is one."""
        return self.average.network if self.average is not None else self.network

    def snapshot(self) -> TrainingState:
        """Where the lesson stands; the tensors are copies."""
        networks = {"network.": self.network} | ({"average.": self.average.network} if self.average else {})
        tensors = {
            prefix + name: value for prefix, each in networks.items() for name, value in each.state_dict().items()
        }
        state = self._optimizer.state_dict()
        for number, values in state["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
        facts: dict[str, Any] = {
            "groups": state["param_groups"],
            "schedule": _plain(self._schedule.state_dict()),
            "done": self.done,
            "updates": self.average.updates if self.average else 0,
        }
        return TrainingState({name: value.detach().clone() for name, value in tensors.items()}, facts)

    def restore(self, snapshot: TrainingState) -> None:
        """Raises UserError where the snapshot is of another network."""
        try:
            self.network.load_state_dict(part(snapshot.tensors, "network."))
            if self.average is not None:
                self.average.network.load_state_dict(part(snapshot.tensors, "average."))
                self.average.updates = snapshot.facts["updates"]
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in part(snapshot.tensors, "optimizer.").items():
                number, _, key = name.partition(".")
                # Both loads take over what they are given, and training would change the snapshot.
                state.setdefault(int(number), {})[key] = tensor.clone()
            groups = [dict(group) for group in snapshot.facts["groups"]]
            self._optimizer.load_state_dict({"state": state, "param_groups": groups})
            self._schedule.load_state_dict(dict(snapshot.facts["schedule"]))
        except (KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the training that is to be gone on with is of another network ({reason})") from None
        self.done = snapshot.facts["done"]
        self._attacked.invalidate()


def _optimizer(weights: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        betas = recipe.momentum, 0.999
        return torch.optim.AdamW(weights, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        weights, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, weight_decay=recipe.weight_decay
    )


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "onecycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=steps, cycle_momentum=False)
    shapes = {
        "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
        "piecewise": lambda t: 0.1 ** ((t >= 0.5) + (t >= 0.75)),
        "constant": lambda t: 1.0,  # noqa: ARG005
    }
    rising = recipe.warmup * steps

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / (rising + 1)) * shapes[recipe.schedule](step / steps)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """The schedule's state without what is no data and is made anew: functions."""
    return {name: value for name, value in state.items() if not callable(value)}
