"""The evaluation engine: keeps the batch full, drops what is decided, and believes nothing it has not verified."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustbench_local.attacks.attack import Attack, Rows, State, random_keys, target_for_run, top_wrong_classes
from robustbench_local.attacks.norms import NORMS, expand_rows, to_float64
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.data.dataset import Dataset
from robustbench_local.engine.ledger import AdversarialExample, CleanEvent, SampleStates, SearchEvent
from robustbench_local.engine.precision import SearchModel, SearchModels, tensor_float_32
from robustbench_local.errors import UserError
from robustbench_local.models.metered import Metered, Passes, seconds_since
from robustbench_local.results.schema import Distance
from robustbench_local.runtime.device import BatchSize, is_out_of_memory

ROUNDING = 1e-6
"""How far outside the ball a point may lie, in pixel units. Projections land inside; this is for a sum's own error."""
LOOK_EVERY = 4
"""Steps between two looks at what a GPU has done; each look waits for it."""
COARSE_SHARE = 0.8
"""The share of an attack's steps that low precision takes, where it is asked for; float32 takes the rest."""
LEAST_STEPS = 5
"""Attacks of fewer steps are done in float32."""


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 with gradients, whatever mode the caller is in: no TF32, no autocast, no inference mode."""
    with tensor_float_32(False), torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        yield


@dataclass(frozen=True)
class RunContext:
    """What stays the same for every attack of a run."""

    model: Metered
    search_models: SearchModels
    dataset: Dataset
    threat_model: ThreatModel
    ledger: SampleStates
    seed: int
    batch: BatchSize
    classes: int
    device: torch.device
    advanced: Callable[[int, int], None]
    """Called with how many samples have just finished a run of an attack and how many stand."""

    def load(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.dataset.images(positions).to(self.device), self.dataset.labels[positions].to(self.device)

    def ask(self, points: Tensor) -> Tensor:
        """The untouched model's logits, in batches that fit."""
        logits: list[Tensor] = []
        while (seen := sum(map(len, logits))) < len(points):
            try:
                logits.append(self.model(points[seen : seen + self.batch.value]))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.batch.halve(self.device)
        return torch.cat(logits)


@torch.no_grad()
def clean_pass(
    job: RunContext, positions: Tensor, digest: Callable[[Tensor], str], rivals: int
) -> Iterator[CleanEvent]:
    """Predictions for the images as they are. rivals: how many classes to steer to the attacks will ask for."""
    for part in positions.split(job.batch.value) if len(positions) else ():
        moment = time.perf_counter()
        images, labels = job.load(part)
        logits = job.ask(images)
        if not torch.isfinite(logits).all():
            sample = int(job.dataset.indices[part[(~torch.isfinite(logits)).any(1).cpu()][0]])
            raise UserError(
                f"{job.model.model.name} gives NaN or infinite logits for sample {sample} of {job.dataset.name}: leave "
                "that sample out, or mend the model"
            )
        yield CleanEvent(
            positions=part.tolist(),
            hashes=[digest(image) for image in images.cpu()],
            predictions=logits.argmax(1).tolist(),
            margins=job.threat_model.margin(logits, labels).tolist(),
            rivals=top_wrong_classes(logits, labels, job.threat_model)[:, :rivals].tolist(),
            forward=len(part),
            backward=0,
            seconds=seconds_since(moment),
        )


class ActiveRows(NamedTuple):
    """Rows under attack: their state on the device, and beside it on the host what the engine knows of them."""

    state: State
    host: dict[str, Tensor]
    """int64 [rows] each: `position`, `step`, the passes `forward` and `backward` spent on the row so far, and how often
    a success was `refuted`."""

    def __len__(self) -> int:  # type: ignore[override]
        return len(self.host["position"])

    def take(self, rows: Tensor) -> ActiveRows:
        """Some of the rows. rows: bool [rows], on the host."""
        there = rows.to(next(iter(self.state.values())).device)
        return ActiveRows(
            {key: value[there] for key, value in self.state.items()},
            {key: value[rows] for key, value in self.host.items()},
        )

    def split(self, size: int) -> tuple[ActiveRows, ActiveRows]:
        first = torch.arange(len(self)) < size
        return self.take(first), self.take(~first)


def _join(parts: list[ActiveRows]) -> ActiveRows:
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return ActiveRows(
        {key: torch.cat([part.state[key] for part in parts]) for key in first.state},
        {key: torch.cat([part.host[key] for part in parts]) for key in first.host},
    )


