"""Whether a model answers the same: again, in any company, with gradients, and whatever it was asked before."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustbench_local.attacks.randomness import sample_keys
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.models.metered import Metered, ModelFailure
from robustbench_local.results import checks
from robustbench_local.results.schema import Diagnostic

TOLERANCE = 1e-4
"""Relative difference of logits that float32 rounding explains."""
OTHER_BATCH = 10 * TOLERANCE
"""Relative difference that another batch, or other kernels for passes with gradients, explain."""
AGAIN = 3
"""Passes that tell a random model from one that has a memory; they run only where an answer has changed."""
DEFAULT_RADIUS = 0.03
"""How far near-duplicates are from their images where the threat model has no radius: L∞."""
LEAP = 100_000
"""How many times what a counter has counted so far is added to it, to see whether the model will answer otherwise."""
NAMED = 3
"""How many changed attributes a sentence names."""


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of logits, relative to the largest logit; 1 where there are not as many."""
    if one.shape != other.shape:
        return 1.0
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))


def fresh_copy(model: Metered) -> Metered | None:
    """A copy that is asked nothing until it is needed; None where there cannot be one. It shares the pass count."""
    try:
        return Metered(copy.deepcopy(model.model), model.passes)
    except Exception:  # a module may refuse to be copied in any way, and memory may be short
        return None


def blends(images: Tensor) -> Tensor:
    """Images that nobody has asked about before: the mean of each and the next, float [rows, ...]."""
    return (images + images.roll(1, 0)) / 2


def near_duplicates(points: Tensor, gradient: Tensor, threat_model: ThreatModel) -> Tensor:
    """Points in the balls around others, float [rows, ...]: by turns one step along the gradient and random ones.

    gradient: like points. Some random ones are at all distances up to eps, others nearer.
    """
    if not threat_model.eps:
        threat_model = ThreatModel("linf", DEFAULT_RADIUS, threat_model.box)
    geometry, eps = threat_model.geometry, threat_model.eps
    kinds = torch.arange(len(points), device=points.device) % 3
    keys = sample_keys(0, torch.arange(len(points), device=points.device), "near-duplicates", 0)
    length = torch.full_like(kinds, 1, dtype=points.dtype) * eps
    step = geometry.steepest(gradient, points, length, threat_model.box)
    far, near = (geometry.random_start(points, radius, keys).to(points.dtype) for radius in (eps, eps / 4))
    moves = torch.stack([step, far, near])[kinds, torch.arange(len(points), device=points.device)]
    return threat_model.project(points + moves, points)


@dataclass(frozen=True)
class Answers:
    """What a model has answered about the same images in the same batch, logits float [rows, classes] each.

    first, last: before and after all other questions. repeated: again, where the last differed from the first. changed:
    names of what the questions have changed in the model. by_memory: whether that explains different answers: copies
    that have been asked nothing agree.
    """

    first: Tensor
    last: Tensor
    repeated: tuple[Tensor, ...] = ()
    changed: tuple[str, ...] = ()
    by_memory: bool = False

    @classmethod
    @torch.no_grad()
    def of(cls, model: Metered, fresh: Metered | None, images: Tensor, first: Tensor) -> Answers:
        """Ask the model again. fresh: a copy from before the first question, which stays as it is."""
        last: Tensor = model(images)
        changed = () if fresh is None else tuple(changed_attributes(fresh.model.module, model.model.module))
        if difference(last, first) <= TOLERANCE:
            return cls(first, last, changed=changed)
        repeated = tuple(model(images) for _ in range(AGAIN))
        copies = [fresh_copy(fresh) for _ in range(2)] if fresh is not None and changed else []
        fresh_answers = [each(images) for each in copies if each is not None]
        agree = len(fresh_answers) == 2 and difference(*fresh_answers) <= TOLERANCE
        return cls(first, last, repeated, changed, agree)

    @property
    def largest_difference(self) -> float:
        return max(difference(each, self.first) for each in (self.last, *self.repeated))

    @property
    def random(self) -> bool:
        """Whether the same images get different logits, and not because of what was asked in between."""
        return self.largest_difference > TOLERANCE and not self.by_memory


class Memory(NamedTuple):
    """What a fresh copy says to near-duplicates of what the model has been asked about.

    difference: of the two models' logits, relative to the largest. random: whether chance explains it. later: how far
    the logits of the images change where the model's counters have gone on for very long.
    """

    difference: float
    random: bool
    later: float


@torch.no_grad()
def ask_fresh_copies(model: Metered, fresh: Metered | None, near: Tensor, images: Tensor, answers: Answers) -> Memory:
    """Ask about near-duplicates, float [rows, ...], and, where the model counts something, about the images again.

    fresh: a copy from before the first question. answers: those of the model to the images.
    """
    copied = fresh_copy(fresh) if fresh is not None else None
    if fresh is None or copied is None:
        return Memory(0.0, random=False, later=0.0)
    used, unused = model(near), copied(near)
    value, random = difference(used, unused), False
    if value > OTHER_BATCH:
        second = fresh_copy(fresh)
        random = second is None or difference(second(near), unused) > TOLERANCE
        random |= not answers.changed and difference(model(near), used) > TOLERANCE
    later = _much_later(model, fresh) if answers.changed else None
    change = 0.0
    with contextlib.suppress(ModelFailure):
        change = difference(later(images), answers.last) if later is not None else 0.0
    return Memory(value, random, change)