class WaitingRows:
    """Rows that wait for their turn. more: gives about so many further rows, or None when there are no more."""

    def __init__(self, more: Callable[[int], ActiveRows | None]):
        self._more = more
        self._returned: list[ActiveRows] = []

    def fill(self, batch: ActiveRows | None, size: int) -> ActiveRows | None:
        """The batch with waiting rows in its free places; None when nothing is left."""
        parts = [] if batch is None else [batch]
        while (room := size - sum(map(len, parts))) > 0:
            part = self._returned.pop() if self._returned else self._more(room)
            if part is None:
                break
            if len(part) > room:
                part, rest = part.split(room)
                self._returned.append(rest)
            parts.append(part)
        return _join(parts) if parts else None

    def put_back(self, batch: ActiveRows) -> None:
        self._returned.append(batch)


def run_attack(
    job: RunContext, attack: Attack, stage: int, run: int, positions: Tensor, emit: Callable[[SearchEvent], None]
) -> None:
    """One run of an attack on some samples, in their order. emit: called whenever about a batch has finished the run.

    Low precision, where there is any, takes the first steps; what it claims to have fooled is verified, and float32
    goes on with the rest from their best points.
    """
    job = dataclasses.replace(job, batch=_batch_of(attack, job.batch))
    waiting = iter(positions.split(1))

    def fresh(room: int) -> ActiveRows | None:
        chosen = list(itertools.islice(waiting, room))
        return _begin(job, attack, run, torch.cat(chosen)) if chosen else None

    moment = time.perf_counter()

    def conclude(batch: ActiveRows, found: Verification) -> None:
        nonlocal moment
        seconds, moment = seconds_since(moment), time.perf_counter()
        emit(_event(batch, found, stage, run, seconds))

    source = WaitingRows(fresh)
    coarse = job.search_models.coarse
    if coarse is not None and attack.steps >= LEAST_STEPS:
        unsettled = _verify_low_precision(
            job, _advance(job, attack, coarse, source, int(COARSE_SHARE * attack.steps)), conclude
        )
        source = WaitingRows(lambda room: next(unsettled, None))  # noqa: ARG005
    doubted = True
    while doubted:
        doubted = False
        for batch in _rebatch(_advance(job, attack, job.search_models.fine, source, attack.steps), job.batch):
            found = _verify(job, batch)
            batch.host["refuted"] += found.refuted
            goes_on = found.refuted & (batch.host["step"] < attack.steps)
            if goes_on.any():
                doubted = True
                source.put_back(_reset_best(batch.take(goes_on)))
            ended = found.refuted & ~goes_on
            if ended.any():  # its claim was wrong, but the point that it reached last has not been seen yet
                last = _reset_best(batch.take(ended))
                conclude(last, _verify(job, last))
            settled = ~found.refuted
            if settled.any():
                conclude(batch.take(settled), found.take(settled))


def _batch_of(attack: Attack, batch: BatchSize) -> BatchSize:
    """The run's batch size, or a smaller one for an attack that takes its rows one after the other anyway."""
    at_a_time = getattr(attack, "at_a_time", batch.value)
    return BatchSize(at_a_time) if at_a_time < batch.value else batch


def _begin(job: RunContext, attack: Attack, run: int, positions: Tensor) -> ActiveRows:
    images, labels = job.load(positions)
    keys = random_keys(attack, job.seed, job.dataset.indices[positions], run).to(job.device)
    targets = labels
    if attack.targets:
        rivals = torch.tensor([job.ledger.rivals[position] for position in positions.tolist()], device=job.device)
        targets = target_for_run(attack, run, rivals)
    state = attack.start(job.threat_model, Rows(images, labels, keys, targets))
    nothing = torch.zeros_like(positions)
    host = {name: nothing.clone() for name in ("step", "forward", "backward", "refuted", "low_precision_refuted")}
    return ActiveRows(state, {"position": positions, **host})


def _advance(
    job: RunContext, attack: Attack, twin: SearchModel, source: WaitingRows, until: int
) -> Iterator[ActiveRows]:
    """Advance a full batch; yield rows as they finish: fooled, or at step `until`.

    A finished row leaves at once and a waiting one takes its place. Where memory runs out, half of the rows wait.
    """
    model = Metered(twin.model, job.model.passes)
    every = 1 if job.device.type == "cpu" else LOOK_EVERY
    batch: ActiveRows | None = None
    while (batch := source.fill(batch, job.batch.value)) is not None:
        steps = min(every, until - int(batch.host["step"].max()))
        before, state = job.model.passes.copy(), batch.state
        try:
            with twin.arithmetic():
                for _ in range(steps):
                    state = attack.step(model, job.threat_model, state)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            state = {}
        if not state:
            job.batch.halve(job.device)
            batch, rest = batch.split(job.batch.value)
            if len(rest):
                source.put_back(rest)
            continue
        batch = ActiveRows(state, _spent(batch.host, steps, job.model.passes.since(before)))
        fooled = (state["best_margin"] < -twin.margin_tolerance).cpu()  # the only place that waits for the device
        done = fooled | (batch.host["step"] >= until)
        if done.any():
            yield batch.take(done)
            batch = None if done.all() else batch.take(~done)