def _much_later(model: Metered, fresh: Metered) -> Metered | None:
    """A copy of a used model whose counters have gone on for very long; None where it counts nothing."""
    copied, counts = fresh_copy(model), False
    parts = zip(fresh.modules(), model.modules(), copied.modules() if copied is not None else (), strict=False)
    for before, now, after in parts:
        earlier = _values(before)
        for name, value in _values(now).items():
            if _is_number(value) and _is_number(earlier.get(name)) and not _same(value, earlier[name]):
                setattr(after, name, value + LEAP * (value - earlier[name]))
                counts = True
    return copied if counts else None


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_floating_point() and value.dtype != torch.bool
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def deterministic(answers: Answers, memory: Memory) -> Diagnostic:
    """Whether the same images get the same logits."""
    if answers.by_memory:
        return not_measured(checks.DETERMINISTIC, "the model answers by what it was asked before")
    random = answers.random or memory.random
    return Diagnostic(
        slug=checks.DETERMINISTIC,
        status="warn" if random else "pass",
        value=max(answers.largest_difference, memory.difference if memory.random else 0.0),
        threshold=TOLERANCE,
        n=len(answers.first),
        advice="the same images got different logits (dropout or noise in forward?): one prediction per sample means "
        "little, and attacks have to average over several draws (EOT); switch the randomness off"
        if random
        else "",
    )


@torch.no_grad()
def batch_independent(model: Metered, images: Tensor, logits: Tensor, strangers: Tensor) -> Diagnostic:
    """Ask about every second image alone, and about the others in reversed order beside strangers.

    images: float [rows, ...], whose logits in one batch are given, float [rows, classes]. strangers: float [rows, ...].
    """
    alone, together = slice(0, None, 2), slice(1 if len(images) > 1 else 0, None, 2)
    among = torch.cat([images[together].flip(0), strangers])
    where = "beside others in reversed order"
    value = difference(model(among)[: len(images[together])].flip(0), logits[together])
    try:
        by_itself = difference(torch.cat([model(image) for image in images[alone].split(1)]), logits[alone])
    except ModelFailure:
        model.model.refuses_one = True
        by_itself = 1.0  # batch norm in train mode refuses a single image
    if by_itself >= value:
        where, value = "alone", by_itself
    depends = value > OTHER_BATCH
    return Diagnostic(
        slug=checks.BATCH_INDEPENDENT,
        status="warn" if depends else "pass",
        value=value,
        threshold=OTHER_BATCH,
        n=len(images),
        advice=f"the logits of an image depend on its batch: asked {where} it gets others (batch norm in train mode?); "
        "put the model into eval mode in its own code"
        if depends
        else "",
    )


def mode_independent(without: Tensor, with_gradients: Tensor) -> Diagnostic:
    """Compare logits of the same points without and with gradients, float [rows, classes] each."""
    value = difference(with_gradients, without)
    return Diagnostic(
        slug=checks.MODE_INDEPENDENT,
        status="warn" if value > OTHER_BATCH else "pass",
        value=value,
        threshold=OTHER_BATCH,
        n=len(without),
        advice="with gradients the model gives the same images other logits than without, so gradient attacks see "
        "another function than the one that is evaluated: make its forward independent of torch.is_grad_enabled() and "
        "of requires_grad"
        if value > OTHER_BATCH
        else "",
    )


def not_measured(slug: str, why: str) -> Diagnostic:
    """The finding of a check that could not be made."""
    return Diagnostic(slug=slug, status="skipped", advice=f"cannot be measured: {why}")


def stateless(memory: Memory, answers: Answers, *, copied: bool) -> Diagnostic:
    """Whether answers depend on earlier questions. copied: whether there was a copy to compare with."""
    if not copied:
        return not_measured(checks.STATELESS, "the model cannot be copied")
    value = max(memory.difference, memory.later, answers.largest_difference)
    depends = value > OTHER_BATCH
    changes = f" (its forward changes {', '.join(answers.changed[:NAMED])})" if answers.changed else ""
    return Diagnostic(
        slug=checks.STATELESS,
        status="fail" if depends else "pass",
        value=value,
        threshold=OTHER_BATCH,
        n=len(answers.first),
        advice=f"what the model answers depends on what it was asked before{changes}, so no attack says how robust it "
        "is: remove that memory"
        if depends
        else "",
    )


def changed_attributes(before: nn.Module, after: nn.Module) -> Iterator[str]:
    """Names of the parameters, buffers and other attributes in which two copies of a module differ."""
    others = dict(after.named_modules())
    for prefix, module in before.named_modules():
        other = others.get(prefix)
        for name, value in _values(module).items():
            if other is None or not _same(value, _values(other).get(name)):
                yield f"{prefix}.{name}" if prefix else name


def _values(module: nn.Module) -> dict[str, Any]:
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return {**own, **module._parameters, **module._buffers}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (str, bytes, bool, int, float, Set)) and isinstance(other, (str, bytes, bool, int, float, Set)):
        return one == other
    if isinstance(one, Sequence) and isinstance(other, Sequence):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other)  # whether objects of other kinds are equal means nothing after a copy