def _spent(host: dict[str, Tensor], steps: int, passes: Passes) -> dict[str, Tensor]:
    """The rows' own account after some steps; the first row takes what cannot be divided."""
    host = {**host, "step": host["step"] + steps}
    for name, total in (("forward", passes.forward), ("backward", passes.backward)):
        share, rest = divmod(total, len(host["step"]))
        host[name] = host[name] + share
        host[name][0] += rest
    return host


def _verify_low_precision(
    job: RunContext, batches: Iterator[ActiveRows], conclude: Callable[[ActiveRows, Verification], None]
) -> Iterator[ActiveRows]:
    """Verify what low precision claims to have fooled; yield the rows with which float32 is to go on."""
    for batch in _rebatch(batches, job.batch):
        claimed = (batch.state["best_margin"] < 0).cpu()
        if claimed.any():
            claims = batch.take(claimed)
            found = _verify(job, claims)
            if found.broken.any():
                conclude(claims.take(found.broken), found.take(found.broken))
            claims.host["low_precision_refuted"] += 1
            batch = _join([batch.take(~claimed), claims.take(~found.broken)])
        if len(batch):
            # What low precision thinks of a point is no measure for float32.
            batch.state["points"] = batch.state["best_points"]
            yield _reset_best(batch)


def _reset_best(batch: ActiveRows) -> ActiveRows:
    """The rows to be searched on, as if the model had not seen any point yet."""
    unknown = torch.full_like(batch.state["best_margin"], float("inf"))
    return ActiveRows({**batch.state, "best_margin": unknown}, batch.host)


def _rebatch(batches: Iterator[ActiveRows], size: BatchSize) -> Iterator[ActiveRows]:
    """The same rows, gathered until there are enough for a full batch; the rest at the end."""
    held: list[ActiveRows] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= size.value:
            yield _join(held)
            held = []
    if held:
        yield _join(held)


class Verification(NamedTuple):
    """What the untouched float32 model says of every row's best point, all on the host, [rows]."""

    broken: Tensor
    refuted: Tensor
    margin: Tensor
    seen: Tensor
    """The smallest margin that can be believed; infinite where none can."""
    prediction: Tensor
    broken_numbers: Tensor
    distance: dict[str, Tensor]

    def take(self, rows: Tensor) -> Verification:
        return Verification(
            self.broken[rows],
            self.refuted[rows],
            self.margin[rows],
            self.seen[rows],
            self.prediction[rows],
            self.broken_numbers[rows],
            {name: value[rows] for name, value in self.distance.items()},
        )


@torch.no_grad()
def _verify(job: RunContext, batch: ActiveRows) -> Verification:
    """Ask about the point that is claimed to have fooled, or where the row ended: in the ball, in the box,
    misclassified? Every row pays one forward pass.
    """
    state, threat_model = batch.state, job.threat_model
    images, claimed = state["images"], state["best_margin"] < 0
    points = torch.where(expand_rows(claimed, images), state["best_points"], state["points"])
    logits = job.ask(points)
    batch.host["forward"] += 1
    margins = threat_model.margin(logits, state["labels"])
    lengths = {name: norm.distance(to_float64(points) - to_float64(images)) for name, norm in NORMS.items()}
    low, high = threat_model.box
    inside = lengths[threat_model.norm] <= threat_model.eps + ROUNDING
    inside &= ((points >= low) & (points <= high)).flatten(1).all(1)
    broken = (margins < 0) & inside
    # The margin of a point that was claimed is the untouched model's alone.
    seen = torch.where(claimed, margins, torch.minimum(margins, state["best_margin"].to(margins.dtype)))
    seen = torch.where(inside, seen, torch.inf)
    return Verification(
        broken.cpu(),
        (claimed & ~broken).cpu(),
        margins.cpu(),
        seen.cpu(),
        logits.argmax(1).cpu(),
        logits.isnan().any(1).cpu(),
        {name: length.cpu() for name, length in lengths.items()},
    )


def _event(batch: ActiveRows, found: Verification, stage: int, run: int, seconds: float) -> SearchEvent:
    host, seen = batch.host, found.seen.tolist()
    breaks = [
        AdversarialExample(
            position=int(host["position"][row]),
            step=int(host["step"][row]),
            prediction=int(found.prediction[row]),
            margin=float(found.margin[row]),
            distance=Distance(**{name: float(length[row]) for name, length in found.distance.items()}),
        )
        for row in found.broken.nonzero().flatten().tolist()
    ]
    return SearchEvent(
        positions=host["position"].tolist(),
        stage=stage,
        run=run,
        breaks=breaks,
        margins=[None if math.isinf(margin) else margin for margin in seen],
        forward=int(host["forward"].sum()),
        backward=int(host["backward"].sum()),
        seconds=seconds,
        unconfirmed=int(host["refuted"].sum()),
        low_precision_unconfirmed=int(host["low_precision_refuted"].sum()),
        not_numbers=int(found.broken_numbers.sum()),
    )
